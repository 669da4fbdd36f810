"""The active index: openings after a kill, closes and seals of many one-version commits.

Each store is written by a process of its own, which ends without a word; a fresh process opens it.
Every figure is taken with few names and with a new name in every commit, the worse one counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mldb.log.format import SEGMENT_ENTRIES
from tests.bench_growth.row import Row

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_REPEATS: Final = 5

_WRITE: Final = """
import json, os, sys, time
import numpy as np
import mldb

path, count, names, durability, entries = sys.argv[1:]
db = mldb.open(path, durability=durability, segment_entries=int(entries))
value = np.arange(4, dtype="f4")
times = []
for number in range(int(count)):
    began = time.perf_counter()
    db[f"layer/{number * 7919 % int(names):07d}/weight"] = value
    times.append(time.perf_counter() - began)
sealed = [at for at in range(1, len(times)) if at % int(entries) == 0]
print(json.dumps({"worst": max(times), "median": sorted(times)[len(times) // 2],
                  "seal": max((times[at] for at in sealed), default=0.0)}), flush=True)
os._exit(9)
"""

_OPEN: Final = """
import json, os, sys, tempfile, time
import numpy as np
import mldb

path, act = sys.argv[1:]
value = np.arange(4, dtype="f4")
with tempfile.TemporaryDirectory() as other, mldb.open(other) as db:  # imports are no part of it
    db["x"] = value
began = time.perf_counter()
db = mldb.open(path, durability="os", segment_entries=1 << 20)
opened = time.perf_counter() - began
if act == "close":
    began = time.perf_counter()
    db["one more"] = value
    db.close()
    print(json.dumps([opened, time.perf_counter() - began]), flush=True)
else:
    print(json.dumps([opened, 0.0]), flush=True)
os._exit(9)
"""

_MEMORY: Final = """
import json, os, sys
import mldb

def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))

with mldb.open(sys.argv[1], mode="r") as db:  # imports, and what they keep, are no part of it
    some = [f"layer/{number * 7919 % 10_000_019:07d}/weight" for number in range(0, 1 << 16, 130)]
    found = sum(name in db for name in some[:1])
before = private()
db = mldb.open(sys.argv[1], mode="r")
found = sum(name in db for name in some)
print(json.dumps([private() - before, found, db.stats()["versions"]]), flush=True)
os._exit(9)
"""


def _run(code: str, *arguments: object) -> Any:
    """Run *code* in a fresh process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
    )
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def _write(path: Path, count: int, names: int, durability: str, entries: int) -> dict[str, float]:
    found: dict[str, float] = _run(_WRITE, path, count, names, durability, entries)
    return found


def _opened(path: Path, act: str) -> list[tuple[float, float]]:
    found = [_run(_OPEN, path, act) for _ in range(_REPEATS)]
    return [(first, second) for first, second in found]


def _row(figure: str, size: int, value: float, unit: str, limit: float, quick: bool) -> Row:
    met = None if quick else value <= limit
    return Row(figure, size, round(value, 3), unit, f"<= {limit:g} {unit}", met)


def _of_a_killed_store(folder: Path, count: int, names: int, quick: bool) -> list[Row]:
    what = "few names" if names < count else "new names"
    path = folder / what
    _write(path, count, names, "os", 1 << 20)
    after_kill = statistics.median(first for first, _ in _opened(path, ""))
    closes = _opened(path, "close")
    for hint in (path / "hints").iterdir():
        hint.unlink()
    scanned = _run(_OPEN, path, "")[0]
    return [
        _row(f"opening after a kill, {what}", count, after_kill, "s", 0.5, quick),
        _row(
            f"commit and close after the kill, {what}", count, closes[0][1] * 1e3, "ms", 30, quick
        ),
        _row(
            f"commit and close from then on, {what}",
            count,
            statistics.median(second for _, second in closes[1:]) * 1e3,
            "ms",
            30,
            quick,
        ),
        Row(f"opening without a hint, {what}", count, round(scanned, 3), "s", "", None),
    ]


def _of_a_seal(folder: Path, entries: int, names: int, durability: str, quick: bool) -> list[Row]:
    what = f"{'few names' if names < entries else 'new names'}, durability={durability}"
    path = folder / f"seal {entries} {what}"
    path.parent.mkdir(exist_ok=True)
    found = _write(path, entries + 200, names, durability, entries)
    return [
        _row(f"commit stalled by a seal, {what}", entries, found["seal"] * 1e3, "ms", 50, quick),
        Row(f"longest commit, {what}", entries, round(found["worst"] * 1e3, 3), "ms", "", None),
        Row(f"median commit, {what}", entries, round(found["median"] * 1e6, 3), "us", "", None),
    ]


def rows(quick: bool) -> list[Row]:
    """Measure; a *quick* run is a hundredth of the size and proves nothing but that it works."""
    counts: Sequence[int] = (2_000,) if quick else (33_000, 131_000)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in counts:
            for names in (100, 10_000_019):
                found += _of_a_killed_store(folder / str(count), count, names, quick)
        entries = 1 << 11 if quick else SEGMENT_ENTRIES
        found += _of_a_seal(folder, 1 << 8, 100, "os", quick=True)  # what syncs alone cost here
        for names in (100, 10_000_019):
            found += _of_a_seal(folder, entries, names, "os", quick)
        private, count, versions = _run(
            _MEMORY, folder / f"seal {entries} new names, durability=os"
        )
        found.append(
            _row(
                "private memory per sealed version",
                count,
                private * 1024 / versions,
                "B",
                64,
                quick,
            )
        )
    return found


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(f"{row.figure:60} {row.size:>8} {row.value:>10} {row.unit:3} {row.must:12} {row.met}")
