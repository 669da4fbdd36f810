"""The parent's side of the demo: orders trainings, kills them, and compares what they report."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mldb.closing import Closing
from mldb.database import MLDatabase
from mldb.tools.demo.orders import IMAGES, LABELS, Order

# One thread each: the sums of a run must come in one order, and two processes share the machine.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class DemoError(Exception):
    """The demo found something that mldb promises not to happen, or could not run."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One finished save: bytes written for it and how long the training waited."""

    bytes: int
    stall_ms: float
    behind: bool


@dataclass(slots=True)
class Attempt:
    """What one training process reported until its end.

    ``hashes`` are of the states before the save at each step, ``status`` is the exit status
    (negative: the signal).
    """

    ready: dict[str, Any] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    saves: dict[int, Saved] = field(default_factory=dict)
    curve: list[float] | None = None
    accuracy: float = 0.0
    status: int = 0

    def take(self, message: dict[str, Any]) -> None:
        """Note one message of the process."""
        kind = message.pop("event")
        if kind == "ready":
            self.ready = message
        elif kind == "state":
            self.hashes[message["step"]] = message["hash"]
        elif kind == "saved":
            step = message.pop("step")
            self.saves[step] = Saved(**message)
        elif kind == "done":
            self.curve, self.accuracy = message["curve"], message["accuracy"]
        else:
            self.status = message["status"]


@dataclass(frozen=True, slots=True)
class Kill:
    """One training killed: in the save at ``step``, after ``byte`` bytes of about ``size``."""

    step: int
    byte: int
    size: int
    after: Attempt
    """The process that resumed."""


class Worker(Closing):
    """The process that forks trainings. A context manager for one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mldb.tools.demo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ONE_THREAD},
        )

    def carry_out(self, order: Order) -> Attempt:
        """Run one training to its end. Raises DemoError when it fails by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        attempt = Attempt()
        for line in self._process.stdout:
            message = json.loads(line)
            ended = message["event"] == "end"
            attempt.take(message)
            if ended:
                break
        else:
            raise DemoError("the worker process ended; its message stands above")
        if attempt.status not in (0, -signal.SIGKILL):
            raise DemoError(f"the training ended with status {attempt.status}; see above")
        return attempt

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def store_digits(path: str) -> int:
    """Make a store that holds scikit-learn's digits; return their count. Raises DemoError."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DemoError(
            "the demo needs scikit-learn for its data: pip install scikit-learn"
        ) from error
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    with MLDatabase(path) as db, db.transaction(epoch=0) as txn:
        txn.store_tensor(IMAGES, images, {"source": "scikit-learn digits", "pixels": "8 x 8"})
        txn.store_tensor(LABELS, digits.target.astype(np.int64))
        txn.create_relationship(LABELS, IMAGES, "labels")
    return len(images)


def differences(attempt: Attempt, reference: Attempt) -> list[str]:
    """Say where *attempt* is not bit-equal to the run that was not interrupted."""
    found = [
        f"the state at step {step} differs"
        for step, value in attempt.hashes.items()
        if reference.hashes.get(step) != value
    ]
    ready = attempt.ready
    if ready.get("resumed") and reference.hashes.get(ready["step"]) != ready["hash"]:
        found.append(f"the state resumed at step {ready['step']} differs")
    if attempt.curve is not None and attempt.curve != reference.curve:
        found.append("the loss curve differs")
    return found


def train_with_kills(
    worker: Worker, order: Order, reference: Attempt, kills: int, seed: int
) -> list[Kill]:
    """Train as *order* says, killed *kills* times in the middle of a save; return the kills.

    Step and byte of each kill are drawn from *seed*, over all saves of *reference* and all their
    bytes. Raises DemoError when a resumed state is not bit-equal to the one of *reference*.
    """
    chance = random.Random(seed)
    steps = sorted(reference.saves)
    targets = sorted(chance.choices(steps, k=kills))
    done: list[tuple[int, int, int]] = []
    resumed: list[Attempt] = []
    for target in [*targets, None]:
        step = None if target is None else _next_save(order.path, steps, target)
        size = 0 if step is None else reference.saves[step].bytes
        byte = chance.randint(1, max(size, 1))
        attempt = worker.carry_out(
            Order(
                path=order.path,
                until=order.until,
                settings=order.settings,
                kill_step=step,
                kill_byte=byte,
            )
        )
        problems = differences(attempt, reference)
        if problems:
            raise DemoError(f"{order.path}: {'; '.join(problems)}")
        resumed.append(attempt)
        if step is None or attempt.status == 0:
            break
        done.append((step, byte, size))
    return [Kill(*kill, after) for kill, after in zip(done, resumed[1:], strict=True)]


def _next_save(path: str, steps: list[int], target: int) -> int | None:
    """Return *target*, or the first save after the newest checkpoint when that is later."""
    with MLDatabase(path, mode="r") as db:
        taken = [item.step or 0 for item in db.checkpoints()]
    return next((step for step in steps if step >= target and step > max(taken, default=0)), None)
