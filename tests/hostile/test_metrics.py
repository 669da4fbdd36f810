"""Damaged points and keys of metrics, under right checksums: CorruptError, and no more than that.

Who writes into the folder can store any key and any attr. What is whole beside it stays readable.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb import keys
from mldb.history.kinds import METRICS_LOGGED
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index import bulk
from mldb.tools.cli.main import main

SET = keys.METRICS + keys.NUL
ROW = bytes(24)
NO_KEYS = {
    "no name": (keys.METRICS, ROW),
    "a set of none": (SET, ROW),
    "a set of one": (SET + b"a", ROW),
    "an empty name in a set": (SET + b"a\0\0b", bytes(40)),
    "a set that ends with NUL": (SET + b"a\0b\0", bytes(40)),
    "a name twice": (SET + b"a\0a", bytes(32)),
    "names that descend": (SET + b"b\0a", bytes(32)),
    "no UTF-8": (keys.METRICS + b"\xff\xfe", ROW),
    "half of a pair": (keys.METRICS + b"\xed\xa0\x80", ROW),
    "no UTF-8 in a set": (SET + b"a\0\xff", bytes(32)),
    "a name that may not be": (keys.METRICS + b"/a\n", ROW),
    "a path out": (keys.METRICS + b"../../etc/passwd", ROW),
    "NUL in the name of one": (keys.METRICS + b"a\0b", ROW),
    "a name that is too long": (keys.METRICS + b"x" * 1000, ROW),
}
NO_POINTS = {
    "no row": (keys.METRICS + b"a", b""),
    "part of a row": (keys.METRICS + b"a", bytes(47)),
    "rows of fewer names": (SET + b"a\0b", ROW),
    "a step below none": (keys.METRICS + b"a", np.array([-2, 0, 0], "<i8").tobytes()),
}


def damaged(fs: Any, key: bytes, attr: bytes) -> mldb.MLDatabase:
    """Return a store with two curves that are whole, and a key and an attr that nobody logged."""
    db = mldb.MLDatabase.on(fs, durability="os")
    db.log({"fine": 1.0, "lr": 2.0}, step=5)
    db._commit(records_of([KeyChange(METRICS_LOGGED, key, attr)]), None)
    return db


READS: dict[str, Callable[[mldb.MLDatabase], object]] = {
    "names": lambda db: db.metrics(),
    "a": lambda db: db.metrics("a"),
    "events": lambda db: list(db.events()),
    "commits": lambda db: list(db.commits()),
    "table": lambda db: db.sql("SELECT * FROM metrics").fetchall(),
    "table of events": lambda db: db.sql("SELECT * FROM events").fetchall(),
}


def refused(db: mldb.MLDatabase) -> set[str]:
    """Read everything; return what ended with CorruptError. Nothing may end otherwise."""
    found = set()
    for name, read in READS.items():
        try:
            read(db)
        except mldb.CorruptError as error:
            assert len(str(error)) < 2000
            found.add(name)
    for name in ("fine", "lr"):
        assert len(db.metrics(name)) == 1
    assert db.verify().ok  # every byte is as it was written
    return found


@pytest.mark.parametrize("case", [*NO_KEYS, *NO_POINTS])
def test_what_nobody_logged_is_an_error_and_the_rest_is_readable(case: str) -> None:
    """In the active segment and in a sealed one."""
    fs = MemoryFileSystem()
    db = damaged(fs, *{**NO_KEYS, **NO_POINTS}[case])
    told = {"events", "commits", "table", "table of events"}
    expected = told | ({"names"} if case in NO_KEYS else {"a"})
    for _ in range(2):
        assert refused(db) - {"a"} == expected - {"a"}
        assert case in NO_KEYS or "a" in refused(db)
        db.close()
        db = mldb.MLDatabase.on(fs, mode="r")


@pytest.mark.parametrize("case", ["no UTF-8", "part of a row", "a name that may not be"])
def test_the_command_line_says_what_is_damaged(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mldb.log.fs.posix import OsFileSystem

    (tmp_path / "s").mkdir()
    damaged(OsFileSystem(str(tmp_path / "s")), *{**NO_KEYS, **NO_POINTS}[case]).close()
    for words in (["log"], ["log", "--json"], ["query", "SELECT name FROM metrics"]):
        assert main([words[0], str(tmp_path / "s"), *words[1:]]) == 1
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert "\n/a" not in told.out + told.err  # no name breaks a line
        assert "metric" in told.err or "event" in told.err
    for word in ("verify", "stats", "du"):
        assert main([word, str(tmp_path / "s")]) == 0
        capsys.readouterr()


def test_any_key_and_attr_is_read_or_is_an_error(seed: int) -> None:
    """Bytes drawn around what is right: some of each kind, or the draws would show nothing."""
    rng = np.random.default_rng(seed)
    pieces = (b"a", b"b", b"loss", b"\0", b"\0", b"\xff", b"/", "\u00e9".encode())
    counts = {False: 0, True: 0}
    for turn in range(60):
        drawn = [pieces[i] for i in rng.integers(0, len(pieces), rng.integers(1, 5))]
        right = sorted({*drawn} - {b"\0", b"\xff", b"/"})
        is_key = turn % 2 and right
        key = keys.metrics_key(right) if is_key else keys.METRICS + b"".join(drawn)
        sizes = [0, 24, 32, 97, 2 * (16 + 8 * len(right)), 3 * (16 + 8 * len(right))]
        size = int(rng.choice(sizes[4:] if turn % 4 == 1 else sizes))
        attr = bytes(size) if turn % 4 == 1 or rng.random() < 0.5 else rng.bytes(size)
        counts[bool(refused(damaged(MemoryFileSystem(), key, attr)))] += 1
    print(f"seed {seed}: {counts}")
    assert min(counts.values()) >= 3


def test_few_bytes_cannot_claim_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions may share one attr in an index: each is 16 bytes there, and a mebibyte when read."""
    fs = MemoryFileSystem()
    db = mldb.MLDatabase.on(fs, durability="os", segment_entries=64)
    same = KeyChange(METRICS_LOGGED, keys.METRICS + b"a", ROW * 100)
    for _ in range(70):
        db._commit(records_of([same]), None)
    assert len(db.metrics("a")) == 7000
    monkeypatch.setattr(bulk, "_REPEATED_MAX", 10_000)
    with pytest.raises(mldb.CorruptError, match="claim"):
        db.metrics("a")


def test_the_most_that_an_attr_holds_is_read() -> None:
    """All of one nanosecond. The story: each was compared with all before it, for minutes."""
    rows = fmt.ATTR_BYTES_MAX // len(ROW)
    db = damaged(MemoryFileSystem(), keys.METRICS + b"a", ROW * rows)
    assert len(db.metrics("a")) == rows
    assert not refused(db)
