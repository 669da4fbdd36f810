"""Large tensors of a batch: held below a border, written at the call beyond it, each key once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import StorageFullError
from mldb.history.kinds.tensors import tensor_stored
from mldb.log import format as fmt
from mldb.log.aside import BESIDE_BYTES, OVERLAP_BYTES
from mldb.log.checksum import digest128
from mldb.log.frame import Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.pending import PendingSegment
from mldb.tensors.codec import prepare
from mldb.write.buffers import BufferPool
from mldb.write.large import NEVER, LargeTensors
from mldb.write.staged import staged_parts
from tests.support.faults import FaultFileSystem
from tests.support.parts import examples

TOGETHER = 1000
ROOT = str(Path(__file__).resolve().parents[2])
WATCHED = ("write/large.py", "write/buffers.py", "log/pending.py", "log/batch.py", "log/frame.py")


class Batch:
    """What a staging area does with its large tensors, and what is expected of them."""

    def __init__(self, *, alone: int = NEVER, together: int = TOGETHER) -> None:
        self.fs = FaultFileSystem(MemoryFileSystem())
        self.fs.mkdir("pending")
        self.pool = BufferPool()
        self.large = LargeTensors(
            lambda: PendingSegment(self.fs, "owner"), self.pool, alone=alone, together=together
        )

    def put(self, keys: bytes, data: bytes) -> None:
        """Store these bytes under keys of one letter each."""
        large, added = self.large, [b"\x01%c" % key for key in keys]
        for key in added:
            large.forget(key)
        if large.streams(len(data)):
            large.write(added, self.record(keys, data))
        else:
            copy = self.pool.take(len(data))
            copy[:] = data
            large.hold(added, self.record(keys, copy), [copy])

    @staticmethod
    def record(keys: bytes, data: Any) -> Record:
        names = [b"%c" % key for key in keys]
        prepared = prepare(b"")._replace(buffers=(data,), nbytes=len(data))
        return tensor_stored(names[0], prepared, tuple(names[1:]))

    def back(self, key: int) -> bytes | None:
        staged = self.large.read(b"\x01%c" % key)
        return None if staged is None else b"".join(staged_parts(staged, self.large.pending))

    def ended(self) -> dict[bytes, bytes]:
        """All that is to be committed, by key; a key stands there once, hashed and placed right."""
        held = self.large.records()
        found: dict[bytes, bytes] = {}
        pending = self.large.pending
        placed = [] if pending is None else list(pending.placed)
        where = fmt.FILE_HEADER_SIZE
        for item in placed:
            assert pending is not None
            assert item.offset == where
            size = item.record.payload_length
            data = pending.file.pread(size, item.payload)
            self.take(found, item.record, data)
            fresh = PendingSegment(self.fs, "check")
            fresh.placed = [item._replace(end=item.offset)]
            assert fresh.reserve(item.record)[1:] == item[1:], "its place does not fit"
            fresh.discard()
            where = item.end
        assert pending is None or pending.file.size() <= where, "a longer file looks torn"
        for record in held:
            self.take(found, record, b"".join(record.payload))
        return found

    @staticmethod
    def take(found: dict[bytes, bytes], record: Record, data: bytes) -> None:
        assert record.drafts
        for draft in record.named_drafts():
            assert draft.key not in found
            assert draft.digest == digest128(data)
            found[draft.key[1:]] = data


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "put", "share", "forget")),
        st.lists(st.sampled_from(b"abcd"), min_size=1, max_size=2, unique=True).map(bytes),
        st.sampled_from((1, 300, TOGETHER, TOGETHER + 1)),
    ),
    max_size=12,
)


@examples(120)
@given(STEPS, st.sampled_from((NEVER, TOGETHER)))
def test_the_last_write_of_each_key_counts(steps: list[tuple[str, bytes, int]], alone: int) -> None:
    batch, model = Batch(alone=alone), dict[int, bytes]()
    for number, (verb, keys, size) in enumerate(steps):
        data = bytes([number + 1]) * size
        if verb == "put":
            batch.put(keys, data)
            model.update(dict.fromkeys(keys, data))
        elif verb == "share" and keys[0] in model and keys[1:]:
            batch.large.forget(b"\x01" + keys[1:])
            model.pop(keys[1], None)
            if batch.large.share(b"\x01" + keys[:1], [b"\x01" + keys[1:]], b""):
                model[keys[1]] = model[keys[0]]
        elif verb == "forget":
            batch.large.forget(b"\x01" + keys[:1])
            model.pop(keys[0], None)
        for key in b"abcd":
            assert batch.back(key) == model.get(key)
            assert (b"\x01%c" % key in batch.large) == (key in model)
        assert len(batch.large) == len(set(batch.large)) == len(model)
    assert batch.ended() == {b"%c" % key: data for key, data in model.items()}
    batch.large.discard()
    assert batch.fs.list("pending") == []


def test_below_the_border_everything_is_held() -> None:
    batch = Batch()
    for key in b"abcd":
        batch.put(bytes([key]), bytes(TOGETHER // 4))
    assert batch.large.pending is None
    assert len(batch.large.records()) == 4
    assert batch.fs.list("pending") == []


def test_beyond_it_what_was_held_is_written_and_its_memory_comes_back() -> None:
    batch = Batch()
    batch.put(b"a", b"1" * 600)
    batch.put(b"b", b"2" * 300)
    assert batch.pool.kept_bytes == 0
    batch.put(b"c", b"3" * 101)
    assert batch.pool.kept_bytes == 2 * (64 << 10)
    pending = batch.large.pending
    assert pending is not None
    assert [placed.record.payload for placed in pending.placed] == [(), (), ()]
    assert [pending.file.pread(1, placed.payload) for placed in pending.placed] == [
        b"1",
        b"2",
        b"3",
    ]
    batch.put(b"d", b"4")  # from here on each one is written
    assert len(pending.placed) == 4
    assert batch.large.records() == []


def test_what_was_overwritten_does_not_count_to_the_border() -> None:
    """Else a batch that stores one name again and again would end in a segment of its own."""
    batch = Batch()
    for number in range(10):
        batch.put(b"a", bytes([number]) * TOGETHER)
    assert batch.large.pending is None
    assert batch.ended() == {b"a": bytes([9]) * TOGETHER}


@pytest.mark.parametrize("size", [OVERLAP_BYTES, BESIDE_BYTES])
def test_what_is_large_is_hashed_before_it_is_written_or_meanwhile(size: int) -> None:
    batch = Batch(together=0)
    data = bytes(range(256)) * (size // 256)
    batch.put(b"a", data)
    assert batch.ended() == {b"a": data}


def test_a_full_disk_in_the_middle_leaves_what_was_there() -> None:
    """The call says so; the batch goes on with what it has, in memory as well as in the file."""
    for at in (1, 2, 3):
        batch = Batch()
        batch.put(b"a", b"1" * 500)
        batch.put(b"b", b"2" * 400)
        batch.fs.fail("pwritev", at=at, code=28, effect="half")
        with pytest.raises(StorageFullError):
            batch.put(b"c", b"3" * 500)
        assert [batch.back(key) for key in b"abc"] == [b"1" * 500, b"2" * 400, None]
        batch.put(b"d", b"4" * 500)
        expected = {b"a": b"1" * 500, b"b": b"2" * 400, b"d": b"4" * 500}
        assert batch.ended() == expected
        batch.large.discard()
        assert batch.fs.list("pending") == []


class Interrupt:
    """Raises KeyboardInterrupt at the *number*-th place of the modules under test."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event in ("call", "c_return") and name.endswith(WATCHED):
            if frame.f_code.co_name in ("<genexpr>", "__del__", "discard"):
                return
            self.left -= 1
            if self.left == 0:
                self.place = f"{name.removeprefix(ROOT)}:{frame.f_lineno} {event}"
                raise KeyboardInterrupt


def played(batch: Batch, interrupt: Interrupt | None) -> None:
    """The first put beyond the border, and one that overwrites what is written."""
    try:
        if interrupt is not None:
            sys.setprofile(interrupt)
        batch.put(b"c", b"3" * 400)
        batch.put(b"a", b"4" * 300)
    except KeyboardInterrupt:
        assert interrupt is not None
        assert interrupt.place, "a real Ctrl-C"
    finally:
        sys.setprofile(None)


def test_an_interrupted_call_was_made_or_not_and_the_batch_goes_on() -> None:
    """Whoever catches Ctrl-C inside a transaction may commit it.

    A record that had its place in the file when its name was not noted yet was committed, and a
    second one with the same name beside it when the call was made again.
    """
    number = 1
    before = sys.getprofile()
    try:
        while True:
            batch = Batch()
            batch.put(b"ab", b"1" * 500)
            batch.put(b"b", b"2" * 400)
            interrupt = Interrupt(number)
            played(batch, interrupt)
            allowed: dict[int, set[bytes | None]] = {
                ord("a"): {b"1" * 500, b"4" * 300, None},
                ord("b"): {b"2" * 400},
                ord("c"): {b"3" * 400, None},
            }
            for key, values in allowed.items():
                assert batch.back(key) in values, interrupt.place
            batch.put(b"c", b"5" * 200)  # again, and this time to the end
            batch.put(b"d", b"6" * 200)
            found = batch.ended()
            assert found.get(b"a") in allowed[ord("a")], interrupt.place
            rest = {b"b": b"2" * 400, b"c": b"5" * 200, b"d": b"6" * 200}
            assert {key: found[key] for key in found if key != b"a"} == rest, interrupt.place
            batch.large.discard()
            assert batch.fs.list("pending") == [], interrupt.place
            if not interrupt.place:
                break
            number += 1
    finally:
        sys.setprofile(before)
    assert number > 100, "hardly anything was interrupted"
