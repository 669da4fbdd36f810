"""Segments that no manifest names: left by a death, or by a manifest that somebody deleted."""

from __future__ import annotations

import pytest

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.grown import Grown
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.index.lineage import NO_JUMPS
from mldb.log.manifest import Manifest, Mark, SegmentInfo, manifest_name, manifest_numbers
from mldb.log.newest import load_newest
from mldb.log.orphans import Orphan, in_use, orphans, published_by, refuse_lost_manifest
from mldb.log.segment import segment_name
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import (
    CLOCK,
    OLD_SEGMENT_ID,
    SEGMENT_ID,
    STORE_ID,
    build_segment,
    content,
    flip,
    open_log,
    store,
)
from tests.support.segments import segment_names

SEALED_ID = bytes(range(32, 48))
STRAY_ID = bytes(range(64, 80))
NAME = segment_name(STRAY_ID)


def manifest(active: bytes = SEGMENT_ID) -> Manifest:
    """Manifest 5, with a sealed and an active segment."""
    info = SegmentInfo(SEALED_ID, 1, STORE_ID, 900, "", 800, 1, 5, 0, 2, bytes(16))
    mark = Mark(active, fmt.FILE_HEADER_SIZE, 0, bytes(16))
    return Manifest(5, STORE_ID, CLOCK, Grown([info]), active, STORE_ID, mark, 5, 1 << 30, NO_JUMPS)


def folder(**files: bytes) -> MemoryFileSystem:
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    for segment_id in (SEALED_ID, SEGMENT_ID):
        replace_file(fs, segment_name(segment_id), header(segment_id, 1))
    for name, data in files.items():
        replace_file(fs, f"segments/{name}", data)
    return fs


def header(segment_id: bytes, published: int, store_id: bytes = STORE_ID) -> bytes:
    return encode_file_header(
        fmt.FILE_SEGMENT, store_id, CLOCK, segment_id=segment_id, base_lsn=1, published=published
    )


def stray(fs: MemoryFileSystem, data: bytes) -> Orphan:
    """The one orphan of a folder whose stray segment holds *data*."""
    replace_file(fs, NAME, data)
    (found,) = orphans(fs, manifest())
    return found


def test_segments_that_the_manifest_names_are_no_orphans() -> None:
    assert list(orphans(folder(), manifest())) == []


def test_an_orphan_says_which_manifest_was_to_publish_it() -> None:
    for published in (0, 5, 6, 2**63):
        found = stray(folder(), header(STRAY_ID, published) + bytes(8))
        assert found == Orphan(NAME, STRAY_ID, STORE_ID, published, fmt.FILE_HEADER_SIZE + 8)
        assert not found.is_empty
    assert stray(folder(), header(STRAY_ID, 6)).is_empty


@pytest.mark.parametrize("data", [b"", b"short", flip(header(STRAY_ID, 6), 300), b"foreign" * 50])
def test_a_file_whose_header_cannot_be_read_says_nothing(data: bytes) -> None:
    found = stray(folder(), data)
    assert (found.id, found.published, found.size) == (fmt.NO_ID, 0, len(data))


def test_a_segment_of_a_newer_format_is_refused_by_name() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fmt, "FORMAT_VERSION", 3)
        newer = header(STRAY_ID, 6)
    with pytest.raises(FormatVersionError, match=f"{NAME} has format version 3"):
        stray(folder(), newer)


def test_other_files_in_the_folder_are_no_segments() -> None:
    fs = folder()
    for name in ("x.idx", "x.seg.tmp", "notes.txt"):
        replace_file(fs, f"segments/{name}", bytes(300))
    assert list(orphans(fs, manifest())) == []


def test_numbered_segments_behind_the_active_one_were_to_be_published_next() -> None:
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    for number in (1, 2, 3, 4):
        replace_file(fs, segment_name(fmt.number_id(number)), header(fmt.number_id(number), 0))
    found = {item.id: item.published for item in orphans(fs, manifest(fmt.number_id(3)))}
    ids = {number: fmt.number_id(number) for number in (1, 2, 4)}
    assert found == {ids[1]: 0, ids[2]: 0, ids[4]: 6}
    replace_file(fs, segment_name(SEALED_ID), header(SEALED_ID, 6))  # an upgrade that died
    found = {item.id: item.published for item in orphans(fs, manifest(fmt.number_id(3)))}
    assert SEALED_ID not in found, "it is named"
    replace_file(fs, NAME, header(STRAY_ID, 6))
    found = {item.id: item.published for item in orphans(fs, manifest(fmt.number_id(3)))}
    assert found[STRAY_ID] == 6
    after = {item.id: item.published for item in orphans(fs, manifest(SEGMENT_ID))}
    assert after[fmt.number_id(4)] == 0, "after the upgrade no numbered segment is made any more"


# --- in use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment_id", [STRAY_ID, OLD_SEGMENT_ID])
@pytest.mark.parametrize("origin", [STORE_ID, bytes(16)])
def test_two_batches_or_a_footer_are_only_in_what_was_published(
    segment_id: bytes, origin: bytes
) -> None:
    """A spilled segment has one batch before it is published; nobody was told of that one."""
    fs = folder()
    name = segment_name(segment_id)
    sizes = []
    for count in range(4):
        built = build_segment([[]] * count, segment=segment_id, store_id=origin)
        replace_file(fs, name, built.data)
        sizes.append(len(built.data))
        assert in_use(fs, Orphan(name, segment_id, origin, 6, 0)) == (count >= 2)
    replace_file(fs, name, built.data[: sizes[1] + 20])
    assert not in_use(fs, Orphan(name, segment_id, origin, 6, 0))
    replace_file(fs, name, built.data[: sizes[2] - 1])
    assert not in_use(fs, Orphan(name, segment_id, origin, 6, 0))


def test_a_footer_behind_one_batch_tells_that_it_was_sealed() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=300)
    store(log, b"\x01a", bytes(200))
    store(log, b"\x01b", bytes(200))
    (sealed, _) = segment_names(fs)
    segment_id = load_newest(fs, []).segments[0].id
    data = read_file(fs, sealed)
    orphan = Orphan(sealed, segment_id, log.store_id, 6, len(data))
    assert in_use(fs, orphan)
    replace_file(fs, sealed, data[:-8])
    assert not in_use(fs, orphan)
    assert log.head().commit != EMPTY_COMMIT


@pytest.mark.parametrize(
    ("published", "count", "lost"), [(6, 2, True), (5, 2, False), (6, 1, False)]
)
def test_a_manifest_that_was_deleted_is_noticed_by_the_segment_it_published(
    published: int, count: int, lost: bool
) -> None:
    fs = folder()
    built = build_segment([[]] * count, segment=STRAY_ID)
    replace_file(fs, NAME, header(STRAY_ID, published) + built.data[fmt.FILE_HEADER_SIZE :])
    if not lost:
        refuse_lost_manifest(fs, manifest())
        return
    with pytest.raises(CorruptError, match="the newest manifest was deleted") as caught:
        refuse_lost_manifest(fs, manifest())
    assert caught.value.file == NAME


@pytest.mark.parametrize("published", [5, 6, 7, 8])
def test_a_segment_may_be_of_the_damaged_manifest_or_a_later_one(published: int) -> None:
    fs = folder()
    replace_file(fs, NAME, header(STRAY_ID, published) + bytes(8))
    for number in (6, 7, 8):
        assert published_by(fs, manifest(), number) == (published >= number)
    replace_file(fs, NAME, header(STRAY_ID, published))
    assert not published_by(fs, manifest(), 6)


# --- a manifest that was deleted, in whole stores -------------------------------------------------


def sealed_twice(fs: MemoryFileSystem) -> dict[bytes, bytes]:
    """A store with three segments that was not closed; returns its content."""
    log = open_log(fs, segment_bytes=2000)
    number = 0
    while log.head().number < 3:
        store(log, b"\x01%d" % number, bytes(500))
        number += 1
    for more in range(2):
        store(log, b"\x01more%d" % more, bytes(1))
    found = content(log)
    fs.kill()
    return found


def test_a_segment_in_use_that_no_manifest_names_is_corruption() -> None:
    """Without the newest manifest, the newest segment was once dropped without a word."""
    fs = MemoryFileSystem()
    expected = sealed_twice(fs)
    newest = load_newest(fs, [])
    name = manifest_name(newest.number)
    saved = read_file(fs, name)
    fs.unlink(name)
    before = contents_of(fs)
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError, match="the newest manifest was deleted") as caught:
            open_log(fs, mode)
        assert caught.value.file == segment_name(newest.active)
    assert contents_of(fs) == before
    replace_file(fs, name, saved)
    assert content(open_log(fs)) == expected


@pytest.mark.parametrize("size", [0, 50, 128, 129, 1000])
def test_a_segment_left_in_front_of_its_manifest_is_set_aside(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a process that died between the two; what it holds is kept in case it was not so.

    It stays when its header is not whole, which tells nothing of it: another one may be about to
    write it.
    """
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=600)
    store(log, b"\x01a", bytes(500))
    number = log.head().number + 1
    log.state.announce(number)
    data = header(STRAY_ID, number, log.store_id) + bytes(2000)
    replace_file(fs, NAME, data[:size])
    fs.kill()
    log = open_log(fs, segment_bytes=600)
    store(log, b"\x01b", bytes(500))
    assert content(log) == {b"\x01a": bytes(500), b"\x01b": bytes(500)}
    kept = fs.list("lost+found")
    if size < fmt.FILE_HEADER_SIZE:
        assert (read_file(fs, NAME), kept, caplog.messages) == (data[:size], [], [])
        return
    assert not fs.exists(NAME)
    if size == fmt.FILE_HEADER_SIZE:
        assert (kept, caplog.messages) == ([], [])
    else:
        assert len(kept) == 1
        assert kept[0].startswith(STRAY_ID.hex())
        assert read_file(fs, f"lost+found/{kept[0]}") == data[:size]
        assert "no manifest names it" in caplog.text
        assert any(NAME in text for text in log.stats()["distrusted"])


def test_a_segment_of_before_stays_while_somebody_may_be_about_to_open_it() -> None:
    """A compactor replaced it: its number is not above that of the manifest."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_bytes=600)
    store(log, b"\x01a", bytes(500))
    replace_file(fs, NAME, header(STRAY_ID, log.head().number, log.store_id) + bytes(2000))
    log.state.announce(log.head().number + 1)
    fs.kill()
    log = open_log(fs, segment_bytes=600)
    for turn in range(3):
        store(log, b"\x01b", bytes(500), turn)
    log.close()
    assert fs.exists(NAME)
    assert fs.list("lost+found") == []


def test_segments_without_any_manifest_are_not_taken_for_an_empty_folder() -> None:
    fs = MemoryFileSystem()
    sealed_twice(fs)
    for number in manifest_numbers(fs.list("")):
        fs.unlink(manifest_name(number))
    before = contents_of(fs)
    with pytest.raises(CorruptError, match="manifests were deleted"):
        open_log(fs)
    with pytest.raises(FormatVersionError):
        open_log(fs, "r")
    assert contents_of(fs) == before


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
