"""The end of a process that still writes a checkpoint behind: it is stored, or the end tells it.

The story behind this file: ``checkpoint(wait=False)``, and the script ended, raised or got SIGTERM.
The checkpoint was gone, the exit status 0, and nobody had said a word.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.state.lost import EXIT_LOST

ROOT = Path(__file__).resolve().parents[2]
BIG = 40 << 20  # copied by two threads, and hashed by one of its own

PRELUDE = """
import atexit, errno, os, signal, sys, threading, time
import numpy as np
import mldb
from mldb.log.fs.posix import OsFileSystem
from tests.support.faults import FaultFileSystem

path = sys.argv[1]

class Slow(FaultFileSystem):
    '''Waits at the first write of the thread behind, for as long as it is told.'''
    seconds = 0.0
    def write(self, *arguments):
        if threading.current_thread().name == "mldb-checkpoints":
            seconds, self.seconds = self.seconds, 0.0
            started.set()
            time.sleep(seconds)
        return super().write(*arguments)

started = threading.Event()
fs = Slow(OsFileSystem(path))

def state(value, size=1000):
    return {"w": np.full(size, value, dtype=np.uint8)}
"""


@dataclass(frozen=True)
class End:
    """How a script ended."""

    status: int
    said: str
    seconds: float


def run(path: Path, script: str, *, interrupt_after: float | None = None) -> End:
    """Run *script* on a store in a process of its own, with Ctrl-C once it said "now"."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + script, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if interrupt_after is not None:
            assert process.stdout is not None
            assert process.stdout.readline() == "now\n"
            time.sleep(interrupt_after)
            process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler tells where everybody was
            raise AssertionError(process.communicate()[1]) from None
    return End(process.returncode, said, time.monotonic() - began)


def stored(path: Path) -> dict[str, int]:
    """The checkpoints of the store by name, each with the value of its state."""
    with mldb.open(path, mode="r") as db:
        assert db.verify().problems == ()
        found = {}
        for point in db.checkpoints():
            values = np.unique(db.load(None, as_of=point.name)["w"])
            assert len(values) == 1
            found[point.name] = int(values[0])
        return found


# --- it is stored ---------------------------------------------------------------------------------

ENDS = {
    "returns": ("", 0),
    "exits": ("sys.exit(3)", 3),
    "raises": ("raise RuntimeError('the end')", 1),
    "is interrupted": ("raise KeyboardInterrupt", -signal.SIGINT),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, BIG], ids=["small", "large"])
@pytest.mark.parametrize("end", ENDS)
def test_what_is_on_its_way_is_stored_however_the_script_ends(
    store_path: Path, end: str, size: int
) -> None:
    line, status = ENDS[end]
    result = run(
        store_path,
        f"""
db = mldb.MLDatabase.on(fs)
fs.seconds = 0.3
db.checkpoint(state(7, {size}), epoch=1, name="last", wait=False)
assert started.wait(30)
{line}
""",
    )
    assert result.status == status, result.said
    assert "mldb:" not in result.said
    assert stored(store_path) == {"last": 7}


def test_it_is_stored_when_the_end_comes_before_its_thread_began(store_path: Path) -> None:
    result = run(
        store_path,
        f"""
db = mldb.open(path, pending_checkpoints=3)
for number in range(3):
    db.checkpoint(state(number, {BIG}), epoch=number, wait=False)
""",
    )
    assert (result.status, result.said) == (0, "")
    assert stored(store_path) == {"epoch-0": 0, "epoch-1": 1, "epoch-2": 2}


def test_one_that_is_taken_at_the_end_is_written_by_who_takes_it(store_path: Path) -> None:
    result = run(
        store_path,
        f"""
db = mldb.open(path)
@atexit.register
def last():
    assert not threading.main_thread().is_alive()
    pending = db.checkpoint(state(3, {BIG}), epoch=1, name="at exit", wait=False)
    print(pending.done, threading.active_count(), file=sys.stderr)
""",
    )
    assert (result.status, result.said) == (0, "True 1\n")
    assert stored(store_path) == {"at exit": 3}


def test_threads_of_the_program_go_on_when_its_main_thread_is_over(store_path: Path) -> None:
    result = run(
        store_path,
        f"""
db = mldb.open(path, exit_timeout=0.2)
def train():
    threading.main_thread().join()
    for number in range(3):
        time.sleep(0.3)  # longer than exit_timeout: this is no end yet
        db.checkpoint(state(number, {BIG}), epoch=number, wait=False)
    db.close()
threading.Thread(target=train).start()
""",
    )
    assert (result.status, result.said) == (0, "")
    assert stored(store_path) == {"epoch-0": 0, "epoch-1": 1, "epoch-2": 2}


def test_a_thread_with_nothing_to_write_keeps_no_process_alive(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.open(path, exit_timeout=50)
db.checkpoint(state(1), epoch=1, wait=False).result(30)
deadline = time.monotonic() + 10
while threading.active_count() > 1:
    assert time.monotonic() < deadline, threading.enumerate()
    time.sleep(0.01)
""",
    )
    assert (result.status, result.said) == (0, "")


def test_ctrl_c_during_the_end_does_not_lose_it(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.MLDatabase.on(fs)
fs.seconds = 1.0
db.checkpoint(state(7), epoch=1, name="last", wait=False)
assert started.wait(30)
print("now", flush=True)
""",
        interrupt_after=0.3,
    )
    assert "KeyboardInterrupt" in result.said
    assert stored(store_path) == {"last": 7}


# --- it is lost, and told -------------------------------------------------------------------------

LOST_AT_THE_END = """
db = mldb.MLDatabase.on(fs)
db["first"] = 1
fs.seconds = 0.2
fs.fail("pwritev", code=errno.ENOSPC)
pending = db.checkpoint(state(7), epoch=4, name="last", wait=False)
assert started.wait(30)
"""


@pytest.mark.parametrize("end", ["", "while not pending.done: pass", "sys.exit(3)"])
def test_a_full_disk_at_the_end_is_no_success(store_path: Path, end: str) -> None:
    result = run(store_path, LOST_AT_THE_END + end)
    assert result.status == EXIT_LOST
    (line,) = result.said.splitlines()
    assert line.startswith("mldb: checkpoint 'last' (epoch 4) of ")
    assert str(store_path) in line
    assert "was not stored: StorageFullError:" in line
    assert stored(store_path) == {}


def test_the_log_of_the_program_hears_it_and_its_output_is_not_cut(store_path: Path) -> None:
    log = store_path.with_name("program.log")
    result = run(
        store_path,
        f"""
import logging
logging.basicConfig(filename={str(log)!r})
sys.stderr.reconfigure(line_buffering=False)
{LOST_AT_THE_END}
atexit.register(sys.stderr.write, "a hook of the program\\n")
""",
    )
    assert result.status == EXIT_LOST
    assert result.said.startswith("a hook of the program\nmldb: checkpoint 'last'")
    assert log.read_text().startswith("ERROR:mldb.state.lost:checkpoint 'last' (epoch 4)")


SEEN = {
    "result": """
try:
    pending.result()
except mldb.StorageFullError:
    pass
""",
    "error": """
while not pending.done:
    pass
assert isinstance(pending.error, mldb.StorageFullError)
""",
    "close": """
try:
    db.close()
except mldb.StorageFullError:
    pass
""",
    "next": """
while not pending.done:
    pass
try:
    db["x"] = 1
except mldb.StorageFullError:
    db["x"] = 2
""",
}


@pytest.mark.parametrize("how", SEEN)
def test_one_that_somebody_asked_about_is_their_affair(store_path: Path, how: str) -> None:
    result = run(store_path, LOST_AT_THE_END + SEEN[how])
    assert (result.status, result.said) == (0, "")


def test_the_end_waits_no_longer_than_exit_timeout(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.MLDatabase.on(fs, exit_timeout=0.3)
fs.seconds = 3600.0
db.checkpoint(state(7), epoch=4, name="last", wait=False)
assert started.wait(30)
""",
    )
    assert result.status == EXIT_LOST
    (line,) = result.said.splitlines()
    assert "checkpoint 'last' (epoch 4)" in line
    assert "was not stored within 0.3 s of the end of the program (exit_timeout)" in line
    assert result.seconds < 20
    assert stored(store_path) == {}


def test_exit_timeout_counts_from_the_end_of_the_program(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.MLDatabase.on(fs, exit_timeout=1.5)
fs.seconds = 2.0
db.checkpoint(state(7), epoch=4, name="last", wait=False)
assert started.wait(30)
time.sleep(1.2)
""",
    )
    assert (result.status, result.said) == (0, "")
    assert stored(store_path) == {"last": 7}


def test_a_forked_child_neither_waits_nor_tells(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.MLDatabase.on(fs)
fs.fail("pwritev", code=errno.ENOSPC)
failed = db.checkpoint(state(7), epoch=4, name="failed", wait=False)
while not failed.done:
    pass
fs.seconds = 1.0
other = mldb.MLDatabase.on(fs)
pending = other.checkpoint(state(8), epoch=4, name="last", wait=False)
assert started.wait(30)
if os.fork() == 0:
    for call in (pending.result, lambda: other.store_tensor("x", 1), lambda: db["first"]):
        try:
            call()
        except mldb.ClosedError:
            pass
        else:
            os._exit(1)
    other.close()
    sys.exit(5)
status = os.waitstatus_to_exitcode(os.wait()[1])
assert (status, pending.done) == (5, False), (status, pending.done)
assert isinstance(failed.error, mldb.StorageFullError)
""",
    )
    assert (result.status, result.said) == (0, "")
    assert stored(store_path) == {"last": 8}


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("point", ["db.safe_point()", "db.close()", ""])
def test_sigterm_saves_finishes_what_is_on_its_way_and_ends_the_process(
    store_path: Path, point: str, wait: bool
) -> None:
    result = run(
        store_path,
        f"""
db = mldb.MLDatabase.on(fs, pending_checkpoints=2)
save = lambda: db.checkpoint(state(9), epoch=1, name="saved", wait={wait})
db.save_on_signal(signal.SIGTERM, save)
fs.seconds = 0.5
db.checkpoint(state(7), epoch=1, name="behind", wait=False)
assert started.wait(30)
os.kill(os.getpid(), signal.SIGTERM)
{point}
""",
    )
    assert (result.status, result.said) == (-signal.SIGTERM, "")
    assert stored(store_path) == {"behind": 7, "saved": 9}


def test_sigterm_is_not_the_end_of_who_goes_on(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.open(path)
save = lambda: db.checkpoint(state(9), epoch=1, name="saved")
db.save_on_signal(signal.SIGTERM, save, then="continue")
os.kill(os.getpid(), signal.SIGTERM)
db.safe_point()
db.checkpoint(state(10), epoch=1, name="after")
""",
    )
    assert (result.status, result.said) == (0, "")
    assert stored(store_path) == {"saved": 9, "after": 10}


def test_sigterm_in_a_program_that_does_nothing_is_served_after_the_grace(
    store_path: Path,
) -> None:
    result = run(
        store_path,
        """
db = mldb.open(path)
save = lambda: db.checkpoint(state(9), epoch=1, name="saved")
db.save_on_signal(signal.SIGTERM, save, grace=0.2)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3600)
""",
    )
    assert (result.status, result.said) == (-signal.SIGTERM, "")
    with mldb.open(store_path) as db:
        assert [point.interrupted for point in db.checkpoints()] == [True]


def test_what_is_on_its_way_and_lost_is_told_before_the_signal_ends_it(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.MLDatabase.on(fs)
db.save_on_signal(signal.SIGTERM, lambda: None)
fs.seconds = 0.3
fs.fail("pwritev", code=errno.ENOSPC)
db.checkpoint(state(7), epoch=1, name="behind", wait=False)
assert started.wait(30)
os.kill(os.getpid(), signal.SIGTERM)
db.safe_point()
""",
    )
    assert result.status == -signal.SIGTERM
    assert "checkpoint 'behind' (epoch 1)" in result.said


def test_a_function_that_fails_at_the_end_is_no_success(store_path: Path) -> None:
    result = run(
        store_path,
        """
db = mldb.open(path)
def save():
    raise RuntimeError("cannot save")
db.save_on_signal(signal.SIGTERM, save)
os.kill(os.getpid(), signal.SIGTERM)
""",
    )
    assert result.status == EXIT_LOST
    assert "RuntimeError: cannot save" in result.said
