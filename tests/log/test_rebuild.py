"""Building a store of commits made before: what they keep, and what is refused."""

from __future__ import annotations

import pytest

from mldb.errors import CorruptError, UsageError
from mldb.log.frame import Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow
from mldb.log.rebuild import BuiltSegment, StoreBuilder
from mldb.log.verify import verify
from tests.support.logs import open_log

ORIGIN = bytes(range(16))


def record(key: bytes, data: bytes) -> Record:
    from mldb.log.frame import TO_BE_HASHED

    draft = Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"attr")
    return Record(16 | 0x8000, [draft], (data,), len(data))


def row(lsn: int, parent: int, epoch: int) -> CommitRow:
    return CommitRow(lsn, parent, epoch, lsn * 1000, lsn * 900, 0, 0, lsn.to_bytes(16, "big"))


ROWS = [row(3, 0, 1), row(10, 3, 2), row(11, 10, 2), row(5000, 3, 2), row(5004, 5000, 7)]


def test_commits_keep_what_they_are() -> None:
    """LSNs with gaps, a jump, segments of two versions each, an empty commit."""
    fs = MemoryFileSystem()
    built: list[BuiltSegment] = []
    builder = StoreBuilder(fs, ORIGIN, None, segment_entries=2, done=built.append)
    for item in ROWS:
        records = [] if item.lsn == 11 else [record(b"\x01k", bytes([item.epoch]) * 90)]
        builder.append(item, records, {"interrupted": True} if item.lsn == 10 else {})
    builder.publish(((3, 10), (5004, 5004)), ())
    assert [item.info.last_lsn for item in built] == [11, 5004]
    log = open_log(fs)
    view = log.head()
    found = [each for _, each in view.commits(1, 1 << 60)]
    assert [each._replace(start=0, end=0) for each in found] == ROWS
    assert view.jumps[:] == ((5000, 3),)
    assert view.kept == ((3, 10), (5004, 5004))
    assert [entry.commit_lsn for entry in view.versions(b"\x01k")] == [3, 10, 5000, 5004]
    assert verify(log).ok
    made = log.commit([record(b"\x01k", b"x")], lambda head: (7, head.commit))
    assert made.lsn > 5004
    log.close()


@pytest.mark.parametrize(
    ("lsn", "parent", "records"), [(3, 0, 0), (4, 3, 1), (2, 0, 0), (9, 7, 1), (5, 3, 2)]
)
def test_what_does_not_follow_is_refused(lsn: int, parent: int, records: int) -> None:
    builder = StoreBuilder(MemoryFileSystem(), ORIGIN, None)
    builder.append(ROWS[0], [record(b"\x01k", b"data")])
    with pytest.raises(UsageError, match="does not follow"):
        builder.append(row(lsn, parent, 2), [record(b"\x01k", b"x")] * records)


def test_a_segment_that_is_no_longer_whole_is_not_taken_over() -> None:
    fs = MemoryFileSystem()
    built: list[BuiltSegment] = []
    builder = StoreBuilder(fs, ORIGIN, None, done=built.append)
    builder.append(ROWS[0], [record(b"\x01k", b"data")])
    builder.close_segment()
    again = StoreBuilder(fs, ORIGIN, None)
    again.adopt(built[0])
    assert again.last_lsn == 3
    other = built[0]._replace(info=built[0].info.__class__(
        **{name: getattr(built[0].info, name) for name in built[0].info.__slots__} | {"length": 9}
    ))  # fmt: skip
    with pytest.raises(CorruptError, match="bytes long, 9 were written"):
        StoreBuilder(fs, ORIGIN, None).adopt(other)
