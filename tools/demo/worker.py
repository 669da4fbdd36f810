"""The training process of the demo, made to be killed.

``python -m mldb.tools.demo.worker`` loads torch once and then forks a child for every order that
comes as a line of JSON on standard input. The child reports lines of JSON on standard output, the
last one about its end; so a killed training costs a fork and not another import of torch.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mldb.database import MLDatabase
from mldb.state.checkpointing import PendingCheckpoint
from mldb.tools.demo.disk import MeteredFileSystem
from mldb.tools.demo.orders import Order, Settings
from mldb.tools.demo.train import Training, fingerprint

Report = Callable[[dict[str, Any]], None]


class _Saver:
    """Saves a training, and reports every state before its save and what the save took after it."""

    def __init__(
        self, db: MLDatabase, disk: MeteredFileSystem, order: Order, report: Report
    ) -> None:
        self._db = db
        self._disk = disk
        self._order = order
        self._report = report
        self._pending: PendingCheckpoint | None = None
        self._step = 0
        self._start = 0

    def save(self, training: Training, epoch: int, finished: bool) -> None:
        """Take a checkpoint: at the end of an epoch durable at once, in between written behind."""
        self.settle()
        state = training.state()
        self._report({"event": "state", "step": training.step, "hash": fingerprint(state)})
        self._step, self._start = training.step, self._disk.written
        if training.step == self._order.kill_step:
            self._disk.die_after(self._order.kill_byte)
        if not finished:
            self._pending = self._db.checkpoint(state, epoch=epoch, step=training.step, wait=False)
            return
        metrics = {"loss": training.curve[-1], "accuracy": training.accuracy}
        done = self._db.checkpoint(state, epoch=epoch, step=training.step, metrics=metrics)
        self._saved(done.stall_ms, behind=False)

    def settle(self) -> None:
        """Wait for the checkpoint that is on its way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._saved(pending.result().stall_ms, behind=True)

    def _saved(self, stall_ms: float, *, behind: bool) -> None:
        count = self._disk.written - self._start
        self._report(
            {
                "event": "saved",
                "step": self._step,
                "bytes": count,
                "stall_ms": stall_ms,
                "behind": behind,
            }
        )


def carry_out(order: Order, report: Report) -> None:
    """Do what *order* says and report it; does not return when the order is to die."""
    start = time.perf_counter()
    disk = MeteredFileSystem(order.path)
    with MLDatabase.on(disk) as db:
        opened = time.perf_counter()
        training = Training(db, order.settings)
        if order.rewind is not None:
            db.rewind(order.rewind)
        resumed = bool(db.checkpoints())
        if resumed:
            training.resume(db)
        done = time.perf_counter()
        report(
            {
                "event": "ready",
                "resumed": resumed,
                "step": training.step,
                "epoch": training.epoch,
                "hash": fingerprint(training.state()),
                "recovery": asdict(db.recovery),
                "open_ms": (opened - start) * 1e3,
                "resume_ms": (done - opened) * 1e3,
            }
        )
        if resumed:
            # The first commit repairs what the kill left; so the saves write their own bytes only.
            db.tag("resumed")
        training.scale_learning_rate(order.rate_factor)
        saver = _Saver(db, disk, order, report)
        training.run(order.until, saver.save)
        saver.settle()
        report({"event": "done", "curve": training.curve, "accuracy": training.accuracy})


def _tell(message: dict[str, Any]) -> None:
    # One call of the system, so that a line is whole or absent when the process dies.
    os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def _child(line: str) -> None:
    fields = json.loads(line)
    order = Order(**fields | {"settings": Settings(**fields["settings"])})
    carry_out(order, _tell)


def _warm_up() -> None:
    """Import what torch imports at first use, and start no thread: none would reach the child."""
    import torch

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    # What an opening dropped is part of the report, so it need not be logged as well.
    logging.getLogger("mldb").setLevel(logging.ERROR)


def serve() -> None:
    """Fork a child per line of standard input until it ends."""
    _warm_up()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _child(line)
                status = 0
            except Exception:  # noqa: BLE001 - the parent sees the status and the user this text
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        _tell({"event": "end", "status": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    serve()
