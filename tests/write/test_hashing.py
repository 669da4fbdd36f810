"""Hashing ahead of a look: the same sums as anywhere, of large tensors alone."""

from __future__ import annotations

import numpy as np
import pytest

from mldb.log import format as fmt
from mldb.log.batch import OVERLAP_BYTES
from mldb.log.checksum import checks_and_digest
from mldb.tensors.codec import prepare
from mldb.write.hashing import hash_large


@pytest.mark.parametrize("large", [0, 1, 2, 5])
def test_large_tensors_are_hashed_wherever_they_stand(large: int) -> None:
    sizes = [OVERLAP_BYTES + 8 * number for number in range(large)]
    for place in range(2):
        sizes.insert(place * 2, 1000)
    tensors = [prepare(np.arange(size // 8)) for size in sizes]
    for item, hashed in zip(tensors, hash_large(tensors), strict=True):
        if large > 1 and item.nbytes >= OVERLAP_BYTES:
            assert hashed == checks_and_digest(item.buffers, fmt.BLOCK_LOG2)
        else:
            assert hashed is None
