"""Compaction beside a run that goes on: the active segment, and what it needs of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mldb
from mldb.compaction import compactor
from mldb.log.fs.memory import MemoryFileSystem


@pytest.mark.parametrize("is_rewound", [False, True])
def test_what_the_active_segment_needs_stays_where_it_cannot_be_sealed(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, is_rewound: bool
) -> None:
    # A run that commits on and on had put new garbage into the active segment by each of eight
    # plans. The ninth left that segment alone, and knew nothing of its references and rewinds:
    # owners in older segments were dropped under them.
    first = rng.standard_normal(1 << 12)
    options: dict[str, Any] = {"segment_bytes": 1 << 15, "deduplicate": 512}
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os", **options) as db:
        db.store_tensor("w", first, epoch=1)
        for epoch, name in enumerate("wvv", 2):
            db.store_tensor(name, rng.standard_normal(1 << 12), epoch=epoch)
        if is_rewound:
            db.rewind(1)
        else:
            db.store_tensor("copy", first, epoch=5)
        for _ in range(6):
            db.store_tensor("g", rng.standard_normal(300))
        db.retention.set(last=1)
        assert db.stats()["segments"] == 5
        monkeypatch.setattr(compactor, "seal_active", lambda _: None)
        db.compact()
        assert np.array_equal(db["w" if is_rewound else "copy"], first)
        assert db.verify().ok
