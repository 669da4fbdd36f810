"""Versions that do not find the bytes they refer to: told, whatever segment they lie in."""

from __future__ import annotations

import pytest

from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.frame import Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.log import Log
from mldb.log.verify import verify
from mldb.log.verify_owners import unowned
from tests.support.logs import open_log, store
from tests.support.segments import replace_segments

KEYS = [b"\x01%d" % number for number in range(4)]
DATA = b"bytes of a tensor" * 20


def refer(log: Log, key: bytes, owner: bytes, base: int, data: bytes = DATA, code: int = 2) -> int:
    own = b"" if code == fmt.ENCODING_REFERENCE else b"delta"
    draft = Draft(key, 0, code, 0, len(own), digest128(data), base, b"", owner)
    record = Record(16 | fmt.MUST_UNDERSTAND, [draft], [own] if own else [], len(own))
    return log.commit([record], lambda view: (0, view.commit)).lsn


@pytest.mark.parametrize("entries", [1, 1 << 16])
def test_each_fault_is_told_with_its_version_and_nothing_else_is(entries: int) -> None:
    log = open_log(MemoryFileSystem(), segment_entries=entries)
    base = store(log, KEYS[0], DATA)
    good = refer(log, KEYS[1], KEYS[0], base)
    refer(log, KEYS[0], b"", base)
    assert list(unowned(log.head())) == []
    assert verify(log).ok
    wrong = {
        refer(log, KEYS[2], KEYS[0], base + 1000): "is not there",
        refer(log, KEYS[2], KEYS[3], base): "is not there",
        refer(log, KEYS[2], KEYS[1], good): "has no bytes of its own",
        refer(log, KEYS[2], KEYS[0], base, b"others"): "has other bytes",
        refer(log, KEYS[2], KEYS[3], base, code=fmt.ENCODING_DELTA): "is not there",
    }
    refer(log, KEYS[2], KEYS[0], base, b"of the sum", fmt.ENCODING_DELTA)
    found = {item.entry.commit_lsn: item for item in unowned(log.head())}
    assert found.keys() == wrong.keys()
    for lsn, what in wrong.items():
        assert what in found[lsn].message
        assert f"commit {lsn} " in found[lsn].message
    problems = verify(log).problems
    assert {problem.lsns[0] for problem in problems} == wrong.keys()
    assert all(problem.file.startswith("segments/") for problem in problems)
    log.close()


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (((4, 8),), [4, 10]),
        (((2, 2), (4, 4), (8, 8)), [4, 10]),
        (((6, 8),), [10]),
        (((2, 2), (8, 8)), [10]),
    ],
    ids=["it sees it", "its own", "overwritten", "before and behind"],
)
def test_what_retention_dropped_may_lose_its_owner_and_what_it_kept_may_not(
    kept: tuple[tuple[int, int], ...], told: list[int]
) -> None:
    """That of commit 4 was overwritten by 6. What came since retention, as 10, is kept."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    assert store(log, KEYS[0], DATA) == 2
    assert refer(log, KEYS[1], KEYS[0], 2) == 4
    assert store(log, KEYS[1], b"other") == 6
    assert store(log, KEYS[2], b"last") == 8
    assert refer(log, KEYS[3], KEYS[0], 2) == 10
    log.close()
    log = open_log(fs)
    assert verify(log).ok
    replace_segments(log, 1, lambda key, lsn: key != KEYS[0], kept)
    log.close()
    log = open_log(fs, mode="r")
    assert [problem.lsns for problem in verify(log).problems] == [(lsn,) for lsn in told]
    log.close()


def test_what_is_kept_may_build_on_what_no_commit_sees_but_not_on_nothing() -> None:
    """A delta on a delta whose base went: the one between is told too, though none sees it."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1)
    assert store(log, KEYS[0], DATA) == 2
    assert refer(log, KEYS[1], KEYS[0], 2, code=fmt.ENCODING_DELTA) == 4
    assert refer(log, KEYS[1], b"", 4, code=fmt.ENCODING_DELTA) == 6
    assert store(log, KEYS[2], b"last") == 8
    log.close()
    log = open_log(fs)
    replace_segments(log, 1, lambda key, lsn: key != KEYS[0], ((8, 8),))
    log.close()
    log = open_log(fs, mode="r")
    assert [problem.lsns for problem in verify(log).problems] == [(4,)]
    log.close()
