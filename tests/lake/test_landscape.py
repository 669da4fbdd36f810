"""What walks and chains know of a lake: a graph that is derived, kept, grown, and never trusted."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.gpu.select import open_device
from mldb.lake.augment import devices, graph_store
from mldb.lake.augment.graph_store import GRAPH_NEIGHBOURS, lake_graph
from mldb.lake.augment.landscape import Landscape
from mldb.lake.states import LakeStates
from mldb.sphere.graph import Graph, build_graph

DIM = 12


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def rows_of(rng: np.random.Generator, count: int) -> Any:
    return rng.standard_normal((count, DIM))


def hint(db: mldb.MLDatabase) -> Path:
    (found,) = (Path(db.path) / "hints").glob("lake-*.graph")
    return found


def same(graph: Graph, mu: Any) -> bool:
    fresh = build_graph(mu, GRAPH_NEIGHBOURS)
    return bool(
        (graph.neighbours == fresh.neighbours).all() and (graph.cosines == fresh.cosines).all()
    )


def test_the_graph_is_kept_grown_by_additions_and_reduced_by_removals(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    for name in ("build_graph", "extend_graph", "reduce_graph"):
        plain = getattr(graph_store, name)

        def noted(*args: Any, name: str = name, plain: Any = plain, **kw: Any) -> Graph:
            built.append(name)
            return plain(*args, **kw)  # type: ignore[no-any-return]

        monkeypatch.setattr(graph_store, name, noted)
    lake = db.lake(dim=DIM)
    steps: list[tuple[Callable[[], object], str | None]] = [
        (lambda: lake.add_splats(rows_of(rng, 60)), "build_graph"),
        (lambda: None, None),
        (lambda: lake.add_splats(rows_of(rng, 25)), "extend_graph"),
        (lambda: lake.remove([3, 70]), "reduce_graph"),
        (lambda: lake.add_splats(rows_of(rng, 5)), "extend_graph"),
        (lambda: None, None),
    ]
    for change, expected in steps:
        change()
        built.clear()
        rows = lake.rows()
        graph = lake_graph(rows, rows.table())
        assert built == ([] if expected is None else [expected])
        assert same(graph, rows.table())


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty"])
def test_a_lost_or_damaged_hint_costs_time_and_nothing_else(
    db: mldb.MLDatabase, rng: np.random.Generator, damage: str
) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 50))
    rows = lake.rows()
    lake_graph(rows, rows.table())
    file = hint(db)
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(b"")
    db._known_lakes().derived.clear()
    assert same(lake_graph(rows, rows.table()), rows.table())
    assert hint(db).stat().st_size > 100


def test_the_graph_of_another_lineage_is_not_taken(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 40), epoch=1)
    lake.add_splats(rows_of(rng, 10), epoch=2)
    lake_graph(lake.rows(), lake.rows().table())
    db.rewind(1)
    lake.add_splats(rows_of(rng, 10))
    assert same(lake_graph(lake.rows(), lake.rows().table()), lake.rows().table())


def test_a_read_only_handle_writes_no_hint(store_path: Path, rng: np.random.Generator) -> None:
    with mldb.open(store_path) as db:
        db.lake(dim=DIM).add_splats(rows_of(rng, 40))
    with mldb.open(store_path, mode="r") as db:
        rows = db.lake().rows()
        assert same(lake_graph(rows, rows.table()), rows.table())
        assert not list((store_path / "hints").glob("lake-*"))


def test_rows_without_a_label_are_walked_from_and_never_gated(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    """Two far clusters, labels in one of them only: a label below 0 is none."""
    x = np.abs(rows_of(rng, 40)) * 0.1
    x[:20, 0] += 5
    x[20:, 1] += 5
    labels = np.r_[np.zeros(10, int), np.full(10, -1), np.full(20, -1)]
    lake = db.lake(dim=DIM)
    lake.add_splats(x, labels=labels)
    landscape = Landscape(lake.rows(), mldb.Augmentation(mode="walk", k=5))
    assert landscape.labels is not None
    assert (landscape._labels_around == 0).all()
    loader = lake.export_to_dataloader(
        40, shuffle=False, generate_samples=mldb.Augmentation(mode="walk", k=5), fields=("changed",)
    )
    (batch,) = loader
    assert batch.changed.sum() > 10  # most walks of two hops end at another row


@pytest.mark.usefixtures("one_lake_id")
def test_a_pool_added_without_labels_is_gated_as_one_with_label_minus_one(
    db: mldb.MLDatabase, store_path: Path, rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    """One block without labels used to switch the gate off, and the field was refused."""
    x, labels = rows_of(rng, 40), np.arange(40) % 3
    other = mldb.open(store_path.with_name("other"), durability="os")
    request.addfinalizer(other.close)
    one, two = other.lake(dim=DIM), db.lake(dim=DIM)
    pool = rows_of(rng, 60)
    one.add_splats(np.vstack([x, pool]), labels=np.r_[labels, np.full(60, -1)])
    two.add_splats(x, labels=labels)
    two.add_splats(pool)
    seen = []
    for lake in (one, two):
        loader = lake.export_to_dataloader(
            50, generate_samples=mldb.Augmentation(mode="walk"), fields=("mu", "label")
        )
        seen.append([(b.mu.numpy().tobytes(), b.label.tolist()) for b in loader])
        assert loader.stats()["augmented"]["taken_back"] > 5
    assert seen[0] == seen[1]
    free = two.export_to_dataloader(50, generate_samples=mldb.Augmentation(mode="walk", gate=False))
    list(free)
    assert free.stats()["augmented"]["taken_back"] == 0


def test_walks_and_chains_need_neighbours(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 1))
    with pytest.raises(mldb.InvalidValueError, match="has 1 rows"):
        list(lake.export_to_dataloader(1, generate_samples=mldb.Augmentation(mode="walk")))


@pytest.mark.parametrize("count", [1, 2])
def test_chains_among_one_or_two_rows_are_refused_in_words(
    db: mldb.MLDatabase, rng: np.random.Generator, count: int
) -> None:
    """It was an error about a perplexity of 1.01, which nobody had asked for."""
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, count))
    with pytest.raises(mldb.InvalidValueError, match=rf"has {count} rows; langevin needs 3"):
        lake.augment(rows_of(rng, 2), mode="langevin", device="numpy")
    lake.add_splats(rows_of(rng, 3 - count))
    made = lake.augment(rows_of(rng, 2), mode="langevin", device="numpy")
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("copies", [1, 60])
def test_a_lake_of_copies_has_chains_as_one_without(
    db: mldb.MLDatabase, rng: np.random.Generator, copies: int
) -> None:
    """The bandwidth of a lake half of which is one row was 1e6, and chains did not move."""
    x = rows_of(rng, 120)
    more = np.repeat(x[:1], 120, axis=0) if copies == 1 else np.repeat(x, copies, axis=0)
    alone, copied = db.lake("alone", dim=DIM), db.lake("copied", dim=DIM)
    alone.add_splats(x)
    copied.add_splats(np.concatenate([x, more]))
    chosen = mldb.Augmentation(mode="langevin", strength=0.6)
    kappas = [Landscape(lake.rows(), chosen).kappa for lake in (alone, copied)]
    assert kappas[1] == pytest.approx(kappas[0], rel=0.1)
    given = copied.get()["mu"]
    made = copied.augment(given, mode="langevin", strength=0.6, device="numpy")
    assert (made * given).sum(axis=1).mean() == pytest.approx(0.6, abs=0.03)


def test_rows_of_any_origin_are_augmented(db: mldb.MLDatabase, rng: np.random.Generator) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 60))
    x = rows_of(rng, 7)
    pool = lake.get()["mu"]
    walked = lake.augment(x, mode="walk", device="numpy")
    assert all((pool == row).all(axis=1).any() for row in walked)  # walks return real rows
    one = lake.augment(x, strength=0.9, device="numpy", seed=3)
    assert one.tobytes() == lake.augment(x, strength=0.9, device="numpy", seed=3).tobytes()
    assert one.tobytes() != lake.augment(x, strength=0.9, device="numpy", seed=4).tobytes()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)
    cosines = (one * x).sum(1) / np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(cosines, 0.9, atol=1e-5)
    chained = lake.augment(x, mode="langevin", steps=3, device="numpy")
    assert chained.shape == x.shape
    with pytest.raises(mldb.InvalidValueError, match="x has shape"):
        lake.augment(x[:, :5])
    with pytest.raises(mldb.InvalidTypeError, match="'hop' is no option of Augmentation"):
        lake.augment(x, mode="walk", hop=3)
    with pytest.raises(mldb.InvalidValueError, match=r"row 1 of x is zero.*Nothing was augmented"):
        lake.augment(np.array([x[0], np.zeros(DIM)]))
    torch = pytest.importorskip("torch")
    assert isinstance(lake.augment(torch.tensor(x), device="numpy"), torch.Tensor)


def test_tables_are_closed_before_their_device_is_used_again(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of every stream stayed on the device that the next stream borrowed."""
    lake = db.lake(dim=DIM)
    lake.add_splats(rows_of(rng, 50))
    events: list[str] = []
    device = open_device("numpy")
    plain = device.load

    def load(rows: Any) -> Any:
        table = plain(rows)
        events.append("load")
        monkeypatch.setattr(table, "close", lambda: events.append("close"))
        return table

    monkeypatch.setattr(device, "load", load)
    monkeypatch.setattr(devices, "_idle", {})

    def opened(spec: str, *, copy: bool, needs: Any) -> Any:
        events.append("open")
        return device

    monkeypatch.setattr(devices, "open_device", opened)
    for _ in range(2):
        lake.augment(rows_of(rng, 4), mode="langevin", steps=1, device="numpy")
        gc.collect()
    assert events == ["open", "load", "close", "load", "close"]


def test_a_device_that_was_lost_is_not_lent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later stream of the process got it."""
    monkeypatch.setattr(devices, "_idle", {})
    user = LakeStates(0, saves=False)
    device = devices.borrow("numpy", user=user)
    monkeypatch.setattr(device, "usable", False)
    devices.give_back("numpy", device, os.getpid())
    assert devices.borrow("numpy", user=user) is not device
