"""S10: the first pass of a process, the rows in the page cache. S11: the same, read from the disk.

A process is started for every contender and round. Beside the clock stands the processor time of
all its threads: where others compute on the same cores, the clock measures them as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.children import Task
from tests.bench.peer_mldb import MLDB
from tests.bench.report import Outcome, Table
from tests.bench.timing import Samples, interleave
from tests.bench_lake import page_cache
from tests.bench_lake.child import Child
from tests.bench_lake.setting import Setting
from tests.bench_lake.worker import Worker, make_worker

TORCH, OWN = "torch DataLoader", "torch DataLoader, own sampler"
MAPPED, READ = "limit: bare mapped copy", "limit: read into a reused buffer"
GATHER = "limit: bare mapped gather"
DISK, DIRECT = "limit: disk, sequential read", "limit: disk, direct sequential read"

_SHOWN = {
    "sequential": "in order",
    "shuffled": "full shuffle",
    "windowed": "windows of {rows} rows shuffled",
}


@dataclass(slots=True)
class _Passes:
    """The first passes of fresh processes.

    *prepare* sets the page cache before each, and returns what it could not do.
    """

    setting: Setting
    prepare: Callable[[Path], str]
    processor: Samples = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)

    def measure(self, label: str, tasks: dict[str, Task]) -> Samples:
        """Rows per second by the clock; keeps those by processor time. Raises RuntimeError."""
        contenders = {name: self._contender(name, task) for name, task in tasks.items()}
        found = interleave(label, contenders, self.setting.scale.rounds)
        # The first sample belongs to the untimed round.
        self.processor = {name: self.processor[name][1:] for name in found}
        return found

    def _contender(self, name: str, task: Task) -> Callable[[], float]:
        def run() -> float:
            worker = _open(self.setting, task)
            try:
                stayed = self.prepare(Path(self.setting.data.folder))
                result = worker.turn({})
                if name not in self._checked:
                    worker.turn({"check": True})
                    self._checked.add(name)
            finally:
                worker.close()
            if stayed:
                self.notes[name] = stayed
            self.processor.setdefault(name, []).append(float(result["cpu"]))
            return float(result["rate"])

        return run


def _open(setting: Setting, task: Task) -> Worker:
    return Child(task) if setting.processes else make_worker(task)


def _warm(folder: Path) -> str:
    page_cache.fill(folder)
    return ""


def _tables(
    setting: Setting, workload: str, kind: str, tasks: dict[str, Task], limits: list[str]
) -> Outcome:
    """Measure one kind of pass: a table by the clock and one by processor time, and all ratios."""
    is_cold = workload == "S11"
    passes = _Passes(setting, page_cache.drop if is_cold else _warm)
    found = passes.measure(f"{workload} {kind}", tasks)
    state = "cold page cache" if is_cold else "warm page cache"
    title = f"first pass, {_SHOWN[kind].format(rows=setting.scale.window)}, {state}"
    outcome = Outcome()
    for unit, samples in (("rows/s", found), ("rows/s of CPU", passes.processor)):
        table = Table(
            workload=workload, title=title, unit=unit, samples=samples, notes=passes.notes
        )
        limit = outcome.tables[0].limit if outcome.tables else table.best_of(limits)
        outcome.tables.append(replace(table, limit=limit))
    wall, processor = outcome.tables
    others = {"torch": TORCH, "own": OWN, "limit": wall.limit, "mapped": MAPPED}
    for short, name in others.items():
        _compare(outcome, f"{workload.lower()}.{kind} / {short}", wall, name)
        outcome.compare(f"{workload.lower()}.{kind} / {short}, CPU", processor, MLDB, name)
    return outcome


def _compare(outcome: Outcome, key: str, table: Table, name: str) -> None:
    """Record the ratio of the best samples ("quiet") and of the medians ("wall")."""
    outcome.compare(f"{key}, wall", table, MLDB, name)
    if name in table.samples:
        best = max(table.samples[MLDB]) / max(table.samples[name])
        outcome.measures[f"{key}, quiet"] = best


def first_pass(setting: Setting) -> Outcome:
    """S10: in order and shuffled, the pages of all files in memory."""
    outcome = Outcome()
    for kind in ("sequential", "shuffled"):

        def task(maker: str, kind: str = kind, **options: str) -> Task:
            return setting.task("first", maker=maker, kind=kind, **options)

        limit = MAPPED if kind == "sequential" else GATHER
        tasks = {
            limit: task("limit", how="mapped copy" if limit == MAPPED else "mapped gather"),
            MLDB: task("mldb"),
            TORCH: task("torch"),
            OWN: task("own"),
        }
        if kind == "sequential":
            tasks[READ] = task("limit", how="read")
        outcome.add(_tables(setting, "S10", kind, tasks, [limit]))
    return outcome


def from_disk(setting: Setting) -> Outcome:
    """S11: in order and in shuffled windows, the pages of all files dropped before."""
    outcome = Outcome()
    for kind in ("sequential", "windowed"):

        def task(maker: str, kind: str = kind, **options: object) -> Task:
            return setting.task("first", maker=maker, kind=kind, **options)

        tasks = {
            DISK: task("limit", how="disk"),
            DIRECT: task("limit", how="disk, direct"),
            MLDB: task("mldb", window=setting.scale.window),
        }
        if kind == "sequential":  # shuffled, they read a page for every row
            tasks[MAPPED] = task("limit", how="mapped copy")
            tasks[READ] = task("limit", how="read")
            tasks[TORCH] = task("torch")
            tasks[OWN] = task("own")
        outcome.add(_tables(setting, "S11", kind, tasks, [DISK, DIRECT]))
    return outcome
