"""Hashing ahead of a look: the same sums as anywhere, of large tensors alone."""

from __future__ import annotations

import numpy as np
import pytest

from mldb.log import format as fmt
from mldb.log.batch import OVERLAP_BYTES
from mldb.log.checksum import checks_and_digest
from mldb.tensors.codec import prepare
from mldb.write.hashing import hash_large, hash_to_look, hashed_to_store


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


@pytest.mark.parametrize("size", [0, 8, 1 << fmt.BLOCK_LOG2, (1 << fmt.BLOCK_LOG2) + 8])
def test_what_is_looked_up_is_hashed_to_the_same_in_the_end(size: int) -> None:
    """Of one block the checksum waits until it is known that it is needed."""
    item = prepare(np.arange(size // 8))
    looked = hash_to_look(item.buffers, item.nbytes)
    assert (looked[0] is None) == (size <= 1 << fmt.BLOCK_LOG2)
    expected = checks_and_digest(item.buffers, fmt.BLOCK_LOG2)
    assert looked[1] == expected[1]
    assert hashed_to_store(looked, item.buffers) == expected
