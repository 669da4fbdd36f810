"""Hostile bytes with right checksums: only typed errors, in bounded memory, and never a hang.

Checksums find accidents. Whoever can write to the folder can make any bytes pass them, so decoders
must not trust what a checksum vouches for.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.active import chain_start, hint_name
from mldb.log.checksum import check64, checks_and_digest, digest128
from mldb.log.file_header import encode_file_header
from mldb.log.frame import (
    DamagedFrame,
    Draft,
    Record,
    check_body,
    decode_commit,
    decode_entries,
    decode_header,
    encode_head,
    pack,
    unpack,
)
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.hints import load_hint
from mldb.log.index.columns import build_index
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.opened import index_source, open_index
from mldb.log.manifest import manifest_name
from mldb.log.manifest_codec import decode_manifest
from mldb.log.readers import highest_claim, registrations
from mldb.log.scan import Cursor, scan
from mldb.log.segment import segment_name
from mldb.log.tail import survey
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import (
    CLOCK,
    SEGMENT_ID,
    STORE_ID,
    History,
    content,
    door,
    histories,
    mutated,
    open_log,
    store,
)
from tests.support.parts import examples
from tests.support.segments import segment_ids

MUST = fmt.MUST_UNDERSTAND
STORED = 16 | MUST
SEED = fmt.file_seed(STORE_ID, SEGMENT_ID)
HARMLESS = (DamagedFrame, CorruptError, FormatVersionError)
MEMORY_MAX = 64 << 20


@pytest.fixture
def bounded_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that needs more than MEMORY_MAX at once, whatever lengths it meets."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY_MAX, f"{request.node.name}: {peak} bytes"


def quiet(call: Callable[[], object], errors: tuple[type[Exception], ...] = HARMLESS) -> bool:
    """Run a decoder; tell whether it took its input. Any error but these fails the test."""
    try:
        call()
    except errors:
        return False
    return True


def framed(
    kind: int,
    body: bytes,
    *,
    payload: bytes = b"",
    offset: int = 128,
    seed: int = SEED,
    flags: int = 0,
) -> bytes:
    """A frame with right checksums around any body and payload."""
    log2 = fmt.INDEX_BLOCK_LOG2
    checks, _ = checks_and_digest([payload] if payload else [], log2)
    head = encode_head(kind, 1, flags, body, checks, len(payload), log2, 6, 1, 1, seed, offset)
    return head + payload + bytes(-len(payload) % 8)


# --- frames, entries, commits ---------------------------------------------------------------------


@given(st.binary(max_size=400), st.integers(0, 50))
def test_headers_of_any_bytes(data: bytes, offset: int) -> None:
    quiet(lambda: decode_header(data, offset, SEED, len(data)))
    quiet(lambda: decode_header(fmt.FRAME_MAGIC + data, 0, SEED, len(data) + 4))


HEADER = st.tuples(
    st.just(fmt.FRAME_MAGIC),
    st.integers(0, 2**16 - 1),
    st.integers(0, 255),
    st.integers(0, 3),
    st.integers(0, 100) | st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 200) | st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.just(0),
)


@given(HEADER, st.integers(0, 2**40), st.binary(max_size=300))
@examples(200)
def test_any_header_that_passes_its_checksum(
    header: tuple[Any, ...], offset: int, tail: bytes
) -> None:
    start = fmt.FRAME_HEADER.pack(*header)[: fmt.FRAME_CHECKED_SIZE]
    check = check64(start, (SEED + offset) % 2**64)
    data = start + check.to_bytes(8, "little") + tail

    def decode() -> None:
        frame = decode_header(data, offset, SEED, offset + len(data), offset)
        assert offset < frame.payload_offset <= frame.end <= offset + len(data)
        decode_entries(check_body(data, frame, offset), frame)

    quiet(decode)


DRAFT = [b"\x01key", 0, 0, 0, 4, bytes(16), 0, b"attr", b"\x01owner"]


@given(mutated([[DRAFT, DRAFT], None]) | mutated([[DRAFT[:8], [*DRAFT, 7]], None, "more"]))
@example({0: 1})
@example([[dict.fromkeys(range(9))], None])
@example([[dict.fromkeys(range(12))], None])
@examples(200)
def test_entries_with_anything_in_them(body: object) -> None:
    data = framed(STORED, pack(body), payload=bytes(8), flags=fmt.FLAG_KEYED)
    frame = decode_header(data, 128, SEED, 128 + len(data), 128)

    def decode() -> None:
        drafts, _ = decode_entries(check_body(data, frame, 128), frame)
        for draft in drafts:
            assert 0 < len(draft.key) <= fmt.KEY_BYTES_MAX
            assert len(draft.attr) <= fmt.ATTR_BYTES_MAX
            assert len(draft.owner) <= fmt.KEY_BYTES_MAX
            assert 0 <= draft.offset <= draft.offset + draft.length <= 8

    quiet(decode, (DamagedFrame,))


@given(st.binary(max_size=64))
def test_entries_of_any_bytes(body: bytes) -> None:
    data = framed(STORED, body, flags=fmt.FLAG_KEYED)
    frame = decode_header(data, 128, SEED, 128 + len(data), 128)
    quiet(lambda: decode_entries(check_body(data, frame, 128), frame), (DamagedFrame,))


@pytest.mark.parametrize(
    "change",
    [
        {"key": b""},
        {"key": bytes(fmt.KEY_BYTES_MAX + 1)},
        {"key": "text"},
        {"attr": bytes(fmt.ATTR_BYTES_MAX + 1)},
        {"flags": 256},
        {"flags": -1},
        {"flags": True},
        {"encoding": 256},
        {"encoding": -1},
        {"offset": -1},
        {"offset": 1},
        {"length": -1},
        {"length": 9},
        {"length": 2**63},
        {"digest": bytes(15)},
        {"base": -1},
        {"base": 2**63},
        {"owner": bytes(fmt.KEY_BYTES_MAX + 1)},
        {"owner": "text"},
        {"owner": None},
    ],
)
def test_an_entry_out_of_range_is_damaged(change: dict[str, object]) -> None:
    sound = Draft(b"k", 0, 0, 0, 8, bytes(16), 0, b"", b"")
    draft = list({**sound._asdict(), **change}.values())
    data = framed(STORED, pack([[draft], None]), payload=bytes(8), flags=fmt.FLAG_KEYED)
    frame = decode_header(data, 128, SEED, 128 + len(data), 128)
    with pytest.raises(DamagedFrame, match="out of range"):
        decode_entries(check_body(data, frame, 128), frame)


COMMIT = [0, 1, CLOCK, CLOCK, 0, bytes(16), 0, {}, bytes(16), []]


@given(mutated(COMMIT) | mutated(COMMIT[:8]) | mutated([*COMMIT, 7]))
@example(dict.fromkeys(range(10)))
@examples(200)
def test_commits_with_anything_in_them(body: object) -> None:
    quiet(lambda: decode_commit(pack(body)), (DamagedFrame,))


@given(st.binary(max_size=64))
def test_commits_of_any_bytes(body: bytes) -> None:
    quiet(lambda: decode_commit(body), (DamagedFrame,))


@given(
    st.lists(st.tuples(st.integers(0, 40) | st.just(STORED), st.binary(max_size=40)), max_size=5)
)
def test_a_scan_of_any_frames(frames: list[tuple[int, bytes]]) -> None:
    data = segment_header()
    for kind, body in frames:
        data += framed(kind | MUST, body, offset=len(data), flags=len(body) % 2)
    quiet(lambda: list(scan(memoryview(data), start(), SEED, SEGMENT_ID, verify_after=0)))
    assert survey(memoryview(data), 0, SEED).commits == sum(kind == 1 for kind, _ in frames)


def segment_header() -> bytes:
    return encode_file_header(
        fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=SEGMENT_ID, base_lsn=1, published=1
    )


def start() -> Cursor:
    return Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(STORE_ID, SEGMENT_ID))


@given(mutated({"durable": 5, "columns": {}}) | mutated(COMMIT), st.sampled_from([1, 2]))
@example({"durable": math.inf}, 2)
def test_claims_of_durability_with_anything_in_them(body: object, kind: int) -> None:
    data = bytes(128) + framed(kind | MUST, pack(body))
    tail = survey(memoryview(data), 0, SEED)
    assert tail.commits == (kind == 1)
    assert type(tail.durable) is int


# --- bombs ----------------------------------------------------------------------------------------

BOMBS = {
    "array of 2^32 - 1": b"\xdd\xff\xff\xff\xff",
    "map of 2^32 - 1": b"\xdf\xff\xff\xff\xff",
    "bytes of 2^32 - 1": b"\xc6\xff\xff\xff\xff",
    "text of 2^32 - 1": b"\xdb\xff\xff\xff\xff",
    "extension of 2^32 - 1": b"\xc9\xff\xff\xff\xff\x01",
    "arrays of their own length": b"\xdc\x10\x00" * 1365,
    "deep arrays": b"\x91" * 100_000,
    "deep maps": b"\x81\xc0" * 100_000,
    "many empty arrays": b"\xdd\x00\x01\x86\xa0" + b"\x90" * 100_000,
    "a map with a list for a key": b"\x81\x90\xc0",
    "no text": b"\x92\xa2\xff\xff\xc0",
    "an unknown time": b"\x92\xc7\x0c\xff" + b"\xff" * 12 + b"\xc0",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.usefixtures("bounded_memory")
def test_bombs_in_every_body(bomb: bytes) -> None:
    quiet(lambda: unpack(bomb), (ValueError,))
    quiet(lambda: decode_commit(bomb), (DamagedFrame,))
    for body in (bomb, b"\x92" + bomb + b"\xc0", b"\x92\x91" + bomb + b"\xc0"):
        data = framed(STORED, body, flags=fmt.FLAG_KEYED)
        frame = decode_header(data, 128, SEED, 128 + len(data), 128)
        if bomb is BOMBS["many empty arrays"] and body is bomb:
            # No entries, an event that says [], and what a newer version may have put behind them.
            assert decode_entries(check_body(data, frame, 128), frame) == ([], [])
            continue
        with pytest.raises(DamagedFrame):
            decode_entries(check_body(data, frame, 128), frame)
    for data in (lone_file(fmt.FILE_MANIFEST, 3 | MUST, bomb), old_manifest(bomb)):
        with pytest.raises(CorruptError):
            decode_manifest(data, "m")
    fs = disk(
        {
            "readers/x": lone_file(fmt.FILE_READER, 4 | MUST, bomb),
            "hints/x": lone_file(fmt.FILE_HINT, 5, b"\x91" + bomb, store_id=bytes(16)),
        }
    )
    held = fs.lock("readers/x")
    assert held.try_acquire()
    assert [(reader.lowest, reader.acknowledged) for reader in registrations(fs)] == [(0, 0)]
    assert highest_claim(fs) == fmt.LSN_MAX
    held.close()
    assert highest_claim(fs) == 0
    load_hint(fs, "x")


def lone_file(kind: int, frame_kind: int, body: bytes, *, store_id: bytes = STORE_ID) -> bytes:
    """A file of one frame, whose number is 0."""
    seed = fmt.file_seed(store_id, fmt.number_id(0))
    return encode_file_header(kind, store_id, CLOCK) + framed(frame_kind, body, seed=seed)


def old_manifest(body: bytes) -> bytes:
    """A manifest 3 of version 1."""
    raw = fmt.FILE_HEADER.pack(
        *(fmt.FILE_MAGIC, 1, fmt.FILE_MANIFEST, 128, STORE_ID, 3, 0, CLOCK, fmt.WRITER),
        *(fmt.NO_ID, 0, 0),
    )[:-8]
    header = raw + check64(raw).to_bytes(8, "little")
    return header + framed(3 | MUST, body, seed=fmt.file_seed(STORE_ID, fmt.number_id(3)))


def disk(files: dict[str, bytes]) -> MemoryFileSystem:
    fs = MemoryFileSystem()
    for folder in ("segments", "hints", "readers", "pending", "lost+found"):
        fs.mkdir(folder)
    for name, data in files.items():
        fs.open(name, "create").pwritev([data], 0)
    return fs


# --- manifests ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bounded_memory")
def test_an_enormous_manifest_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = disk({manifest_name(1): b"x"})
    monkeypatch.setattr("mldb.log.fs.memory_disk.MemoryFile.size", lambda file: 1 << 40)
    with pytest.raises(CorruptError, match="is 1099511627776 bytes long, the limit is"):
        open_log(fs, "r")


# --- indexes --------------------------------------------------------------------------------------


def questions(index: MappedIndex, history: History) -> None:
    """Ask everything; answers may be wrong, since the index lies, but nothing else may happen."""
    keys = {key for entries in history.entries for key, _ in entries} | {b"", b"\x01never"}
    for call in (
        index.check,
        index.dump,
        lambda: list(index.keys(b"")),
        lambda: list(index.keys(b"\x01")),
    ):
        quiet(call, (CorruptError,))
    for key in keys:
        quiet(lambda: index.versions(key), (CorruptError,))  # noqa: B023
        for intervals in history.heads():
            quiet(lambda: index.newest(key, intervals), (CorruptError,))  # noqa: B023
    for lsn in range(12):
        quiet(lambda: index.commit_at(lsn), (CorruptError,))  # noqa: B023
        quiet(lambda: list(index.commits(0, lsn)), (CorruptError,))  # noqa: B023
        quiet(lambda: index.last_commit(1, 20, "epoch", lsn), (CorruptError,))  # noqa: B023


def index_file(fields: object, payload: bytes) -> MemoryFileSystem:
    header = encode_file_header(fmt.FILE_INDEX, STORE_ID, CLOCK, segment_id=SEGMENT_ID)
    return disk({"segments/x.idx": header + framed(2 | MUST, pack(fields), payload=payload)})


def ask(fs: MemoryFileSystem, history: History) -> None:
    source = index_source(fs, "segments/x.idx", STORE_ID, SEGMENT_ID, fmt.FILE_INDEX)
    index, _ = open_index(source, fmt.FILE_HEADER_SIZE, "first")
    questions(index, history)


@given(histories(), st.data())
@examples(150)
def test_indexes_with_an_impossible_directory(history: History, data: st.DataObject) -> None:
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    fields = data.draw(mutated({"columns": unpack(pack(image.directory))}))
    fs = index_file(fields, b"".join(map(bytes, image.payload)))
    quiet(lambda: ask(fs, history), (CorruptError, FormatVersionError))


@given(
    histories(),
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=16)), min_size=1),
)
@examples(150)
def test_indexes_with_anything_in_their_columns(
    history: History, changes: list[tuple[int, bytes]]
) -> None:
    entries, rows = history.memory().dump()
    image = build_index(entries, rows)
    payload = bytearray(b"".join(map(bytes, image.payload)))
    for place, value in changes:
        at = place % len(payload)
        payload[at : at + len(value)] = value[: len(payload) - at]
    fs = index_file({"columns": image.directory}, bytes(payload))
    quiet(lambda: ask(fs, history), (CorruptError, FormatVersionError))


def test_an_index_that_points_elsewhere_is_corrupt_when_it_is_read() -> None:
    """Its rows name places outside the frame, the file, or in the middle of other bytes."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"12345678")
    view = log.head()
    (entry,) = view.versions(b"\x01a")
    reading = door(log)
    for wrong in (
        entry._replace(offset=entry.offset + 1),
        entry._replace(offset=2**62),
        entry._replace(length=2**62),
        entry._replace(frame=0),
        entry._replace(frame=entry.frame + 8),
        entry._replace(frame=2**62),
    ):
        with pytest.raises(CorruptError):
            reading.version(view, b"\x01a", wrong, wrong.length, "a")
    assert bytes(reading.version(view, b"\x01a", entry, 8, "a")) == b"12345678"


# --- hints and registrations ----------------------------------------------------------------------


@given(st.data())
@examples(150)
def test_index_hints_with_anything_in_them(data: st.DataObject) -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    for number in range(3):
        store(log, b"\x01%d" % number, b"data")
    expected = content(log)
    log.close()
    (segment,) = segment_ids(fs)
    name = hint_name(segment)
    raw = read_file(fs, name)
    seed = fmt.file_seed(log.store_id, segment)
    frame = decode_header(raw, 128, seed, len(raw))
    payload = raw[frame.payload_offset :][: frame.header.payload_length]
    fields = data.draw(mutated(unpack(check_body(raw, frame))))
    frame_again = framed(2 | MUST, pack(fields), payload=payload, seed=seed)
    replace_file(fs, name, raw[:128] + frame_again)

    def use() -> None:
        reader = open_log(fs, "r")
        found = content(reader)
        if reader.state.distrusted:
            assert found == expected

    quiet(use, (CorruptError, FormatVersionError))


REGISTRATION = [12, "host", CLOCK, 5, 3]


@given(mutated(REGISTRATION) | mutated(REGISTRATION[:4]) | st.binary(max_size=30))
@example([*REGISTRATION, "of a newer mldb"])
@example([12, "host", CLOCK, 5, fmt.LSN_MAX])
@example([12, "host", CLOCK, 2**63, 2**64 - 1])
@example([12, "host", CLOCK, 5, math.nan])
def test_registrations_with_anything_in_them(body: object) -> None:
    """One that cannot be read needs everything, and claims everything while its process lives."""
    raw = body if isinstance(body, bytes) else pack(body)
    fs = disk({"readers/x": lone_file(fmt.FILE_READER, 4 | MUST, raw)})
    held = fs.lock("readers/x")
    assert held.try_acquire()
    (reader,) = registrations(fs)
    claim = highest_claim(fs)
    held.close()
    fields = plain_fields(body)
    if fields is not None:
        found = (reader.pid, reader.host, reader.started_ns, reader.lowest, reader.acknowledged)
        assert found == fields
        assert claim == max(reader.acknowledged, 0) or reader.is_damaged
    elif not isinstance(body, bytes):
        assert (reader.is_damaged, reader.lowest, reader.acknowledged) == (True, 0, 0)
    if reader.is_damaged:
        assert claim == fmt.LSN_MAX
    assert highest_claim(fs) == max(reader.acknowledged, 0)
    assert len(registrations(fs)) == 1  # reading changes nothing


def plain_fields(body: object) -> tuple[int, str, int, int, int] | None:
    """The five fields of a registration that can be read; version 1 has no claim."""
    if not isinstance(body, list) or len(body) < 4:
        return None
    pid, host, started, lowest, acknowledged = [*body[:5], 0][:5]
    if {type(item) for item in (pid, started, lowest, acknowledged)} != {int}:
        return None
    return (pid, host, started, lowest, acknowledged) if isinstance(host, str) else None


@given(st.binary(max_size=60))
def test_value_hints_with_any_body(body: bytes) -> None:
    load_hint(disk({"hints/x": lone_file(fmt.FILE_HINT, 5, body, store_id=bytes(16))}), "x")


# --- whole stores ---------------------------------------------------------------------------------


def small_store() -> MemoryFileSystem:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=700)
    for number in range(6):
        store(log, b"\x01%d" % number, bytes(100), number)
    log.close()
    return fs


SMALL = small_store().image()
NAMES = sorted(name for name in SMALL.files if name not in ("LOCK", "GATE"))


@given(
    st.sampled_from(NAMES),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=40),
    st.booleans(),
)
@examples(250)
def test_any_bytes_in_any_file_of_a_store(name: str, place: int, data: bytes, rest: bool) -> None:
    """A store opens or says why not; what it then hands out is what was stored."""
    fs = MemoryFileSystem(image=SMALL)
    size = fs.open(name, "r").size()
    fs.open(name, "rw").pwritev([data], place % size)
    expected = content(open_log(MemoryFileSystem(image=SMALL), "r"))

    def use() -> None:
        log = open_log(fs, "rw" if rest else "r", segment_bytes=700)
        found = content(log)
        assert all(expected.get(key) == value for key, value in found.items())
        log.close()

    quiet(use, (CorruptError, FormatVersionError))


@pytest.mark.parametrize("number", range(len(NAMES)))  # the names themselves are random
def test_files_of_other_kinds_in_the_place_of_one(number: int) -> None:
    """Every file of a store under the name of every other one."""
    name = NAMES[number]
    expected = content(open_log(MemoryFileSystem(image=SMALL), "r"))
    for other in NAMES:
        if other == name:
            continue
        files = {**SMALL.files, name: SMALL.files[other]}
        fs = MemoryFileSystem(image=SMALL._replace(files=files))

        def use(fs: MemoryFileSystem = fs) -> None:
            found = content(open_log(fs, "r"))
            assert all(expected.get(key) == value for key, value in found.items())

        quiet(use, (CorruptError, FormatVersionError))


def test_a_side_index_under_the_name_of_the_active_segment_is_refused() -> None:
    """Its store and number fit; it was taken for a segment that a dead process had sealed."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"data")
    log.close()
    (segment,) = segment_ids(fs)
    raw = read_file(fs, hint_name(segment))
    header = encode_file_header(fmt.FILE_INDEX, log.store_id, CLOCK, segment_id=segment)
    fs.unlink(manifest_name(2))
    replace_file(fs, segment_name(segment), header + raw[128:])
    with pytest.raises(CorruptError, match=f"this is index {segment.hex()}"):
        open_log(fs)


def test_a_missing_segment_is_corruption_that_names_it() -> None:
    fs = MemoryFileSystem(image=SMALL)
    first = segment_ids(fs)[0]
    fs.unlink(segment_name(first))
    log = open_log(fs, "r")
    with pytest.raises(CorruptError, match=f"segment {first.hex()} is missing") as caught:
        content(log)
    assert caught.value.file == segment_name(first)


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_missing_active_segment_is_corruption_that_names_it(mode: Any) -> None:
    """It was told as "open failed with ENOENT", which is no word about what to do."""
    fs = MemoryFileSystem(image=SMALL)
    log = open_log(fs, "r")
    active = log.state.active.id
    log.close()
    fs.unlink(segment_name(active))
    before = contents_of(fs)
    with pytest.raises(
        CorruptError, match=f"segment {active.hex()} is missing. The log.*backup"
    ) as caught:
        open_log(fs, mode)
    assert caught.value.file == segment_name(active)
    assert contents_of(fs) == before


def test_a_commit_with_an_impossible_time_is_damaged() -> None:
    """A time beyond 64 bits passed the scan, and stopped the seal with an OverflowError."""
    chain = digest128(chain_start(STORE_ID, SEGMENT_ID))
    for field in (2, 3):
        body = [*COMMIT]
        body[5], body[field] = chain, 2**63
        data = segment_header() + framed(1 | MUST, msgpack.packb(body))
        cursor = start()
        assert list(scan(memoryview(data), cursor, SEED, SEGMENT_ID)) == []
        assert "out of range" in cursor.problem


def test_a_hostile_record_leaves_others_readable() -> None:
    """Kind, flags and entries as no writer of events makes them; the log does not care."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    log.commit([Record(40, [], extra={"any": ["thing"]})], lambda view: (0, view.commit))
    store(log, b"\x01a", b"data")
    assert content(open_log(fs, "r")) == {b"\x01a": b"data"}
