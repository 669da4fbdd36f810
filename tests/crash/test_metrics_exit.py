"""Buffered metrics at the end of a process: stored, or the end tells it, or it was killed.

Each program runs as a user would run it, and is looked at when it is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mldb
from mldb.state.lost import EXIT_LOST

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import errno, os, signal, sys, threading, time
import mldb
from mldb.write import metric_log
from mldb.log.fs.posix import OsFileSystem
from tests.support.faults import FaultFileSystem
path = sys.argv[1]
"""


def program(path: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run *text* on the store at *path*, to its end."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + text, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def logged(path: Path) -> list[float]:
    with mldb.open(path, mode="r") as db:
        found: list[float] = db.metrics("loss").value.tolist()
        return found


QUIET = "metric_log.FLUSH_SECONDS = 3600\n"
LOG = """
db = mldb.open(path)
for step in range(3):
    db.log({"loss": step}, buffer=True)
"""


def test_what_waits_at_the_end_is_stored(tmp_path: Path) -> None:
    """The store was not closed, and the last points came from a thread and a handler of the end."""
    done = program(
        tmp_path / "s",
        QUIET
        + "import atexit\n"
        + 'atexit.register(lambda: db.log({"loss": 10}, buffer=True))\n'
        + LOG
        + 'late = threading.Thread(target=lambda: (time.sleep(0.2), db.log({"loss": 9}, '
        + "buffer=True)))\nlate.start()\n",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert logged(tmp_path / "s") == [0, 1, 2, 9, 10]


def test_what_waits_is_stored_when_an_error_ends_the_program(tmp_path: Path) -> None:
    done = program(tmp_path / "s", QUIET + LOG + "raise SystemExit(3)\n")
    assert done.returncode == 3
    assert logged(tmp_path / "s") == [0, 1, 2]


def test_what_cannot_be_stored_at_the_end_is_no_silent_success(tmp_path: Path) -> None:
    done = program(
        tmp_path / "s",
        QUIET
        + "os.makedirs(path)\nfs = FaultFileSystem(OsFileSystem(path))\n"
        + LOG.replace("mldb.open(path)", "mldb.MLDatabase.on(fs)")
        + 'fs.fail("pwritev", code=errno.ENOSPC, forever=True)\n',
    )
    assert done.returncode == EXIT_LOST
    assert "3 buffered calls of db.log were not stored in" in done.stderr
    assert "disk" in done.stderr


def test_a_killed_process_loses_what_it_logged_in_the_last_second(tmp_path: Path) -> None:
    done = program(
        tmp_path / "s",
        LOG
        + "deadline = time.monotonic() + 60\n"
        + "while db._metrics.waiting and time.monotonic() < deadline: time.sleep(0.01)\n"
        + QUIET
        + 'db.log({"loss": 3}, buffer=True)\nos.kill(os.getpid(), signal.SIGKILL)\n',
    )
    assert done.returncode == -signal.SIGKILL
    assert logged(tmp_path / "s") == [0, 1, 2]


@pytest.mark.parametrize("fn", ["lambda: None", "lambda: db.log({'loss': 8}, buffer=True)"])
def test_a_preempted_process_stores_what_waits(tmp_path: Path, fn: str) -> None:
    """The default action of SIGTERM ends it without any handler of the end."""
    done = program(
        tmp_path / "s",
        QUIET
        + LOG
        + f"db.save_on_signal(signal.SIGTERM, {fn})\n"
        + "os.kill(os.getpid(), signal.SIGTERM)\ndb.safe_point()\ntime.sleep(60)\n",
    )
    assert done.returncode == -signal.SIGTERM
    assert logged(tmp_path / "s") == [0, 1, 2, *([8] if "8" in fn else [])]


def test_a_forked_child_that_ends_stores_nothing_twice(tmp_path: Path) -> None:
    done = program(
        tmp_path / "s",
        QUIET + LOG + "if os.fork() == 0:\n    sys.exit(0)\nos.wait()\n",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert logged(tmp_path / "s") == [0, 1, 2]


TRAINING = """
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self): return 24
    def __getitem__(self, place):
        try:
            db.log({"loss": -1}, buffer=True)
        except mldb.ClosedError:
            return torch.tensor(float(place))
        return torch.tensor(-1.0)

def train(stop=None):
    for epoch in range(2):
        loader = DataLoader(Numbers(), 4, num_workers=2, multiprocessing_context="fork")
        for step, batch in enumerate(loader):
            db.log({"loss": batch.mean(), "epoch": epoch}, epoch=epoch, step=step, buffer=True)
            if stop == (epoch, step):
                os.kill(os.getpid(), signal.SIGINT)
        db.checkpoint({"w": torch.full((3,), float(epoch))}, epoch=epoch, wait=False)

db = mldb.open(path)
"""
LOSSES = [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]


@pytest.mark.slow
def test_a_training_run_with_forked_workers_stores_each_point_once(tmp_path: Path) -> None:
    """The workers hold a copy of the handle, log nothing, and end before the run does."""
    done = program(tmp_path / "s", TRAINING + "train()\n")
    assert (done.returncode, done.stderr) == (0, "")
    with mldb.open(tmp_path / "s", mode="r") as db:
        curve = db.metrics("loss")
        assert curve.value.tolist() == LOSSES * 2
        assert curve.step.tolist() == [*range(6)] * 2
        assert curve.epoch.tolist() == [0] * 6 + [1] * 6
        assert [item.epoch for item in db.checkpoints()] == [0, 1]
        assert db.verify().ok


@pytest.mark.slow
def test_ctrl_c_in_a_training_run_keeps_what_was_logged_until_then(tmp_path: Path) -> None:
    done = program(tmp_path / "s", TRAINING + "train(stop=(1, 3))\n")
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    with mldb.open(tmp_path / "s", mode="r") as db:
        assert db.metrics("loss").value.tolist() == [*LOSSES, *LOSSES[:4]]
        assert [item.epoch for item in db.checkpoints()] == [0]
