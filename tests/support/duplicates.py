"""What the tests of deduplication share: what a store holds of a tensor, and a weak hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.history.kinds import tensors
from mldb.log import format as fmt
from mldb.log.checksum import block_check
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import Entry
from mldb.names import check_name
from mldb.write import duplicates, packs, staging


def entries(db: mldb.MLDatabase, name: str) -> list[Entry]:
    """Every version of a tensor as the index has it, oldest first."""
    return db._log.head().versions(keys.TENSORS + check_name(name))


def owner_of(db: mldb.MLDatabase, name: str) -> tuple[str, int] | None:
    """Name and commit of the version that the newest one of *name* has its bytes from."""
    entry = entries(db, name)[-1]
    if entry.encoding != fmt.ENCODING_REFERENCE:
        return None
    return (keys.name_of(entry.owner) if entry.owner else name), entry.base


def bytes_of(db: mldb.MLDatabase) -> int:
    """How long the log is."""
    found: int = db.stats()["bytes"]
    return found


def found(db: mldb.MLDatabase, counter: str) -> int:
    """A counter of what was found."""
    count: int = db.stats()["deduplication"][counter]
    return count


def weaken_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all tensors have one digest; block checksums stay what they are."""
    weak = b"\x07" * fmt.DIGEST_SIZE

    def checks(buffers: Sequence[Buffer], block_log2: int) -> tuple[bytes, bytes]:
        data, size = b"".join(buffers), 1 << block_log2
        parts = [block_check(data[low : low + size]) for low in range(0, len(data), size)]
        return b"".join(parts), weak

    # The checksum of a block is not taken from its digest.
    monkeypatch.setattr(tensors, "check_of_block", lambda data, digest: block_check(data))
    for module in (tensors, duplicates):
        monkeypatch.setattr(module, "checks_and_digest", checks)
        monkeypatch.setattr(module, "whole_digest", lambda buffers: weak)
    for module in (tensors, staging, packs):
        monkeypatch.setattr(module, "digest128", lambda data: weak)


def values(number: int, count: int = 500) -> np.ndarray[Any, Any]:
    """Bytes that no other number has."""
    return np.random.default_rng(number).integers(0, 1 << 62, count)
