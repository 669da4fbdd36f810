"""Files of one frame: decoded whole or not at all, and published in one step or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, StorageError, StorageIOError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.frame import DamagedFrame
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.lone import (
    PENDING,
    decode_lone,
    discard,
    encode_lone,
    header_seed,
    publish_new,
    publish_over,
    read_file,
    write_pending,
)
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, replace_file
from tests.support.logs import CLOCK, OLD_SEGMENT_ID, SEGMENT_ID, STORE_ID, flip

OWNER = "owner"


def file_of(body: bytes, payload: bytes = b"", segment_id: bytes = fmt.NO_ID) -> bytes:
    header = encode_file_header(fmt.FILE_HINT, STORE_ID, CLOCK, segment_id=segment_id)
    return b"".join(encode_lone(header, fmt.KIND_HINT, body, payload))


def decoded(data: bytes) -> tuple[bytes, bytes]:
    found = decode_lone(memoryview(data), "x", fmt.FILE_HINT, fmt.KIND_HINT)
    assert found.end <= len(data)
    return found.body, bytes(found.payload)


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=3000), st.binary(max_size=20))
def test_what_is_encoded_is_decoded_whatever_follows_it(
    body: bytes, payload: bytes, behind: bytes
) -> None:
    data = file_of(body, payload)
    assert len(data) % fmt.FRAME_ALIGN == 0
    assert decoded(data + behind) == (body, payload)


def test_payloads_of_many_blocks_are_verified_in_each() -> None:
    payload = bytes(range(256)) * (3 * 4096) + b"end"
    data = file_of(b"body", payload)
    assert decoded(data) == (b"body", payload)
    start = len(data) - len(payload) - (-len(payload) % 8)
    for place in (0, 1 << 20, (2 << 20) - 1, len(payload) - 1):
        with pytest.raises(DamagedFrame, match="payload has another checksum"):
            decoded(flip(data, 8 * (start + place)))


@pytest.mark.parametrize("payload", [b"", b"payload"])
def test_every_flipped_bit_and_every_cut_is_found(payload: bytes) -> None:
    data = file_of(b"body", payload)
    end = len(data)
    for bit in range(8 * 8, 8 * end):  # but for the magic, by which a foreign file is told
        with pytest.raises(DamagedFrame):
            decoded(flip(data, bit))
    for length in range(end):
        with pytest.raises(DamagedFrame):
            decoded(data[:length])


def test_kinds_of_file_and_frame_are_those_asked_for() -> None:
    data = file_of(b"body")
    with pytest.raises(DamagedFrame, match="a file of kind hint, expected manifest"):
        decode_lone(memoryview(data), "x", fmt.FILE_MANIFEST, fmt.KIND_HINT)
    with pytest.raises(DamagedFrame, match="a frame of kind 5 stands where it does not belong"):
        decode_lone(memoryview(data), "x", fmt.FILE_HINT, fmt.KIND_READER)


def test_the_seed_is_made_of_what_names_the_file() -> None:
    """The id of what has one, otherwise the number: of manifests, and all of version 1."""

    def seed(header: bytes) -> int:
        return header_seed(fmt.FileHeader._make(fmt.FILE_HEADER.unpack(header)))

    named = encode_file_header(fmt.FILE_INDEX, STORE_ID, CLOCK, segment_id=SEGMENT_ID)
    old = encode_file_header(fmt.FILE_INDEX, STORE_ID, CLOCK, segment_id=OLD_SEGMENT_ID)
    manifest = encode_file_header(fmt.FILE_MANIFEST, STORE_ID, CLOCK, number=1)
    other = encode_file_header(fmt.FILE_READER, STORE_ID, CLOCK)
    assert seed(named) == fmt.file_seed(STORE_ID, SEGMENT_ID)
    assert seed(old) == seed(manifest) == fmt.file_seed(STORE_ID, fmt.number_id(1))
    assert seed(other) == fmt.file_seed(STORE_ID, bytes(8))


def test_a_frame_of_another_file_is_damage() -> None:
    mine, other = file_of(b"body"), file_of(b"body", segment_id=SEGMENT_ID)
    with pytest.raises(DamagedFrame, match="header checksum"):
        decoded(mine[: fmt.FILE_HEADER_SIZE] + other[fmt.FILE_HEADER_SIZE :])


# --- publishing -----------------------------------------------------------------------------------


def folder() -> MemoryFileSystem:
    fs = MemoryFileSystem()
    fs.mkdir(PENDING)
    fs.mkdir("place")
    return fs


@pytest.mark.parametrize(
    ("fails", "done", "undone"),
    [("sync", [], ["link", "sync_dir"]), ("link", ["sync"], ["sync_dir"])],
)
def test_a_new_file_is_synced_before_it_has_its_name_and_its_folder_after(
    fails: str, done: list[str], undone: list[str]
) -> None:
    fs = FaultFileSystem(folder())
    fs.fail(fails)
    with pytest.raises(StorageIOError):
        publish_new(fs, OWNER, [b"one", b"two"], "place/x")
    assert all(fs.calls[kind] == 1 for kind in (*done, fails))
    assert all(fs.calls[kind] == 0 for kind in undone)
    assert contents_of(fs.inner) == {}  # type: ignore[arg-type]
    fs = FaultFileSystem(folder())
    assert publish_new(fs, OWNER, [b"one", b"two"], "place/x")
    assert (fs.calls["sync"], fs.calls["link"], fs.calls["sync_dir"]) == (1, 1, 1)
    assert contents_of(fs.inner) == {"place/x": b"onetwo"}  # type: ignore[arg-type]


def test_a_name_that_is_taken_stays_as_it_is() -> None:
    fs = folder()
    assert publish_new(fs, OWNER, [b"first"], "place/x")
    assert not publish_new(fs, OWNER, [b"second"], "place/x")
    assert contents_of(fs) == {"place/x": b"first"}


def test_publishing_over_a_file_replaces_it_in_one_step() -> None:
    fs = folder()
    for data in (b"first", b"second"):
        publish_over(fs, OWNER, [data], "place/x")
        assert contents_of(fs) == {"place/x": data}


def test_pending_names_start_with_their_owner_and_never_meet() -> None:
    fs = folder()
    names = {write_pending(fs, OWNER, [b""], sync=False) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith(f"{PENDING}/{OWNER}-") for name in names)


@pytest.mark.parametrize("publish", [publish_new, publish_over])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_call_leaves_the_whole_file_or_none(
    publish: Callable[[FileSystem, str, Sequence[Buffer], str], object], code: int
) -> None:
    counted = FaultFileSystem(folder())
    publish(counted, OWNER, [b"data"], "place/x")
    failed = 0
    for number in range(1, counted.calls.total() + 1):
        inner = folder()
        fs = FaultFileSystem(inner)
        fs.fail("any", at=number, code=code)
        try:
            publish(fs, OWNER, [b"data"], "place/x")
        except StorageError:
            failed += 1
        left = contents_of(inner)
        assert left.pop("place/x", b"data") == b"data"
        assert len(left) <= 1
        assert all(name.startswith(f"{PENDING}/{OWNER}-") for name in left)
    assert failed >= 3


def test_a_file_longer_than_its_limit_is_not_read() -> None:
    fs = folder()
    replace_file(fs, "place/x", bytes(100))
    assert read_file(fs, "place/x", 100) == bytes(100)
    with pytest.raises(CorruptError, match="100 bytes long, the limit is 99") as caught:
        read_file(fs, "place/x", 99)
    assert caught.value.file == "place/x"
    with pytest.raises(StorageIOError):
        read_file(fs, "place/none", 99)


def test_what_cannot_be_removed_is_left() -> None:
    fs = FaultFileSystem(folder())
    discard(fs, "place/none")
    replace_file(fs, "place/x", b"")
    fs.fail("unlink", code=errno.EIO)
    discard(fs, "place/x")
    assert fs.list("place") == ["x"]
