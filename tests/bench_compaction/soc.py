"""Consolidation: planted duplicates, time against the search for neighbours, value on digits."""

from __future__ import annotations

import itertools
import runpy
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mldb
from mldb.arrays import Float32s, Numbers
from mldb.compaction.soc.rows import plain_rows
from mldb.compaction.soc.sweep import exact_search, sweep_rows
from mldb.sphere import vmf
from mldb.sphere.neighbours import Neighbours
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least, at_most
from tests.support.splats import planted

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lake_value.py"
KNN_TIMES = 3.0
SEEN, SEEN_AT_END, BATCH = 2016, 16_000, 32


def rows(quick: bool) -> list[Row]:
    """Measure all of it; *quick* at a tenth of the sizes, and two seeds."""
    found = list(duplicates(1 if quick else 3))
    found += scale(10_000 if quick else 100_000)
    return found + list(digits(2 if quick else 5))


# --- planted duplicates ---------------------------------------------------------------------------


def duplicates(seeds: int) -> Iterator[Row]:
    """1,000 originals with Zipf copies: how many splats are left, and how many are of one."""
    for seed in range(seeds):
        mu, of = planted(np.random.default_rng(seed))
        merges = sweep_rows(rows_of(mu), min_cos=0.97)
        groups = np.split(of[merges.sources], merges.starts[1:-1])
        pure = np.mean([len(set(group.tolist())) == 1 for group in groups])
        name = f"planted duplicates, seed {seed}"
        bounds, are_met = "1000 .. 1010", 1000 <= merges.kept <= 1010
        yield Row(f"{name}: splats of 1,000", merges.kept, "", bounds, met=are_met)
        yield at_least(f"{name}: of one original", float(pure), "share", 1, asked=True)


def rows_of(mu: Float32s, **columns: Any) -> Any:
    """Rows as a lake stores them when nothing is said of them."""
    return plain_rows(mu, kappa=float(vmf.concentration(0.9, mu.shape[1])), **columns)


# --- time -----------------------------------------------------------------------------------------


class Timed:
    """A search that notes how long each call took, and over how many rows."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, queries: Float32s, base: Float32s, k: int, exclude: Numbers) -> Neighbours:
        """Search as the default does."""
        started = time.perf_counter()
        found = exact_search(queries, base, k, exclude)
        self.seconds.append(time.perf_counter() - started)
        return found


def scale(count: int) -> list[Row]:
    """One batch over *count* rows of 640 dimensions, nine of ten near-copies of others."""
    rng = np.random.default_rng(0)
    mu, _ = planted(rng, count // 9, 640)
    mu = np.ascontiguousarray(mu[:count])
    search = Timed()
    started = time.perf_counter()
    merges = sweep_rows(rows_of(mu), min_cos=0.97, search=search)
    took = time.perf_counter() - started
    one, all_searches = search.seconds[0], sum(search.seconds)
    name = f"batch of {len(mu):,} x 640"
    over = f"{name}: time over that of"
    return [
        at_most(f"{over} one k-NN", took / one, "times", KNN_TIMES, asked=True),
        Row(f"{over} its searches", took / all_searches, "times"),
        Row(f"{name}: one k-NN of all rows", one, "s"),
        Row(f"{name}: all", took, "s"),
        Row(f"{name}: kept", merges.kept / len(mu), "share"),
    ]


# --- value on digits ------------------------------------------------------------------------------


class Scores(NamedTuple):
    """Accuracy in percent after SEEN rows and at the end."""

    early: float
    late: float


def digits(seeds: int) -> Iterator[Row]:
    """Redundant digits, a tenth kept: against all rows and against as many drawn at random."""
    scores = [digit_scores(seed) for seed in range(seeds)]
    full, soc, drawn = (np.array(list(line)) for line in zip(*scores, strict=True))
    for what, difference, least in (
        ("2,016 seen: SOC of 10 % less full uniform", soc[:, 0] - full[:, 0], 5.0),
        ("2,016 seen: SOC of 10 % less random 10 %", soc[:, 0] - drawn[:, 0], 5.0),
        ("at the end: SOC of 10 % less full uniform", soc[:, 1] - full[:, 1], -1.0),
    ):
        mean = float(difference.mean())
        error = float(difference.std(ddof=1) / len(difference) ** 0.5)
        figure = f"digits, {what} (± {error:.1f}, {seeds} seeds)"
        yield at_least(figure, mean, "points", least, asked=True)


def digit_scores(seed: int, *, to_end: bool = True) -> tuple[Scores, Scores, Scores]:
    """Train on all rows, on what consolidation keeps, and on as many drawn at random."""
    example = runpy.run_path(str(EXAMPLE))
    task = example["redundant_digits"](seed)
    with fresh_folder() as folder, mldb.open(folder / "store", durability="os") as db:
        lake = db.lake("copies", dim=task.train.x.shape[1])
        lake.add_splats(task.train.x, labels=task.train.y)
        full = trained(example, lake, task.test, seed, to_end)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mldb.PastCapWarning)
            report = lake.consolidate(target_keep=0.1, seed=seed)
        soc = trained(example, lake, task.test, seed, to_end)
        picked = np.random.default_rng(seed).choice(len(task.train.y), report.rows_after, False)
        other = db.lake("random", dim=task.train.x.shape[1])
        other.add_splats(task.train.x[picked], labels=task.train.y[picked])
        return full, soc, trained(example, other, task.test, seed, to_end)


def trained(example: dict[str, Any], lake: mldb.Lake, test: Any, seed: int, to_end: bool) -> Scores:
    """The two accuracies of a network trained on a lake, pass after pass; else the early one."""
    loader = lake.export_to_dataloader(BATCH, fields=example["FIELDS"], seed=seed)
    train: Callable[..., Any] = example["train"]
    found = []
    for seen in (SEEN, SEEN_AT_END if to_end else SEEN):
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        model = train(itertools.islice(batches, seen // BATCH), lake, seed, True)
        found.append(example["accuracy"](model, test))
    return Scores(*found)
