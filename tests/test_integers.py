"""Whole numbers of NumPy are whole numbers, to every option that takes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mldb
from mldb.integers import integer, seconds
from mldb.lake.order.plan import Shard
from mldb.sphere.graph import build_graph

KINDS: list[Callable[[int], Any]] = [np.int64, np.uint8, np.int32, np.uint64]


@pytest.mark.parametrize("kind", [int, *KINDS])
def test_an_integer_of_any_kind_is_an_int_from_then_on(kind: Callable[[int], Any]) -> None:
    found = integer("n", kind(7))
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize(
    "value", [True, np.True_, 1.0, np.float64(1), "1", b"1", None, [1], np.array([1]), Fraction(1)]
)
def test_what_is_no_integer_is_refused_by_name(value: Any) -> None:
    with pytest.raises(mldb.InvalidTypeError, match=r"^n is a \w+, not an int"):
        integer("n", value)


def test_seconds_are_any_real_number() -> None:
    for value in (2, 2.0, np.float32(2), np.int8(2), Fraction(2)):
        assert seconds("t", value, 5) == 2.0
        assert type(seconds("t", value, 5)) is float
    for value in (-1, 6, float("nan"), float("inf")):
        with pytest.raises(mldb.InvalidValueError, match="t="):
            seconds("t", value, 5)
    for wrong in (True, "2", None, 2j):
        with pytest.raises(mldb.InvalidTypeError, match="t is a"):
            seconds("t", wrong, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_of_a_stream_take_them_and_hold_ints(
    store_path: Path, kind: Callable[[int], Any]
) -> None:
    """What a configuration or np.random gave was refused for batch_size and seed."""
    rows = np.eye(48, dtype=np.float32) + 0.1
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake("a", dim=kind(48))
        lake.add_splats(rows, epoch=kind(3))
        float32: Any = np.float32(0.75)
        augmentation = mldb.Augmentation(copies=kind(2), strength=float32)
        assert (type(augmentation.copies), type(augmentation.strength)) == (int, float)
        loaders = [
            lake.export_to_dataloader(
                of(8),
                seed=of(5),
                num_workers=of(0),
                generate_samples=mldb.Augmentation(copies=of(2)),
                prefetch=of(2),
                device="numpy",
            )
            for of in (int, kind)
        ]
        states = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        assert states[0] == states[1]
        batches = [[torch.as_tensor(batch) for batch in loader] for loader in loaders]
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one, other)
        moved = [
            lake.augment(rows, mode="isotropic", strength=0.5, seed=of(9)) for of in (int, kind)
        ]
        np.testing.assert_array_equal(*moved)
    graph = build_graph(rows / np.linalg.norm(rows, axis=1, keepdims=True), kind(4))
    assert graph.neighbours.shape == (48, 4)
    shard = Shard(rank=kind(1), world=kind(2))
    assert type(shard.rank) is int


@pytest.mark.parametrize("kind", KINDS)
def test_the_verbs_of_a_store_take_them(store_path: Path, kind: Callable[[int], Any]) -> None:
    options: Any = {
        "segment_bytes": np.int64(1 << 20),
        "max_mapped": kind(9),
        "lock_timeout": kind(5),
    }
    with mldb.open(store_path, durability="os", **options) as db:
        assert (type(db.options.segment_bytes), type(db.options.max_mapped)) == (int, int)
        db.store_tensor("x", 1, epoch=kind(4))
        db.checkpoint({"w": np.ones(2)}, epoch=kind(5), step=kind(6))
        db.transact(lambda txn: txn.store_tensor("y", 1), retries=kind(2), epoch=kind(5))
        assert int(db.query_tensor("x", as_of=kind(4))) == 1
        assert db.at(epoch=kind(4)).epoch == 4
        with db.create_tensor("z", (kind(2), kind(3)), "f4") as writer:
            writer[kind(0)] = 1
        assert db["z"].shape == (2, 3)
        assert db.events(start=kind(4), stop=kind(5)) is not None
        assert db.checkpoints()[0].step == 6
        assert db.checkpoints()[0].time < datetime.now(UTC)
    with pytest.raises(mldb.InvalidTypeError, match="max_mapped is a float, not an int"):
        mldb.open(store_path, max_mapped=1.5)
