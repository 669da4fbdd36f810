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
