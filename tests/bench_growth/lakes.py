"""Lakes that grow: what opening, reading, changing, streaming and augmenting cost against size."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np

import mldb
from mldb.lake.augment.augmenter import starts_of
from mldb.lake.stream.settings import AugmentationMode
from mldb.sphere.graph import build_graph
from tests.bench_growth.row import Row

DIM = 640
MILLISECONDS = 1e3
MIB = 1 << 20


def rows(quick: bool) -> list[Row]:
    """Measure every figure; *quick* at a tenth of the size, where nothing must be met.

    What should not notice how often a lake was changed is measured at both.
    """
    steps: list[tuple[Callable[[Path, int], list[Row]], tuple[int, ...]]] = [
        (many_additions, (10, 1)),
        (head_and_past_in_turn, (10, 1)),
        (own_ids, (1,)),
        (single_removals, (10, 1)),
        (first_batches, (1,)),
        (identical_rows, (1,)),
        (augment_calls, (1,)),
    ]
    found: list[Row] = []
    for step, shares in steps:
        for share in (10,) if quick else shares:
            with TemporaryDirectory() as folder:
                part = step(Path(folder), share)
            found += part if share == 1 else [replace(row, must="", met=None) for row in part]
    return found


def _row(figure: str, size: int, value: float, unit: str, most: float | None = None) -> Row:
    must = "" if most is None else f"≤ {most:g} {unit}"
    return Row(figure, size, value, unit, must, None if most is None else value <= most)


def _random(count: int, dim: int = DIM, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


def _timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * MILLISECONDS


def many_additions(folder: Path, share: int) -> list[Row]:
    """Ten rows at a time: reading costs what changed, not how often the lake did."""
    count = 10_000 // share
    x = _random(10)
    with mldb.open(folder / "store", durability="os") as db:
        lake = db.lake(dim=DIM)
        for _ in range(count):
            lake.add_splats(x)
    opened, found, first, cold = [], [], [], []
    for _ in range(5):
        with ExitStack() as stack:

            def look(stack: ExitStack = stack) -> None:
                db = stack.enter_context(mldb.open(folder / "store", durability="os"))
                assert len(db.lake()) >= 10 * count

            opened.append(_timed(look))
            with mldb.open(folder / "store", mode="r") as db:
                cold.append(_timed(lambda db=db: db.lake().get([11])))  # type: ignore[misc]
        with mldb.open(folder / "store", durability="os") as db:
            lake = db.lake()
            loader = lake.export_to_dataloader(256)
            first.append(_timed(lambda loader=loader: next(iter(loader))))  # type: ignore[misc]
    with mldb.open(folder / "store", durability="os") as db:
        lake = db.lake()
        lake.get([0])
        for number in range(9):
            lake.add_splats(x)
            found.append(_timed(lambda number=number: lake.get([7 * number])))  # type: ignore[misc]
    return [
        _row("lake of additions of 10 rows: open and len", count, median(opened), "ms", 50),
        _row("the same: first get by id of a handle", count, median(cold), "ms"),
        _row("the same: get by id after a change", count, median(found), "ms", 5),
        _row("the same: first shuffled batch", count, median(first), "ms", 100),
    ]


def head_and_past_in_turn(folder: Path, share: int) -> list[Row]:
    """A snapshot and the head do not push each other out."""
    count = 2000 // share
    with mldb.open(folder / "store", durability="os") as db:
        lake, x = db.lake(dim=16), _random(10, 16)
        for number in range(count):
            lake.add_splats(x, epoch=number)
        with lake.at(count // 2) as past:
            pairs = [_timed(lambda: (len(lake), len(past))) for _ in range(9)]
    return [_row("head and a snapshot in turn", count, median(pairs[1:]), "ms", 5)]


def own_ids(folder: Path, share: int) -> list[Row]:
    """A hundred rows with ids of their own, into lakes of several sizes."""
    rng = np.random.default_rng(1)
    found, none = [], 0.0
    with mldb.open(folder / "store") as db:
        for size in (0, 200_000 // share, 800_000 // share):
            took = []
            lake = db.lake(f"lake{size}", dim=16)
            ids = rng.permutation(4_000_000)[: size + 2100]
            for low in range(0, size, 50_000):
                part = ids[low : min(low + 50_000, size)]
                lake.add_splats(_random(len(part), 16), ids=part)
            x = _random(100, 16)
            if size:
                lake.add_splats(x, ids=ids[-100:])
            for number in range(19):
                if not size:
                    lake = db.lake(f"none{number}", dim=16)
                part = ids[size + 100 * number :][:100]
                started = time.perf_counter()
                lake.add_splats(x, ids=part)
                took.append((time.perf_counter() - started) * MILLISECONDS)
            none = none or median(took)
            found.append(_row("100 rows with ids of their own", size, median(took), "ms"))
            if size:
                ratio = median(took) / none
                found.append(_row("the same, against into none", size, ratio, "×", 2))
    return found


def single_removals(folder: Path, share: int) -> list[Row]:
    """Removals of one row: the later ones cost what the first ones do."""
    size = 100_000 // share
    with mldb.open(folder / "store", durability="os") as db:
        lake = db.lake(dim=16)
        lake.add_splats(_random(size, 16))
        took = [_timed(lambda row=row: lake.remove([row])) for row in range(0, 3000, 10)]  # type: ignore[misc]
    early, late = median(took[1:11]), median(took[-10:])
    return [
        _row("single-row removals: first", size, took[0], "ms"),
        _row("the same: 2nd to 11th", size, early, "ms"),
        _row("the same: around the 300th", size, late, "ms"),
        _row("the same: the 300th against the first", size, late / early, "×", 2),
    ]


def first_batches(folder: Path, share: int) -> list[Row]:
    """A lake of 4 blocks gets two more: the first batch, and the memory of a loader."""
    count, took, grown = 40_000 // share, {}, {}
    x = _random(count)
    for blocks in (4, 6):
        with mldb.open(folder / "store", durability="os") as db:
            lake = db.lake(dim=DIM)
            while len(lake) < blocks * count:
                lake.add_splats(x)
        times = []
        for _ in range(5):
            with mldb.open(folder / "store", mode="r") as db:
                lake = db.lake()
                gc.collect()
                before = _anonymous_bytes()
                loader = lake.export_to_dataloader(256)
                batches: list[Any] = []
                times.append(_timed(lambda b=batches, it=loader: b.append(iter(it))))  # type: ignore[misc]
                times[-1] += _timed(lambda b=batches: next(b[0]))  # type: ignore[misc]
                for _ in range(40):
                    next(batches[0])
                grown[blocks] = max(_anonymous_bytes() - before, 0) / MIB
                del loader, batches
        took[blocks] = median(times)
    size = 6 * count
    return [
        _row("first shuffled batch, 4 blocks", 4 * count, took[4], "ms"),
        _row("the same, 6 blocks", size, took[6], "ms"),
        _row("the same, 6 blocks against 4", size, took[6] / took[4], "×", 1.5),
        _row("memory of a loader, 6 blocks", size, grown[6], "MiB", 16),
    ]


def identical_rows(folder: Path, share: int) -> list[Row]:
    """Many identical rows: the graph costs what it does without."""
    size = 8000 // share
    plain = _random(size)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    same = plain.copy()
    same[np.random.default_rng(2).permutation(size)[: 3 * size // 8]] = plain[1]
    times: dict[str, list[float]] = {"plain": [], "same": []}
    for _ in range(3):
        times["plain"].append(_timed(lambda: build_graph(plain, 30)))
        times["same"].append(_timed(lambda: build_graph(same, 30)))
    least = {name: min(took) for name, took in times.items()}
    return [
        _row("graph of distinct rows", size, least["plain"], "ms"),
        _row("the same, 3 of 8 identical", size, least["same"], "ms"),
        _row("identical against distinct", size, least["same"] / least["plain"], "×", 1.5),
    ]


def augment_calls(folder: Path, share: int) -> list[Row]:
    """``lake.augment``: the second call finds the graph of the first, and only searches.

    The floor of a search is the product of the rows with the lake's. It is measured after the
    calls: the threads of BLAS spin for a while after a product, and take time from what follows.
    """
    size = 10_000 // share
    with mldb.open(folder / "store", durability="os") as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(_random(size), labels=np.arange(size) % 10)
        x = _random(32, seed=3)
        first = _timed(lambda: lake.augment(x, mode="walk", device="numpy"))
        then = [_timed(lambda: lake.augment(x, mode="walk", device="numpy")) for _ in range(15)]
        other, modes = {}, get_args(AugmentationMode)
        for number, mode in enumerate(modes, 1):
            lake.augment(x, mode=mode, device="numpy")
            calls = [
                partial(lake.augment, _random(32, seed=100 * number + part), mode=mode)
                for part in range(15)
            ]
            other[mode] = median(_timed(partial(call, device="numpy")) for call in calls)
        table = lake.rows().table()
        other["product"] = median(_timed(lambda: table @ x.T) for _ in range(15))
    return [
        _row("augment of 32 rows by walk: first call", size, first, "ms"),
        _row("the same: second call", size, median(then), "ms", 5),
        _row("the same: of other rows", size, other["walk"], "ms", 5),
        _row("the same: their product with the lake's alone", size, other["product"], "ms"),
        _row("augment of 32 other rows: isotropic", size, other["isotropic"], "ms"),
        _row("the same: langevin", size, other["langevin"], "ms"),
        *_searches(folder, 100_000 // share),
    ]


def _searches(folder: Path, size: int) -> list[Row]:
    """Where ``lake.augment`` of other rows starts, in a lake of many more rows and ten blocks."""
    with mldb.open(folder / "large", durability="os") as db:
        lake = db.lake(dim=DIM)
        for number in range(10):
            lake.add_splats(_random(size // 10, seed=number))
        rows = lake.rows()
        table = rows.table()
        queries = [_random(32, seed=number) for number in range(20, 29)]
        for x in queries:
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        search = [_timed(lambda x=x: starts_of(rows, x)) for x in queries]  # type: ignore[misc]
        product = [_timed(lambda x=x: table @ x.T) for x in queries]  # type: ignore[misc]
    return [
        _row("search of 32 rows for walks", size, median(search), "ms"),
        _row("the same: their product alone", size, median(product), "ms"),
    ]


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0
