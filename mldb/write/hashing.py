"""Hashing what is about to be looked up: large tensors of a batch, in two threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from mldb.log import format as fmt
from mldb.log.aside import Aside
from mldb.log.batch import OVERLAP_BYTES
from mldb.log.checksum import checks_and_digest
from mldb.tensors.codec import Prepared

Hashed: TypeAlias = tuple[bytes, bytes]
"""Block checksums and digest of a tensor."""


def hash_large(tensors: Sequence[Prepared]) -> list[Hashed | None]:
    """Hash the tensors of OVERLAP_BYTES or more; None for the others, and for a single large one.

    Their bytes must stay as they are. Without a look they would be hashed while they are written;
    with a second thread it takes half of the time before.
    """
    large = [item for item in tensors if item.nbytes >= OVERLAP_BYTES]
    if len(large) < 2:
        return [None] * len(tensors)
    found: dict[int, Hashed] = {}
    rest = Aside(partial(_hash_into, found, large[1::2]))
    try:
        _hash_into(found, large[::2])
    finally:
        rest.result()
    return [found.get(id(item)) for item in tensors]


def _hash_into(found: dict[int, Hashed], tensors: Sequence[Prepared]) -> None:
    for item in tensors:
        found[id(item)] = checks_and_digest(item.buffers, fmt.BLOCK_LOG2)
