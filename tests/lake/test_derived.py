"""What is computed of lakes: made once, within a number of bytes, before workers need it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.augment import graph_store, landscape
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.live import Rows
from mldb.sphere import neighbours
from mldb.tensors.cache import ByteCache
from tests.support.lakes import BATCH, DIM, ROWS, data, db, fill, raw, stream  # noqa: F401
from tests.support.workers import METHODS

WALK = mldb.Augmentation(mode="walk")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was computed, by name."""
    done: list[str] = []
    for module, name in (
        *((graph_store, part) for part in ("build_graph", "extend_graph", "reduce_graph")),
        (landscape, "nearest_labels"),
    ):
        plain = getattr(module, name)

        def noted(*args: Any, name: str = name, plain: Any = plain, **named: Any) -> Any:
            done.append(name)
            return plain(*args, **named)

        monkeypatch.setattr(module, name, noted)
    return done


def half_labelled(data: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    return {**data, "labels": np.where(np.arange(ROWS) % 2, data["labels"], -1)}


def test_walks_and_calls_share_what_is_computed_of_a_commit(
    db: mldb.MLDatabase,  # noqa: F811
    data: dict[str, Any],  # noqa: F811
    counted: list[str],
    rng: np.random.Generator,
) -> None:
    lake = fill(db, half_labelled(data), 3)
    x = rng.standard_normal((5, DIM))
    first = lake.augment(x, mode="walk", device="numpy")
    assert sorted(counted) == ["build_graph", "nearest_labels"]
    for _ in range(2):
        assert lake.augment(x, mode="walk", device="numpy").tobytes() == first.tobytes()
        raw(stream(lake, "walk"))
        lake.augment(x, mode="langevin", steps=1, device="numpy")
    assert len(counted) == 2
    with lake.at() as past:
        lake.add_splats(rng.standard_normal((4, DIM)))
        lake.augment(x, mode="walk", device="numpy")
        assert sorted(counted[2:]) == ["extend_graph", "nearest_labels"]
        assert graph_store.lake_graph(past.rows(), past.rows().table()).k
    assert len(counted) == 4
    stats = db.stats()["lakes"]
    assert 0 < stats["used_bytes"] <= stats["limit_bytes"]
    assert stats["hits"] > 10


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("mode", ["walk", "langevin"])
def test_a_call_with_other_rows_touches_no_row_of_the_lake_again(
    db: mldb.MLDatabase,  # noqa: F811
    data: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    mode: str,
    parts: int,
) -> None:
    """Each call looked for identical rows, and copied all labelled rows for its gate."""
    near = [rng.standard_normal((5, DIM)) for _ in range(4)]
    settings: dict[str, Any] = {"mode": mode}
    if mode == "walk":  # which start among many identical rows
        data["mu"][rng.permutation(ROWS)[:300]] = data["mu"][0]
        near = [data["mu"][0] + 1e-5 * x for x in near]
    else:
        settings["steps"] = 1
    lake = fill(db, half_labelled(data), parts)
    lake.augment(near[0], device="numpy", **settings)
    touched: list[str] = []
    for owner, name in (
        (MappedBlock, "gather"),
        (MappedBlock, "verify"),
        (Rows, "gather"),
        (neighbours, "identical_groups"),
    ):
        plain = getattr(owner, name)

        def noted(*args: Any, name: str = name, plain: Any = plain, **named: Any) -> Any:
            touched.append(name)
            return plain(*args, **named)

        monkeypatch.setattr(owner, name, noted)
    rows = lake.rows()
    copy = rows.known("labelled rows", rows.state.version)
    assert (copy is None) is (mode == "walk")  # its gate looks labels up
    for x in near[1:]:
        before = db.stats()["lakes"]["misses"]
        lake.augment(x, device="numpy", **settings)
        assert db.stats()["lakes"]["misses"] == before + 1  # where these rows start
    assert touched == []
    assert rows.known("labelled rows", rows.state.version) is copy
    lake.add_splats(rng.standard_normal((4, DIM)), labels=[0] * 4)
    lake.augment(near[1], device="numpy", **settings)
    assert "gather" in touched  # of another state everything is looked at


def test_calls_of_two_threads_see_one_commit_each(
    db: mldb.MLDatabase,  # noqa: F811
    data: dict[str, Any],  # noqa: F811
    rng: np.random.Generator,
) -> None:
    lake = fill(db, half_labelled(data), 3)
    calls = [rng.standard_normal((5, DIM)) for _ in range(8)]

    def augmented(x: Any) -> bytes:
        return lake.augment(x, mode="walk", device="numpy").tobytes()  # type: ignore[no-any-return]

    before = [augmented(x) for x in calls]
    rounds: list[list[bytes]] = []
    started, added = Barrier(3), Event()

    def work() -> None:
        started.wait()
        seen = []
        while True:
            last = added.is_set()
            seen = [augmented(x) for x in calls]
            rounds.append(seen)
            if last:
                return

    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(work) for _ in range(2)]
        started.wait()
        lake.add_splats(np.concatenate(calls))  # the nearest rows are others from now on
        added.set()
        for thread in threads:
            thread.result()
    after = [augmented(x) for x in calls]
    assert all(one != other for one, other in zip(before, after, strict=True))
    for seen in rounds:
        assert all(s in pair for s, *pair in zip(seen, before, after, strict=True))
    assert rounds[-1] == after


@pytest.mark.usefixtures("one_lake_id")
def test_without_room_everything_is_the_same(
    store_path: Path,
    data: dict[str, Any],  # noqa: F811
    rng: np.random.Generator,
) -> None:
    x, seen = rng.standard_normal((5, DIM)), []
    for number, room in enumerate((1 << 28, 0)):
        path = store_path.with_name(f"store{number}")
        with mldb.open(path, durability="os", lake_cache_bytes=room) as other:
            lake = fill(other, half_labelled(data), 3)
            lake.remove([7, 8])
            seen.append(
                (lake.augment(x, mode="walk", device="numpy").tobytes(), *raw(lake_walk(lake)))
            )
            assert (other.stats()["lakes"]["used_bytes"] > 0) is (room > 0)
    assert seen[0] == seen[1]


def lake_walk(lake: Any) -> Any:
    return stream(lake, "walk", importance_sampling=mldb.Importance(beta=0.5))


@pytest.mark.parametrize("context", METHODS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.slow
def test_workers_find_what_their_parent_computed(
    db: mldb.MLDatabase,  # noqa: F811
    data: dict[str, Any],  # noqa: F811
    context: str,
    counted: list[str],
) -> None:
    """The parent computes before workers start; their batches are the same."""
    lake = fill(db, half_labelled(data), 3)
    loader = stream(lake, "walk", num_workers=2, loader={"multiprocessing_context": context})
    batches = raw(loader)
    assert sorted(counted) == ["build_graph", "nearest_labels"]
    names = sorted(path.suffix for path in (Path(db.path) / "hints").glob("lake-*"))
    assert names == [".graph", ".labels"]
    assert batches == raw(stream(lake, "walk"))
    # Another process, which may not write, computes nothing.
    with mldb.open(db.path, mode="r") as other:
        counted.clear()
        assert raw(stream(other.lake(), "walk")) == batches
        assert counted == []


def test_what_was_used_least_recently_leaves_first() -> None:
    cache = ByteCache(100)
    for name in "abc":
        assert cache.get(name, lambda _: 40, lambda name=name: name * 2) == name * 2  # type: ignore[misc]
    assert (cache.used_bytes, cache.dropped, cache.misses) == (80, 1, 3)
    assert cache.find("a") is None
    assert cache.find("b") == ("bb",)
    cache.get("d", lambda _: 40, lambda: "dd")
    assert cache.find("c") is None
    assert cache.find("b") == ("bb",)
    cache.get("large", lambda _: 101, lambda: "large")
    assert cache.find("large") is None
    assert cache.used_bytes == 80
    with pytest.raises(ZeroDivisionError):
        cache.get("bad", lambda _: 1, lambda: 1 // 0)
    assert cache.used_bytes == 80
    cache.clear()
    assert (cache.used_bytes, cache.find("b")) == (0, None)


@pytest.mark.parametrize(
    ("settings", "bytes_a_row"),
    [
        ({"beta": 0.5}, 20),
        ({"beta": 0.5, "target": "distinct"}, 28),
        ({"beta": 0.5, "replacement": "systematic"}, 8),
        ({"beta": 0.5, "replacement": "bottom_k", "target": "rows"}, 24),
    ],
)
def test_a_setting_of_importance_keeps_little_and_within_the_bound(
    store_path: Path,
    rng: np.random.Generator,
    settings: dict[str, Any],
    bytes_a_row: int,
) -> None:
    """42 bytes a row were kept for each: ones for weights, ids again, aliases of eight bytes."""
    rows, bound = 20_000, 4 << 20
    with mldb.open(store_path, durability="os", lake_cache_bytes=bound) as other:
        lake = other.lake(dim=2)
        lake.add_splats(rng.standard_normal((rows, 2)), alpha=rng.integers(1, 9, rows))
        fields = ("id", "weight") if "target" in settings else None

        def used(floor: float | None) -> int:
            given = settings if floor is None else settings | {"floor": floor}
            loader = lake.export_to_dataloader(
                100, importance_sampling=mldb.Importance(**given), draws=200, fields=fields
            )
            next(iter(loader))
            assert other.stats()["lakes"]["used_bytes"] <= bound
            return int(other.stats()["lakes"]["used_bytes"])

        used(None)
        first, second = used(0.2), used(0.21)
        assert second - first == pytest.approx(bytes_a_row * rows, rel=0.01)
        for number in range(60):
            used(0.3 + number / 100)
        assert other.stats()["lakes"]["dropped"] > 0


@pytest.mark.usefixtures("one_lake_id")
def test_a_loader_over_many_blocks_needs_no_memory_for_them(
    db: mldb.MLDatabase,  # noqa: F811
    store_path: Path,
    data: dict[str, Any],  # noqa: F811
) -> None:
    """From five blocks on all rows were copied, whatever was asked for."""
    with mldb.open(store_path.with_name("few"), durability="os") as other:
        first, second = stream(fill(other, data)), stream(fill(db, data, 9))
        assert raw(first) == raw(second)
    assert second.stats()["warm"] is None
    assert second.stats()["buffers"] <= 16
    assert BATCH < ROWS
