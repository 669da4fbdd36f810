"""Manifests: put-if-absent, the highest valid one counts, and no process misses one."""

from __future__ import annotations

import random
import re
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.frame import encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.manifest import (
    KEPT,
    PENDING,
    Manifest,
    Mark,
    SegmentInfo,
    decode_manifest,
    encode_manifest,
    install_manifest,
    load_manifest,
    manifest_name,
    manifest_numbers,
)
from mldb.log.segment import segment_name
from mldb.log.state import load_newest
from tests.support.logs import CLOCK, STORE_ID, content, flip, open_log, store

NUMBERS = st.integers(0, fmt.LSN_MAX)
BYTES_16 = st.binary(min_size=16, max_size=16)
ASCENDING = st.lists(NUMBERS, unique=True, max_size=4).map(sorted)


@st.composite
def segments(draw: st.DrawFn, number: int) -> SegmentInfo:
    first, last = sorted((draw(NUMBERS), draw(NUMBERS)))
    return SegmentInfo(
        number,
        draw(st.sampled_from([fmt.FILE_SEGMENT, fmt.FILE_COMPACTED])),
        draw(BYTES_16),
        draw(NUMBERS),
        draw(st.sampled_from(["", "segments/0000000007.idx"])),
        draw(NUMBERS),
        first,
        last,
        draw(NUMBERS),
        draw(NUMBERS),
        draw(BYTES_16),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    numbers = draw(st.lists(NUMBERS, unique=True, min_size=1, max_size=4))
    lsns = [lsn for lsn in draw(ASCENDING) if lsn]
    return Manifest(
        draw(NUMBERS),
        draw(BYTES_16),
        draw(st.integers(fmt.TIME_MIN, fmt.TIME_MAX)),
        tuple(draw(segments(number)) for number in numbers[1:]),
        numbers[0],
        draw(BYTES_16),
        Mark(draw(NUMBERS), draw(NUMBERS), draw(NUMBERS), draw(BYTES_16)),
        draw(NUMBERS),
        tuple((lsn, draw(st.integers(0, lsn - 1))) for lsn in lsns),
        draw(st.none() | ASCENDING.map(tuple)),
    )


MARK = Mark(1, 128, 0, bytes(16))
FIRST = Manifest(1, STORE_ID, CLOCK, (), 1, STORE_ID, MARK, 0, ((9, 2),), (1, 2))


@given(manifests())
def test_manifests_come_back(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest), "MANIFEST") == manifest


def test_every_flipped_bit_is_found() -> None:
    info = SegmentInfo(3, 1, STORE_ID, 900, "", 800, 1, 5, 0, 2, bytes(16))
    data = encode_manifest(replace(FIRST, segments=(info,)))
    for bit in range(8 * len(data)):
        with pytest.raises((CorruptError, FormatVersionError)):
            decode_manifest(flip(data, bit), "MANIFEST-0000000001")


@given(manifests(), st.data())
def test_every_cut_and_every_byte_more_is_found(manifest: Manifest, data: st.DataObject) -> None:
    raw = encode_manifest(manifest)
    with pytest.raises(CorruptError):
        decode_manifest(raw[: data.draw(st.integers(0, len(raw) - 1))], "MANIFEST")
    with pytest.raises(CorruptError, match="bytes follow"):
        decode_manifest(raw + data.draw(st.binary(min_size=1, max_size=9)), "MANIFEST")


@pytest.mark.parametrize(
    "changes",
    [
        {"number": -1},
        {"number": 1.0},
        {"store_id": b"short"},
        {"active": "1"},
        {"jumps": [(5, 7)]},
        {"jumps": [(5, float("inf"))]},
        {"kept": [3, 3]},
        {"kept": ["a"]},
        {"lsn_floor": 1 << 63},
        {"segments": [{"number": 2}]},
        {"segments": [asdict(SegmentInfo(1, 1, STORE_ID, 1, "", 1, 1, 1, 0, 0, bytes(16)))]},
        {"segments": [asdict(SegmentInfo(2, 1, STORE_ID, 1, "", 1, 2, 1, 0, 0, bytes(16)))]},
        {"segments": [asdict(SegmentInfo(2, 1, STORE_ID, -1, "", 1, 1, 1, 0, 0, bytes(16)))]},
        {"segments": [asdict(SegmentInfo(2, 1, STORE_ID, 1, "../x", 1, 1, 1, 0, 0, bytes(16)))]},
        {"mark": {"segment": 1, "offset": -5, "lsn": 0, "chain": bytes(16)}},
        {"mark": None},
        {"unheard_of": 1},
    ],
)
def test_impossible_fields_are_corrupt_although_the_checksum_is_right(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A jump to a later commit hung the opening; an infinite one was an OverflowError."""
    monkeypatch.setattr("mldb.log.manifest.asdict", lambda manifest: asdict(manifest) | changes)
    with pytest.raises(CorruptError, match="the manifest is damaged") as caught:
        decode_manifest(encode_manifest(FIRST), "MANIFEST-0000000001")
    assert caught.value.file == "MANIFEST-0000000001"


def test_a_manifest_of_another_number_or_kind_is_refused() -> None:
    moved = encode_manifest(replace(FIRST, number=2))
    other = encode_file_header(fmt.FILE_MANIFEST, STORE_ID, 1, 0, CLOCK) + moved[128:]
    with pytest.raises(CorruptError, match="header checksum"):
        decode_manifest(other, "MANIFEST-0000000001")
    segment = encode_file_header(fmt.FILE_SEGMENT, STORE_ID, 1, 1, CLOCK)
    with pytest.raises(FormatVersionError, match="is a segment, not a manifest"):
        decode_manifest(segment, "MANIFEST-0000000001")


# --- installing -----------------------------------------------------------------------------------


def folder() -> MemoryFileSystem:
    fs = MemoryFileSystem()
    fs.mkdir(PENDING)
    fs.mkdir("segments")
    return fs


def test_the_first_to_install_a_number_wins() -> None:
    fs = folder()
    assert install_manifest(fs, FIRST)
    assert not install_manifest(fs, replace(FIRST, lsn_floor=7))
    assert load_manifest(fs, 1) == FIRST
    assert fs.list(PENDING) == []


def test_the_last_two_are_kept() -> None:
    fs = folder()
    for number in range(1, 6):
        assert install_manifest(fs, replace(FIRST, number=number))
        assert manifest_numbers(fs) == [*range(max(1, number - KEPT + 1), number + 1)]


def test_names_of_other_files_are_no_manifests() -> None:
    """Digits of other scripts are digits to a regular expression, and led to a missing file."""
    fs = folder()
    install_manifest(fs, FIRST)
    for name in (
        "MANIFEST-٠٠٠٠٠٠٠٠٠٩",
        "MANIFEST-2",
        "MANIFEST-00000000021",
        "MANIFEST-0000000009\n",
    ):
        fs.open(name, "create")
    assert manifest_numbers(fs) == [1]
    assert load_newest(fs, []) == FIRST


def damage(fs: MemoryFileSystem, name: str, offset: int = 200) -> None:
    file = fs.open(name, "rw")
    file.pwritev([bytes([file.pread(1, offset)[0] ^ 1])], offset)


def test_a_damaged_newest_one_is_stepped_over_and_reported() -> None:
    fs = folder()
    second = replace(FIRST, number=2)
    install_manifest(fs, FIRST)
    install_manifest(fs, second)
    damage(fs, manifest_name(2))
    distrusted: list[str] = []
    assert load_newest(fs, distrusted) == FIRST
    assert re.search("MANIFEST-0000000002", distrusted[0])
    damage(fs, manifest_name(1))
    with pytest.raises(CorruptError, match="MANIFEST-0000000002"):
        load_newest(fs, [])


def test_a_damaged_one_that_may_have_published_a_segment_is_not_stepped_over() -> None:
    fs = folder()
    install_manifest(fs, FIRST)
    install_manifest(fs, replace(FIRST, number=2, active=2))
    damage(fs, manifest_name(2))
    fs.open(segment_name(2), "create")
    with pytest.raises(CorruptError, match="MANIFEST-0000000002"):
        load_newest(fs, [])


def test_a_newer_format_is_never_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = folder()
    install_manifest(fs, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(fmt, "FORMAT_VERSION", 2)
        install_manifest(fs, replace(FIRST, number=2))
    with pytest.raises(FormatVersionError, match="version 2"):
        load_newest(fs, [])


# --- following ------------------------------------------------------------------------------------


def test_whoever_slept_while_manifests_came_and_went_wakes_up() -> None:
    """Old manifests are removed, so the next number that a sleeper waits for may be gone already.

    A reader stayed where it was for ever. A writer took the footer in its old segment for the work
    of a dead process, and replaced the segment after it, which was in use.
    """
    fs = MemoryFileSystem()
    first = open_log(fs, segment_bytes=600)
    sleeper, reader = open_log(fs, segment_bytes=600), open_log(fs, "r")
    for number in range(30):
        store(first, b"\x01%d" % number, bytes([number]) * 100, number)
    assert len(manifest_numbers(fs)) == KEPT
    assert manifest_numbers(fs)[0] > 4
    assert reader.head().commit == first.head().commit
    store(sleeper, b"\x01sleeper", b"awake", 31)
    expected = {b"\x01%d" % number: bytes([number]) * 100 for number in range(30)}
    for log in (first, sleeper, reader):
        assert content(log) == expected | {b"\x01sleeper": b"awake"}
        log.close()


@pytest.mark.parametrize("opener", range(3))
def test_writers_that_take_turns_see_each_other(opener: int, seed: int) -> None:
    """Random turns of three writers and a reader, with seals, closes and openings in between."""
    rng = random.Random(seed)
    fs = MemoryFileSystem()
    logs = [open_log(fs, segment_bytes=500) for _ in range(3)]
    reader = open_log(fs, "r")
    expected: dict[bytes, bytes] = {}
    for number in range(120):
        turn = rng.choice([0, 1, 2, 2, 2, opener])
        if rng.random() < 0.15:
            logs[turn].close()
            logs[turn] = open_log(fs, segment_bytes=500)
        key, data = b"\x01%d" % rng.randrange(20), rng.randbytes(rng.randrange(1, 200))
        store(logs[turn], key, data, number)
        expected[key] = data
        if rng.random() < 0.2:
            assert content(reader) == expected
        if rng.random() < 0.1:
            assert content(rng.choice(logs)) == expected
    for log in (*logs, reader):
        assert content(log) == expected
        log.close()
    assert fs.list("lost+found") == []


def test_a_manifest_installed_between_reading_and_looking_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number to wait for was one above those listed, so one that had just come was skipped."""
    fs = MemoryFileSystem()
    writer = open_log(fs, segment_bytes=300)
    store(writer, b"\x01a", bytes(400))
    real = load_newest

    def late(fs: MemoryFileSystem, distrusted: list[str], numbers: list[int]) -> Manifest:
        manifest = real(fs, distrusted, numbers)
        monkeypatch.undo()
        store(writer, b"\x01b", bytes(400))
        return manifest

    monkeypatch.setattr("mldb.log.log.load_newest", late)
    reader = open_log(fs, "r")
    assert content(reader) == content(writer)
    assert reader.head().number == writer.head().number


def test_a_damaged_newer_manifest_does_not_stop_those_that_follow() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    damage(fs, manifest_name(2))
    log, reader = open_log(fs), open_log(fs, "r")
    assert log.recovery.distrusted
    store(log, b"\x01b", b"2")
    log.close()
    assert manifest_numbers(fs)[-1] == 3
    assert content(reader) == {b"\x01a": b"1", b"\x01b": b"2"}
    assert content(open_log(fs)) == content(reader)


# --- a manifest that was deleted ------------------------------------------------------------------


def sealed_twice(fs: MemoryFileSystem) -> dict[bytes, bytes]:
    """A store with three segments that was not closed; returns its content."""
    log = open_log(fs, segment_bytes=2000)
    number = 0
    while log.head().number < 3:
        store(log, b"\x01%d" % number, bytes(500))
        number += 1
    for more in range(2):
        store(log, b"\x01more%d" % more, bytes(1))
    assert manifest_numbers(fs) == [2, 3]
    found = content(log)
    fs.kill()
    return found


def test_a_segment_in_use_that_no_manifest_names_is_corruption() -> None:
    """Without the newest manifest, the newest segment was once dropped without a word."""
    fs = MemoryFileSystem()
    expected = sealed_twice(fs)
    saved = fs.open(manifest_name(3), "r").pread(1 << 20, 0)
    before = fs.image().files
    fs.unlink(manifest_name(3))
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError, match="the newest manifest was deleted") as caught:
            open_log(fs, mode)
        assert caught.value.file == segment_name(3)
    assert fs.image().files.keys() >= before.keys() - {manifest_name(3)}
    fs.open(manifest_name(3), "create").pwritev([saved], 0)
    assert content(open_log(fs)) == expected


@pytest.mark.parametrize("size", [0, 50, 128, 129, 1000])
def test_a_segment_left_in_front_of_its_manifest_is_set_aside(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a process that died between the two; what it holds is kept in case it was not so."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=600)
    store(log, b"\x01a", bytes(500))
    data = encode_file_header(fmt.FILE_SEGMENT, log.store_id, 2, 1, CLOCK) + bytes(2000)
    fs.open(segment_name(2), "create").pwritev([data[:size]], 0)
    fs.kill()
    log = open_log(fs, segment_bytes=600)
    store(log, b"\x01b", bytes(500))
    assert content(log) == {b"\x01a": bytes(500), b"\x01b": bytes(500)}
    kept = fs.list("lost+found")
    if size <= fmt.FILE_HEADER_SIZE:
        assert (kept, caplog.messages) == ([], [])
    else:
        assert fs.open(f"lost+found/{kept[0]}", "r").pread(5000, 0) == data[:size]
        assert "no manifest names it" in caplog.text


def test_segments_without_any_manifest_are_not_taken_for_an_empty_folder() -> None:
    fs = MemoryFileSystem()
    sealed_twice(fs)
    for number in manifest_numbers(fs):
        fs.unlink(manifest_name(number))
    with pytest.raises(CorruptError, match="manifests were deleted"):
        open_log(fs)
    with pytest.raises(FormatVersionError):
        open_log(fs, "r")


def test_folders_that_a_copy_lost_are_made_again() -> None:
    """Many tools skip empty folders; the first seal or close of such a copy failed."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    image = fs.image()
    kept = {
        path: number for path, number in image.files.items() if path.startswith(("MANI", "seg"))
    }
    names = frozenset({*(path for path in kept if "/" not in path), "segments"})
    folders = {"": names, "segments": image.folders["segments"]}
    copy = MemoryFileSystem(image=image._replace(files=kept, folders=folders))
    assert content(open_log(copy, "r")) == {b"\x01a": b"1"}
    log = open_log(copy)
    store(log, b"\x01b", b"2")
    log.close()
    assert content(open_log(copy)) == {b"\x01a": b"1", b"\x01b": b"2"}
