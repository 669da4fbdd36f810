"""Measurements in a process of their own, so that caches, mappings and memory start empty.

Run as ``python -m tests.bench.children`` with one JSON task on standard input; the result is the
last line of standard output. What a peer imports is imported before the clock starts, and most
tasks first open a tiny twin store of the same kind, so that lazy imports do not count either.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.bench.peer import Store
from tests.bench.registry import PEERS
from tests.bench.timing import median, private_bytes
from tests.bench.workloads import SEED, touch, touch_all

Task: TypeAlias = dict[str, Any]
Result: TypeAlias = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]
_OPEN_GET_CALLS = 1_000
_OPEN_GET_SECONDS = 0.3
_MIB = 1 << 20


def environment() -> dict[str, str]:
    """Return the environment in which a child finds the packages of this checkout.

    Byte code is kept, as it is for users: without it an import compiles every module again.
    """
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(REPOSITORY)}


def run_child(task: Task) -> Result:
    """Run *task* in a fresh interpreter and return its result.

    Raises RuntimeError with the child's own error text when it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.children"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
        check=False,
    )
    if done.returncode == -signal.SIGKILL and task["task"] == "fill":
        return {"killed": True}
    if done.returncode:
        raise RuntimeError(f"task {task} ended with {done.returncode}:\n{done.stderr}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def _open(task: Task, folder: str) -> Store:
    return PEERS[task["peer"]].open(Path(folder), "read")


def _warm(task: Task, name: str) -> None:
    """Pay for imports and first calls on the twin store."""
    store = _open(task, task["twin"])
    touch(store.get(name))
    store.close()


def load(task: Task) -> Result:
    """Open, get every tensor and hold on to all, sum every byte."""
    _warm(task, task["first"])
    private = private_bytes()
    begin = time.perf_counter()
    store = _open(task, task["folder"])
    tensors = list(store.get_all())
    total = touch_all(tensors)
    seconds = time.perf_counter() - begin
    private_mib = (private_bytes() - private) / _MIB
    del tensors
    store.close()
    return {"seconds": seconds, "total": total, "private_mib": private_mib}


def first(task: Task) -> Result:
    """Open a closed store and sum one tensor; then ask for the same tensor again and again."""
    name = task["first"]
    _warm(task, name)
    begin = time.perf_counter()
    store = _open(task, task["folder"])
    total = touch(store.get(name))
    seconds = time.perf_counter() - begin
    again: list[float] = []
    while len(again) < _OPEN_GET_CALLS and sum(again) < _OPEN_GET_SECONDS:
        begin = time.perf_counter()
        tensor = store.get(name)
        again.append(time.perf_counter() - begin)
        del tensor
    store.close()
    return {"seconds": seconds, "total": total, "again_seconds": median(again)}


def as_of(task: Task) -> Result:
    """Sum tensors as of random epochs from one open store; the first read is made once before.

    ``again`` are the seconds that the same reads take after that, when nothing is summed.
    """
    store = _open(task, task["folder"])
    touch(store.get_as_of(*task["reads"][0]))
    begin = time.perf_counter()
    total = touch_all(store.get_as_of(name, epoch) for name, epoch in task["reads"])
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for name, epoch in task["reads"]:
        store.get_as_of(name, epoch)
    again = time.perf_counter() - begin
    store.close()
    return {"seconds": seconds, "total": total, "again": again}


def rows(task: Task) -> Result:
    """Copy random row slices into one buffer; return also the sums of the first few, read again."""
    store = _open(task, task["folder"])
    read = store.rows(task["name"], task["row_values"])
    out = np.ones((task["slice_rows"], task["row_values"]), np.float32)
    read(task["starts"][0], out)
    begin = time.perf_counter()
    for start in task["starts"]:
        read(start, out)
    seconds = time.perf_counter() - begin
    totals = []
    for start in task["starts"][: task["checked"]]:
        read(start, out)
        totals.append(touch(out))
    store.close()
    return {"seconds": seconds, "totals": totals}


def open_get(task: Task) -> Result:
    """Open a store of many records and get one of them."""
    _warm(task, task["twin_name"])
    private = private_bytes()
    begin = time.perf_counter()
    store = _open(task, task["folder"])
    opened = time.perf_counter()
    value = store.get(task["name"])
    got = time.perf_counter()
    private_mib = (private_bytes() - private) / _MIB
    result = {
        "open_seconds": opened - begin,
        "get_seconds": got - opened,
        "private_mib": private_mib,
        "total": touch(value),
    }
    store.close()
    return result


def fill(task: Task) -> Result:
    """Write tensors of the given sizes in unsynced commits, then die by SIGKILL, the store open."""
    store = PEERS[task["peer"]].open(Path(task["folder"]), "lazy")
    rng = np.random.default_rng(SEED)
    sizes, per_commit = task["sizes"], task["per_commit"]
    for begin in range(0, len(sizes), per_commit):
        part = sizes[begin : begin + per_commit]
        data = np.frombuffer(rng.bytes(sum(part)), np.uint8)
        ends = np.cumsum(part)
        store.put_batch(
            {
                tail_name(begin + place): data[end - size : end]
                for place, (size, end) in enumerate(zip(part, ends, strict=True))
            }
        )
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def tail_name(place: int) -> str:
    """Return the name of the tensor that :func:`fill` writes at *place*."""
    return f"tail.{place:08d}"


TASKS: dict[str, Callable[[Task], Result]] = {
    "load": load,
    "first": first,
    "as_of": as_of,
    "rows": rows,
    "open_get": open_get,
    "fill": fill,
}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(TASKS[asked["task"]](asked)))
