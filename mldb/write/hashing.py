"""Hashing what is about to be looked up; large tensors of a batch in two threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from mldb.log import format as fmt
from mldb.log.aside import Aside
from mldb.log.batch import OVERLAP_BYTES
from mldb.log.checksum import block_checks, checks_and_digest, whole_digest
from mldb.log.fs.protocol import Buffer
from mldb.tensors.codec import Prepared

Hashed: TypeAlias = tuple[bytes, bytes]
"""Block checksums and digest of a tensor."""


def hash_to_look(buffers: Sequence[Buffer], nbytes: int) -> tuple[bytes | None, bytes]:
    """Return block checksums and digest of what is looked up; None for checksums that can wait.

    They can for one block, which is in the cache when they are made: what is found needs none.
    """
    if nbytes <= 1 << fmt.BLOCK_LOG2:
        return None, whole_digest(buffers)
    return checks_and_digest(buffers, fmt.BLOCK_LOG2)


def hashed_to_store(hashed: tuple[bytes | None, bytes], buffers: Sequence[Buffer]) -> Hashed:
    """Return what :func:`hash_to_look` said with the checksums of what was not found."""
    checks, digest = hashed
    return block_checks(buffers, fmt.BLOCK_LOG2) if checks is None else checks, digest


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
