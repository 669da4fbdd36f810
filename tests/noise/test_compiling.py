"""Forks wait for kernels that another thread compiles: the child would wait for ever for a lock."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("numba")

_FORKS = """
import os, random, sys, threading, time
from mldb.gpu.cpu import chains
from mldb.noise import philox_compiled as noise

rounds, moments = int(sys.argv[1]), random.Random(int(sys.argv[2]))

def forget():
    noise._loaded.clear()
    chains._loaded.clear()

def compile_all(seen):
    seen.set()
    noise.load_kernels()
    if moments.random() < .2:
        chains.load_chains("direct")

took = 2.0
for number in range(rounds):
    forget()
    seen, begin = threading.Event(), time.monotonic()
    thread = threading.Thread(target=compile_all, args=(seen,))
    thread.start()
    seen.wait()
    time.sleep(moments.uniform(0, .5 * took))
    busy = thread.is_alive()
    child = os.fork()
    if not child:
        if number % 4 == 0:
            forget()  # this one compiles for itself
        kernels = noise.load_kernels()
        os._exit(0 if kernels is not None else 1)
    end = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise SystemExit(f"round {number}: the child waits for ever")
        time.sleep(.01)
    assert status == 0, (number, status)
    thread.join()
    took = time.monotonic() - begin if not number % 4 else took
    print("busy" if busy else "idle")
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(24, marks=pytest.mark.large)])
def test_a_child_forked_while_another_thread_compiles_has_kernels(rounds: int, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, str(rounds), str(seed)],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    moments = done.stdout.split()
    assert len(moments) == rounds
    assert moments.count("busy") >= rounds // 3, "forks came in the middle"


_INTERRUPTED = """
import os, signal, threading, time
from mldb.noise.compiling import compile_lock

inside = threading.Event()

def compile_slowly():
    with compile_lock().hold():
        inside.set()
        time.sleep(1)

threading.Thread(target=compile_slowly).start()
inside.wait()
signal.setitimer(signal.ITIMER_REAL, .3)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
begin, child = time.monotonic(), -1
try:
    child = os.fork()
    if child:
        time.sleep(10)
except KeyboardInterrupt:
    waited = time.monotonic() - begin
    print("interrupted", .5 < waited < 5)
if not child:
    with compile_lock().hold():
        os._exit(0)
with compile_lock().hold(timeout=5):
    print("free")
print(os.wait()[1])
"""


def test_ctrl_c_that_comes_while_a_fork_waits_is_raised_after_it() -> None:
    """An error of a fork's hook is only printed, and the fork goes on: it must not be lost."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:3] == ["interrupted True", "free", "0"]


_NESTED = """
import os
from mldb.noise.compiling import compile_lock

with compile_lock().hold():  # a signal handler that forks in the middle of a compilation
    child = os.fork()
    if not child:
        assert compile_lock().hold_unless_inside() is None
if not child:
    with compile_lock().hold(timeout=1):
        os._exit(0)
print(os.wait()[1])
"""


def test_a_fork_inside_a_compilation_does_not_wait_for_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _NESTED], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
