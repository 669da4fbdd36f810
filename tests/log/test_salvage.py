"""Finding frames in damaged files: where the search goes on, and what it never takes for one."""

from __future__ import annotations

import numpy as np
import pytest

from mldb.log import format as fmt
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.salvage import FoundFile, Identity, salvage_file
from mldb.log.segment import segment_name
from tests.support.logs import open_log

COMMITS = 12


def make(payload: bytes | None = None) -> tuple[MemoryFileSystem, str, Identity, list[int]]:
    """A segment of some commits; its file, whose it is, where each frame starts."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    offsets = []
    for number in range(COMMITS):
        data = payload or bytes([number]) * 100
        draft = Draft(b"\x01k%d" % number, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"a")
        record = Record(16 | 0x8000, [draft], (data,), len(data))
        row = log.commit([record], lambda head: (0, head.commit))
        offsets.append(row.start)
    view = log.head()
    identity = Identity(log.store_id, view.active_id, fmt.FILE_SEGMENT)
    log.close()
    return fs, segment_name(view.active_id), identity, offsets


def changed(fs: MemoryFileSystem, name: str, at: int, new: bytes) -> MemoryFileSystem:
    """The same file with other bytes at an offset, or cut there."""
    file = fs.open(name, "r")
    data = bytes(file.map(file.size()))
    file.close()
    data = data[:at] + new + data[at + len(new) :] if new else data[:at]
    fs.unlink(name)
    made = fs.open(name, "create")
    made.pwritev([data], 0)
    made.close()
    return fs


def found_in(fs: MemoryFileSystem, name: str, identity: Identity) -> FoundFile:
    found = salvage_file(fs, name, [identity])
    assert found is not None
    return found


def whole(found: FoundFile) -> list[int]:
    """The commits that are whole."""
    return [
        lsn
        for lsn, commit in found.commits.items()
        if commit.row is not None
        and len(commit.frames) == commit.count
        and all(frame.is_whole for frame in commit.frames)
    ]


def test_an_intact_file_is_found_whole() -> None:
    fs, name, identity, _ = make()
    found = found_in(fs, name, identity)
    assert len(whole(found)) == COMMITS
    assert found.damage == []


def test_any_single_byte_costs_one_commit_at_most() -> None:
    """Every byte of two commits, one after the other: the next frame is found behind each."""
    fs, name, identity, offsets = make()
    for at in range(offsets[4], offsets[6], 3):
        file = fs.open(name, "r")
        old = file.pread(1, at)
        file.close()
        changed(fs, name, at, bytes([old[0] ^ 0x40]))
        found = found_in(fs, name, identity)
        assert len(whole(found)) >= COMMITS - 1, at
        changed(fs, name, at, old)


def test_random_damage_never_makes_frames_up(rng: np.random.Generator) -> None:
    fs, name, identity, _ = make()
    good = found_in(fs, name, identity)
    frames = {f.frame.offset: f.frame for c in good.commits.values() for f in c.frames}
    size = len(good.data)
    for _ in range(60):
        at = int(rng.integers(size - 300))
        file = fs.open(name, "r")
        old = file.pread(300, at)
        file.close()
        changed(fs, name, at, rng.bytes(300))
        found = found_in(fs, name, identity)
        for commit in found.commits.values():
            assert all(frames[f.frame.offset] == f.frame for f in commit.frames)
        assert found.damage
        changed(fs, name, at, old)


def test_a_segment_inside_a_tensor_is_no_segment() -> None:
    """Frames of another file, copied into a payload, are tied to that file."""
    other, other_name, _, _ = make()
    file = other.open(other_name, "r")
    inner = file.pread(file.size(), 0)
    file.close()
    fs, name, identity, offsets = make(payload=inner)
    changed(fs, name, offsets[3] + 8, b"\xff" * 16)
    found = found_in(fs, name, identity)
    assert len(whole(found)) == COMMITS - 1
    assert salvage_file(fs, name, [Identity(identity.store_id, bytes(16), 1)]) is not None  # header
    changed(fs, name, 0, bytes(fmt.FILE_HEADER_SIZE))
    assert salvage_file(fs, name, [Identity(identity.store_id, bytes(16), 1)]) is None
    assert len(whole(found_in(fs, name, identity))) == COMMITS - 1


@pytest.mark.parametrize("left", [0, 5, 128, 140, 300, 1000])
def test_cut_files(left: int) -> None:
    fs, name, identity, offsets = make()
    changed(fs, name, left, b"")
    found = salvage_file(fs, name, [identity])
    if left < fmt.FILE_HEADER_SIZE:
        assert found is None
        return
    assert found is not None
    assert len(whole(found)) == sum(offset <= left for offset in offsets[1:])
