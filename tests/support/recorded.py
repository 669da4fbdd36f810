"""A store with everything in it: what replay and repair have to bring over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import mldb
from tests.support.compacting import compact_all, kept_of, shown_at, store_shown
from tests.support.splats import planted

DIM = 8


def record_run(path: Path, rng: np.random.Generator, *, epochs: int = 8, **options: Any) -> None:
    """Record a run with every kind of event, in several segments."""
    options = {
        "durability": "os",
        "background_compaction": False,
        "segment_bytes": 60_000,
        **options,
    }
    chosen: dict[str, Any] = options
    with mldb.open(path, **chosen) as db:
        for epoch in range(1, epochs + 1):
            _train(db, epoch, rng)
            if epoch == 3:
                db.tag("third")
                db.pin(2)
            if epoch == 5:
                db.rewind(4)
                db.tag("moved", 2)
        db.tag("moved")
        db.unpin(2)
        db.pin(3)
        db.untag("third")


def _train(db: mldb.MLDatabase, epoch: int, rng: np.random.Generator) -> None:
    weights = rng.standard_normal((40, 16)).astype(np.float32)
    with db.transaction(epoch=epoch) as txn:
        txn.store_model_layer("encoder.conv", weights, np.full(16, epoch, np.float32))
        txn.store_tensor("decoder.w", weights[::2], {"epoch": epoch, "of": "decoder"})
        if epoch == 1:
            txn.create_relationship("encoder.conv", "decoder.w", "feeds_into", {"weight": 1})
            txn.create_relationship("input", "encoder.conv", "feeds_into")
    large = np.repeat(rng.standard_normal(50), 400) if epoch == 1 else db["shared.a"]
    db.store_tensor("shared.a", large)
    db.store_tensor("shared.b", large, {"copy": True})
    db.update_tensor("decoder.w", [0, 3], np.full((2, 16), epoch, np.float32))
    db.add_to_tensor("shared.b", np.ones(len(large)), 0.5)
    if epoch > 1:
        db.set_metadata("shared.a", {"seen": epoch})
    state = {"model": {"w": weights, "b": np.arange(epoch)}, "step": epoch}
    db.checkpoint(state, epoch=epoch, name=f"c{epoch % 3}", metrics={"loss": 1 / epoch})
    _change_lake(db, epoch, rng)
    if epoch == 4:
        del db["encoder.conv_biases"]
        db.delete_relationship("input", "encoder.conv", "feeds_into")


def _change_lake(db: mldb.MLDatabase, epoch: int, rng: np.random.Generator) -> None:
    mu, of = planted(rng, 6, DIM, 0.05)
    for name in ("default", "other")[: 1 + epoch % 2]:
        lake = db.lake(name, dim=DIM)
        ids = lake.add_splats(mu[:20], labels=of[:20] % 2)
        if epoch % 3 == 0:
            lake.remove(ids[:2])
        if epoch % 4 == 1:
            report = lake.consolidate()
            if epoch == 5:
                lake.undo(report)


def compact_with_retention(path: Path, **retention: Any) -> None:
    """Let go what *retention* lets go, and rewrite every segment."""
    with mldb.open(path, durability="os", background_compaction=False) as db:
        db.retention.set(**(retention or {"every": 3, "checkpoints": 1}))
        compact_all(db)


def all_shown(path: Path, until: int | None = None) -> dict[str, Any]:
    """Everything that every commit shows, up to one of them, and what belongs to the store."""
    with mldb.open(path, mode="r") as db:
        last = int(db.lsn) if until is None else until
        shown = {lsn: shown_at(db, lsn) for lsn in kept_of(db) if lsn <= last}
        return {"commits": shown, "store": store_shown(db), "events": list(db.events())}
