"""Compaction as it disturbs others: durable commits and train steps beside a worker; and its rate.

The worker is paused and resumed in turns, so that both sides of a ratio meet the same disk, the
same store and whatever else the machine does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mldb
from mldb.compaction.status import load_status
from mldb.log.fs.posix import OsFileSystem
from tests.bench.sections import fresh_folder
from tests.bench_compaction.row import Row, at_least, at_most

NOISE = np.float32(1e-3)
_MONTH_NS = 30 * 24 * 3600 * 10**9
_PATIENCE_SECONDS = 120
_OPTIONS: dict[str, Any] = {
    "background_compaction": True,
    "compaction_drops": True,
    "compaction_gain_bytes": 1,
    "compaction_gain_share": 0.01,
}


@dataclass(frozen=True)
class Amounts:
    """What is measured; ``asked``: the bounds are meant for these sizes."""

    epochs: int = 24
    tensors: int = 8
    tensor_bytes: int = 8 << 20
    rounds: int = 15
    commits: int = 120
    steps: int = 60
    asked: bool = True


FULL = Amounts()
QUICK = Amounts(8, 4, 1 << 20, 2, 40, 20, asked=False)


class Past(OsFileSystem):
    """A folder in which it was a month earlier, so that what is stored there is cold today."""

    def time_ns(self) -> int:
        """The wall clock of then."""
        return super().time_ns() - _MONTH_NS


def make_store(path: Path, amounts: Amounts, *, cold: bool) -> int:
    """Make a store with something to do for a compaction; return its bytes.

    *cold*: versions that change by noise, to be encoded. Otherwise one tensor in eight is dropped,
    and all else copied as it is.
    """
    rng = np.random.default_rng(16)
    folder = OsFileSystem.prepare_root(str(path), create=True)
    fs = Past(folder) if cold else OsFileSystem(folder)
    count = amounts.tensor_bytes // 4
    values = list(rng.standard_normal((amounts.tensors, count), dtype=np.float32))
    options = {"durability": "os", "deduplicate": False, "background_compaction": False}
    with mldb.MLDatabase.on(fs, **options) as db:
        if not cold:
            db.retention.set(last=1)
        for epoch in range(amounts.epochs):
            with db.transaction(epoch=epoch) as txn:
                for number, value in enumerate(values):
                    value *= 1 + NOISE * rng.standard_normal(1, dtype=np.float32)
                    if cold:
                        value += NOISE * value * rng.standard_normal(count, dtype=np.float32)
                    unique = "" if cold or not number else f".{epoch}"
                    txn.store_tensor(f"layer.{number}{unique}", value)
        db.sync()
        found: int = db.stats()["bytes"]
        return found


# --- beside a worker ------------------------------------------------------------------------------


class Beside:
    """A store that is open here, with a worker that is switched on and off."""

    def __init__(self, path: Path) -> None:
        self.db = mldb.open(path, **_OPTIONS)
        self._fs = OsFileSystem(path)
        self._pid = 0
        self.written = 0

    def begin(self) -> None:
        """Start the worker; it is paused when this returns."""
        self.db.pause_compaction()
        self.db._compaction.look()
        self._until("paused")

    def switch(self, *, on: bool) -> bool:
        """Let the worker go on, or pause it; whether it is there still."""
        (self.db.resume_compaction if on else self.db.pause_compaction)()
        there = self._until("working" if on else "paused")
        os.sync()  # what it wrote is not to be paid for by the other side
        return there

    def used(self) -> float:
        """The seconds of a core that the worker has used so far."""
        with open(f"/proc/{self._pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _until(self, state: str) -> bool:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = self.db.stats()["compaction"]
            if not found["running"]:
                print(f"the worker ended: {found['last_error'] or 'done'}", file=sys.stderr)
                return False
            status = load_status(self._fs)
            if status is not None and (status.pid, status.state) == (found["pid"], state):
                self.written, self._pid = status.done, status.pid
                return True
            time.sleep(0.02)
        raise TimeoutError(f"the worker was not {state} in time")


@dataclass
class Spent:
    """Seconds of each act beside the worker and beside a paused one, and what that one did.

    ``ratio`` is the median over the rounds of the one mean by the other: what else the machine does
    changes more slowly than rounds do.
    """

    beside: list[float]
    alone: list[float]
    ratio: float
    core_share: float
    written_rate: float


def in_turns(path: Path, amounts: Amounts, act: Callable[[Beside], list[float]]) -> Spent:
    """Act beside the worker and beside a paused one, in turns."""
    beside = Beside(path)
    spent: dict[bool, list[float]] = {True: [], False: []}
    lasted = used = 0.0
    ratios: list[float] = []
    with beside.db:
        act(beside)  # warm
        beside.begin()
        before = beside.written
        for number in range(amounts.rounds):
            means: dict[bool, float] = {}
            for on in (True, False) if number % 2 else (False, True):
                if not beside.switch(on=on):
                    break
                started, began = time.perf_counter(), beside.used()
                found = act(beside)
                lasted += on * (time.perf_counter() - started)
                used += on * (beside.used() - began)
                means[on] = sum(found) / len(found)
                spent[on] += found
            if len(means) == 2:
                ratios.append(means[True] / means[False])
        lasted = lasted or 1.0
        written = (beside.written - before) / lasted / 1e6
        middle = float(np.median(ratios)) if ratios else float("nan")
        return Spent(spent[True], spent[False], middle, used / lasted, written)


def commits(amounts: Amounts) -> Callable[[Beside], list[float]]:
    """Durable commits of 4 KiB."""
    rng = np.random.default_rng(17)

    def act(beside: Beside) -> list[float]:
        spent = []
        for value in rng.standard_normal((amounts.commits, 1024), dtype=np.float32):
            started = time.perf_counter()
            beside.db.store_tensor("small", value)
            spent.append(time.perf_counter() - started)
        return spent

    return act


def train_steps(amounts: Amounts) -> Callable[[Beside], list[float]]:
    """Steps of a small MLP on one thread."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = (torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 64))
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(64, 512)

    def act(beside: Beside) -> list[float]:
        spent = []
        for _ in range(amounts.steps):
            started = time.perf_counter()
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            spent.append(time.perf_counter() - started)
        return spent

    return act


def disturbance(amounts: Amounts) -> list[Row]:
    """What a worker that copies, and one that encodes, costs who commits and who trains."""
    found = []
    for what, cold in (("copies", False), ("encodes", True)):
        for figure, act, is_tail in (
            ("durable commit of 4 KiB", commits(amounts), True),
            ("train step", train_steps(amounts), False),
        ):
            with fresh_folder() as root:
                make_store(root / "store", amounts, cold=cold)
                spent = in_turns(root / "store", amounts, act)
            if spent.beside and spent.alone:
                found += _ratios(f"{figure} while a worker {what}", spent, is_tail, amounts)
    return found


def _ratios(name: str, spent: Spent, is_tail: bool, amounts: Amounts) -> list[Row]:
    both = spent.beside, spent.alone
    middle, tail = (
        [float(np.percentile(side, share)) * 1e3 for side in both] for share in (50, 99)
    )
    unit, asked = "x of without", amounts.asked
    if is_tail:
        figure = f"{name}: p99, {tail[0]:.2f} ms beside it, {tail[1]:.2f} without"
        first = at_most(figure, _over(tail), unit, 3.0, 1.5, asked=asked)
    else:
        mean = [float(np.mean(side)) * 1e3 for side in both]
        figure = f"{name}: mean, {mean[0]:.2f} ms beside it, {mean[1]:.2f} without, by rounds"
        first = at_most(figure, spent.ratio, unit, 1.1, asked=asked)
    count = len(spent.beside)
    return [
        first,
        Row(f"  p50: {middle[0]:.2f} ms beside it, {middle[1]:.2f} without", _over(middle), "x"),
        Row(f"  what it used meanwhile, {count} samples each", spent.core_share, "of a core"),
        Row("  what it wrote meanwhile", spent.written_rate, "MB/s"),
    ]


def _over(pair: list[float]) -> float:
    return pair[0] / pair[1]


# --- one core -------------------------------------------------------------------------------------


@contextmanager
def one_core() -> Iterator[None]:
    """Bind this thread, and those it starts, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rates(amounts: Amounts) -> list[Row]:
    """How much a compaction copies and encodes in a second, checks and syncs included."""
    found = []
    for cold, figure, must in ((False, "copied", 400.0), (True, "re-encoded", 60.0)):
        with fresh_folder() as root:
            size = make_store(root / "store", amounts, cold=cold)
            with mldb.open(root / "store", background_compaction=False) as db, one_core():
                os.sync()
                began, used = time.perf_counter(), time.process_time()
                report = db.compact(cold="all" if cold else "none")
                seconds, used = time.perf_counter() - began, time.process_time() - used
        done = (report.recoded_bytes if cold else report.bytes_read) / 1e6
        what = f"compaction, one core: {figure}, of {size / 1e6:,.0f} MB"
        found.append(at_least(what, done / seconds, "MB/s of input", must, asked=amounts.asked))
        left = report.bytes_after / report.bytes_before
        found.append(
            Row(f"  by the time of the core alone; {left:.2f} x left", done / used, "MB/s")
        )
    return found


def rows(quick: bool) -> list[Row]:
    """All figures of the section."""
    amounts = QUICK if quick else FULL
    return [*rates(amounts), *disturbance(amounts)]
