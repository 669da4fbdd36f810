"""S7: exact resume. S8: the first batch of a new loader. Cold is the first loader of a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.children import Result, Task
from tests.bench.peer_mldb import MLDB
from tests.bench.report import Outcome, Table
from tests.bench.timing import Samples, interleave, median
from tests.bench_lake.child import Child
from tests.bench_lake.setting import Setting
from tests.bench_lake.worker import Worker, make_worker

_WARM_TURNS = 5
_OWN = "torch DataLoader, own sampler"
_PEERS = (
    ("mldb", MLDB),
    ("torch", "torch DataLoader"),
    ("own", _OWN),
    ("stateful", "torchdata stateful"),
)


@dataclass(slots=True)
class _Starts:
    """Fresh processes that start loaders, one cold and a few warm; all samples in milliseconds."""

    setting: Setting
    warm: dict[str, list[float]] = field(default_factory=dict)

    def contender(
        self, name: str, task: Task, message: Task, check: Callable[[Result], None]
    ) -> Callable[[], float]:
        """Return what starts a process and gives its cold figure; keeps the warm one."""

        def run() -> float:
            worker = _open(self.setting, task)
            try:
                results = [worker.turn(message) for _ in range(1 + _WARM_TURNS)]
            finally:
                worker.close()
            for result in results:
                check(result)
            cold, *warm = (float(result["milliseconds"]) for result in results)
            self.warm.setdefault(name, []).append(median(warm))
            return cold

        return run

    def tables(self, workload: str, title: str, cold: Samples, notes: dict[str, str]) -> Outcome:
        """Return the tables of cold and of warm starts."""
        # The first warm sample belongs to the untimed round.
        warm = {name: self.warm[name][1:] for name in cold}
        outcome = Outcome()
        for kind, samples in (("first loader of a process", cold), ("further loaders", warm)):
            outcome.tables.append(
                Table(
                    workload=workload,
                    title=f"{title}, {kind}",
                    unit="ms",
                    samples=samples,
                    higher_is_better=False,
                    notes=notes,
                )
            )
        return outcome


def _open(setting: Setting, task: Task) -> Worker:
    return Child(task) if setting.processes else make_worker(task)


def resume(setting: Setting) -> Outcome:
    """S7: state_dict after some batches, a new loader, load_state_dict, the next batch."""
    starts, contenders, notes = _Starts(setting), {}, {}
    equal: dict[str, bool] = {}
    for name, options in _RESUMED.items():
        task = setting.task("start", maker="mldb", **options)
        worker = _open(setting, task)
        try:
            before = worker.turn({"done": min(setting.scale.done, _batches(setting) // 2)})
        finally:
            worker.close()

        def check(result: Result, name: str = name, wanted: Any = before["digests"]) -> None:
            equal[name] = equal.get(name, True) and result["digests"] == wanted

        contenders[name] = starts.contender(name, task, {"state": before["state"]}, check)
    cold = interleave("S7", contenders, setting.scale.starts)
    for name, same in equal.items():
        notes[name] = "the same bytes" if same else "OTHER BYTES"
    outcome = starts.tables("S7", "resume to the next batch", cold, notes)
    outcome.measures["s7.exact"] = sum(equal.values()) / len(equal)
    for name in _RESUMED:
        outcome.keep(f"s7.{name}", outcome.tables[1], name)
    return outcome


_RESUMED = {
    "sequential": {"kind": "sequential"},
    "shuffled": {"kind": "shuffled"},
    "weighted": {"kind": "weighted"},
    "augmented": {"kind": "augmented"},
    "augmented, torch": {"kind": "augmented", "device": "torch"},
}


def _batches(setting: Setting) -> int:
    return -(-setting.scale.rows // setting.scale.batch)


def first(setting: Setting) -> Outcome:
    """S8: a new loader over an open store, to its first batch."""
    outcome = Outcome()
    for kind in ("sequential", "shuffled"):
        starts = _Starts(setting)
        contenders = {
            name: starts.contender(
                name, setting.task("start", maker=maker, kind=kind), {}, lambda _: None
            )
            for maker, name in _PEERS
        }
        cold = interleave("S8", contenders, setting.scale.starts)
        part = starts.tables("S8", f"first batch, {kind}", cold, {})
        outcome.add(part)
        outcome.keep(f"s8.{kind}, cold", part.tables[0], MLDB)
        outcome.compare(f"s8.{kind}, cold / own", part.tables[0], MLDB, _OWN)
        outcome.keep(f"s8.{kind}, warm", part.tables[1], MLDB)
    return outcome
