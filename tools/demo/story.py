"""What the demo does, step by step; each step checks what it claims and is timed."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mldb.database import MLDatabase
from mldb.tools.demo.orders import Order, Settings
from mldb.tools.demo.run import (
    Attempt,
    DemoError,
    Kill,
    Worker,
    differences,
    store_digits,
    train_with_kills,
)

WEIGHT = "model/0.weight"  # of the first layer
_MODEL = "model/"
_RATE_FACTOR = 0.2  # of the learning rate, after the rewind


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    step: str
    text: str
    seconds: float


class Story:
    """One run of the demo in an empty folder. For one thread; the steps are called in order."""

    def __init__(self, folder: Path, *, epochs: int, kills: int, seed: int) -> None:
        self.rows: list[Row] = []
        self.figures: dict[str, Any] = {"epochs": epochs, "kills": kills, "seed": seed}
        self._settings = Settings(epochs=epochs, seed=seed)
        self._epochs = epochs
        self._middle = (epochs + 1) // 2
        self._kills = kills
        self._seed = seed
        self._reference = str(folder / "uninterrupted")
        self._path = str(folder / "run")
        self._backup = str(folder / "backup")
        self._recorded = Attempt()

    def tell(self) -> None:
        """Do everything. Raises DemoError when something that mldb promises does not hold."""
        with Worker() as worker:
            self.record(worker)
            self.interrupt(worker)
            with MLDatabase(self._path) as db:
                self.compare(db)
                self.travel(db)
                self.choose(db)
            self.rewind(worker)
        with MLDatabase(self._path) as db:
            self.check(db)

    @contextmanager
    def _timed(self, step: str) -> Iterator[list[str]]:
        """Time a step; what the block puts into the list is its text."""
        start = time.perf_counter()
        parts: list[str] = []
        yield parts
        self.rows.append(Row(step, "; ".join(parts), time.perf_counter() - start))

    def record(self, worker: Worker) -> None:
        """Train without interruption, every epoch recorded."""
        with self._timed("data") as text:
            count = store_digits(self._reference)
            store_digits(self._path)
            text.append(f"{count:,} images of 8 x 8 digits stored in two stores")
        with self._timed("record") as text:
            run = worker.carry_out(self._order(self._reference))
            saves = run.saves.values()
            waited = statistics.median(item.stall_ms for item in saves if not item.behind)
            behind = statistics.median(item.stall_ms for item in saves if item.behind)
            size = statistics.median(item.bytes for item in saves)
            text.append(
                f"{self._epochs} epochs of training in {len(saves)} checkpoints of "
                f"{size / 1e3:,.0f} kB: model, optimizer, scheduler, RNGs, loader"
            )
            text.append(f"a durable save took {waited:.1f} ms, one behind stalled {behind:.1f} ms")
            text.append(f"accuracy {run.accuracy:.1%}")
        self._recorded = run
        self.figures |= {
            "checkpoints": len(saves),
            "checkpoint_bytes": size,
            "save_ms": waited,
            "stall_ms": behind,
            "accuracy": run.accuracy,
        }

    def interrupt(self, worker: Worker) -> None:
        """Train the same again, killed in the middle of saves, resumed each time."""
        start = time.perf_counter()
        kills = train_with_kills(
            worker, self._order(self._path), self._recorded, self._kills, self._seed
        )
        took = time.perf_counter() - start
        if len(kills) < self._kills:
            raise DemoError(f"only {len(kills)} of {self._kills} kills hit a save")
        for number, kill in enumerate(kills, 1):
            ready = kill.after.ready
            seconds = (ready["open_ms"] + ready["resume_ms"]) / 1e3
            self.rows.append(Row(f"kill {number}", _describe(kill), seconds))
        text = f"the same training, killed {self._kills} times and resumed, to its end"
        self.rows.append(Row("interrupted", text, took))
        self.figures["interruptions"] = [
            {
                "step": kill.step,
                "byte": kill.byte,
                "size": kill.size,
                "resumed_step": kill.after.ready["step"],
                "open_ms": kill.after.ready["open_ms"],
                "recovery": kill.after.ready["recovery"],
            }
            for kill in kills
        ]

    def compare(self, db: MLDatabase) -> None:
        """Compare the last stored state with that of the uninterrupted run, by the digests."""
        with self._timed("compare") as text, MLDatabase(self._reference, mode="r") as reference:
            if not db.recovery.clean:
                raise DemoError("the store was closed and still needed a repair")
            names = list(reference)
            changed = [name for name in names if _digest(db, name) != _digest(reference, name)]
            if changed or list(db) != names:
                raise DemoError(f"tensors differ from the uninterrupted run: {changed[:5]}")
            text.append(
                f"bit-equal to the uninterrupted run: {len(names)} tensors, every state saved or "
                f"resumed, {len(self._recorded.curve or [])} losses"
            )
            self.figures["compared_tensors"] = len(names)

    def travel(self, db: MLDatabase) -> None:
        """Read a tensor as of several epochs, and compare two epochs."""
        epochs = sorted({1, self._middle, self._epochs})
        with self._timed("time travel") as text:
            norms = [float(np.linalg.norm(db.query_tensor(WEIGHT, as_of=e))) for e in epochs]
            listed = ", ".join(f"{norm:.3f}" for norm in norms)
            text.append(f"norm of {WEIGHT} as of epochs {', '.join(map(str, epochs))}: {listed}")
        with self._timed("diff") as text:
            sizes = _diff(db, self._middle, self._epochs)
            name = max(sizes, key=lambda item: sizes[item])
            changed = sum(size > 0 for size in sizes.values())
            text.append(
                f"epoch {self._middle} to {self._epochs}: {changed} of {len(sizes)} tensors of the "
                f"model changed, {name} the most, by up to {sizes[name]:.3g}"
            )
        self.figures |= {"norms": dict(zip(map(str, epochs), norms, strict=True)), "diff": sizes}

    def choose(self, db: MLDatabase) -> None:
        """Tag the best epoch, list history and events."""
        with self._timed("tag") as text:
            finished = [item for item in db.checkpoints() if "accuracy" in item.metrics]
            best = max(finished, key=lambda item: float(item.metrics["accuracy"]))
            db.tag("best", best.lsn)
            db.tag("first-run")
            text.append(
                f'"best" is epoch {db.at("best").epoch}, accuracy {best.metrics["accuracy"]:.1%}; '
                '"first-run" is the head'
            )
        with self._timed("history") as text:
            versions = db.history(WEIGHT)
            kinds = Counter(type(event).__name__ for event in db.events())
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            text.append(f"{len(versions)} versions of {WEIGHT}; events: {listed}")
        self.figures |= {"best_epoch": best.epoch, "versions": len(versions), "events": dict(kinds)}

    def rewind(self, worker: Worker) -> None:
        """Go back to the middle epoch and train on from there in another way."""
        with self._timed("rewind") as text:
            order = self._order(self._path, rewind=self._middle, rate_factor=_RATE_FACTOR)
            run = worker.carry_out(order)
            back = Attempt(ready=run.ready)
            problems = differences(back, self._recorded)
            if problems:
                raise DemoError(f"after the rewind {'; '.join(problems)}")
            text.append(
                f"back to epoch {self._middle} bit for bit, on to {self._epochs} with "
                f"{_RATE_FACTOR} of the learning rate: accuracy {run.accuracy:.1%}"
            )
        self.figures["accuracy_after_rewind"] = run.accuracy

    def check(self, db: MLDatabase) -> None:
        """Read what the rewind left behind, verify every byte, and back the store up."""
        with self._timed("left behind") as text, MLDatabase(self._reference, mode="r") as reference:
            old = db.query_tensor(WEIGHT, as_of="first-run")
            if not np.array_equal(old, reference[WEIGHT]) or np.array_equal(old, db[WEIGHT]):
                raise DemoError("the first run is not what it was")
            text.append('the first run is still read as of "first-run", unchanged')
        with self._timed("verify") as text:
            report = db.verify()
            if not report.ok:
                raise DemoError(f"damaged: {report.problems[:3]}")
            text.append(
                f"{report.bytes:,} bytes in {report.segments} segments, {report.commits} commits: "
                "no problem"
            )
        with self._timed("backup") as text:
            db.backup(self._backup)
            with MLDatabase(self._backup, mode="r") as copy:
                if not copy.verify().ok or (copy.lsn, copy.tags()) != (db.lsn, db.tags()):
                    raise DemoError("the backup is not the store")
                text.append(f"a store of its own, verified, at the same commit {int(copy.lsn)}")
        self.figures["verify"] = {key: value for key, value in asdict(report).items() if value}

    def _order(self, path: str, **options: Any) -> Order:
        return Order(path=path, until=self._epochs, settings=self._settings, **options)


def _describe(kill: Kill) -> str:
    ready = kill.after.ready
    recovery = ready["recovery"]
    dropped = (
        "the save was whole"
        if recovery["clean"]
        else f"{recovery['dropped_bytes']:,} bytes of it moved to lost+found"
    )
    return (
        f"SIGKILL at byte {kill.byte:,} of {kill.size:,} of the save at step {kill.step}; "
        f"reopened in {ready['open_ms']:.0f} ms, {dropped}; resumed at step {ready['step']}, "
        f"epoch {ready['epoch']}, bit-equal, in {ready['resume_ms']:.0f} ms"
    )


def _digest(db: MLDatabase, name: str) -> str:
    return db.history(name)[-1].digest


def _diff(db: MLDatabase, first: int, second: int) -> dict[str, float]:
    """Return the largest change of every float tensor of the model between two epochs."""
    with db.at(first) as old, db.at(second) as new:
        return {
            name: float(np.max(np.abs(new[name] - old[name])))
            for name in new.names(_MODEL)
            if new.tensor(name).dtype.kind == "f"
        }
