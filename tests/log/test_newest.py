"""Which manifest counts: the highest valid one, unless stepping back to it would lose something."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from typing import Any

import pytest

from mldb.errors import CorruptError, FormatVersionError, StorageIOError
from mldb.log import format as fmt
from mldb.log.file_header import encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.grown import Grown
from mldb.log.index.lineage import NO_JUMPS
from mldb.log.lock import LOCK
from mldb.log.lone import PENDING
from mldb.log.manifest import Features, Manifest, Mark, install_manifest, manifest_name
from mldb.log.newest import is_damaged, load_newest, open_announced
from mldb.log.segment import segment_name
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import (
    CLOCK,
    OLD_SEGMENT_ID,
    SEGMENT_ID,
    STORE_ID,
    content,
    flip,
    open_log,
    store,
)

NEXT_ID = bytes(range(32, 48))
FIRST = Manifest(
    1,
    STORE_ID,
    CLOCK,
    Grown(),
    SEGMENT_ID,
    STORE_ID,
    Mark(SEGMENT_ID, fmt.FILE_HEADER_SIZE, 0, bytes(16)),
    0,
    1 + fmt.LSN_CEILING_STEP,
    NO_JUMPS,
)


def two() -> MemoryFileSystem:
    """A folder with two manifests, the second of which is whole."""
    fs = MemoryFileSystem()
    fs.mkdir(PENDING)
    fs.mkdir("segments")
    for number in (1, 2):
        assert install_manifest(fs, replace(FIRST, number=number), "owner") is not None
    return fs


def damage(fs: MemoryFileSystem, name: str) -> None:
    replace_file(fs, name, flip(read_file(fs, name), 8 * 200))


def segment(
    fs: MemoryFileSystem, published: int, *, size: int = 8, segment_id: bytes = NEXT_ID
) -> str:
    """A segment file that says which manifest published it, with *size* bytes behind its header."""
    header = encode_file_header(
        fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=segment_id, base_lsn=1, published=published
    )
    name = segment_name(segment_id)
    replace_file(fs, name, header + bytes(size))
    return name


def test_a_damaged_newest_one_is_stepped_over_and_reported() -> None:
    fs = two()
    damage(fs, manifest_name(2))
    distrusted: list[str] = []
    assert load_newest(fs, distrusted).number == 1
    assert re.search("MANIFEST-0000000002", distrusted[0])
    assert is_damaged(fs, 2)
    damage(fs, manifest_name(1))
    distrusted.clear()
    with pytest.raises(CorruptError, match="MANIFEST-0000000001"):
        load_newest(fs, distrusted)
    names = [manifest_name(2), manifest_name(1)]
    assert all(name in text for name, text in zip(names, distrusted, strict=True))


@pytest.mark.parametrize(
    ("published", "size", "lost"),
    [(1, 8, False), (2, 0, False), (2, 8, True), (3, 8, True), (7, 1, True)],
)
def test_a_damaged_one_that_may_have_published_a_segment_is_not_stepped_over(
    published: int, size: int, lost: bool
) -> None:
    """With more than its header in it, a segment that only that manifest named would be dropped."""
    fs = two()
    damage(fs, manifest_name(2))
    segment(fs, published, size=size)
    before = contents_of(fs)
    if lost:
        with pytest.raises(CorruptError, match="MANIFEST-0000000002"):
            load_newest(fs, [])
    else:
        assert load_newest(fs, []).number == 1
    assert contents_of(fs) == before


def test_segments_that_the_older_manifest_names_do_not_matter() -> None:
    fs = two()
    damage(fs, manifest_name(2))
    segment(fs, 2, segment_id=SEGMENT_ID)
    assert load_newest(fs, []).number == 1


def test_the_lowest_of_several_damaged_ones_decides() -> None:
    """What the first damaged one published is not in the manifest before it either."""
    fs = two()
    assert install_manifest(fs, replace(FIRST, number=3), "owner") is not None
    for number in (2, 3):
        damage(fs, manifest_name(number))
    segment(fs, 2)
    with pytest.raises(CorruptError, match="MANIFEST-0000000002"):
        load_newest(fs, [])


def test_a_numbered_segment_behind_the_active_one_counts_as_published() -> None:
    """Those of version 1 do not say which manifest published them; their number says it."""
    old = replace(FIRST, active=OLD_SEGMENT_ID, mark=replace(FIRST.mark, segment=OLD_SEGMENT_ID))
    for number, lost in ((1, False), (2, True), (3, True)):
        fs = MemoryFileSystem()
        fs.mkdir(PENDING)
        fs.mkdir("segments")
        for which in (1, 2):
            assert install_manifest(fs, replace(old, number=which), "owner") is not None
        damage(fs, manifest_name(2))
        segment(fs, 0, segment_id=fmt.number_id(number))
        if lost:
            with pytest.raises(CorruptError, match="MANIFEST-0000000002"):
                load_newest(fs, [])
        else:
            assert load_newest(fs, []).number == 1


def test_a_newer_format_is_never_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = two()
    with monkeypatch.context() as patch:
        patch.setattr(fmt, "FORMAT_VERSION", 3)
        assert install_manifest(fs, replace(FIRST, number=3), "owner") is not None
    for call in (lambda: load_newest(fs, []), lambda: is_damaged(fs, 3)):
        with pytest.raises(FormatVersionError, match="version 3"):
            call()


def test_a_feature_that_is_not_known_is_never_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = two()
    with monkeypatch.context() as patch:
        patch.setattr("mldb.log.manifest_codec.READ_FEATURES", frozenset({"blobs"}))
        newer = replace(FIRST, number=3, features=Features(("blobs",), (), ()))
        assert install_manifest(fs, newer, "owner") is not None
        assert load_newest(fs, []).features.read == ("blobs",)
    for call in (lambda: load_newest(fs, []), lambda: is_damaged(fs, 3)):
        with pytest.raises(FormatVersionError, match="uses blobs"):
            call()


def test_a_damaged_manifest_is_not_stepped_over_when_a_segment_of_a_newer_format_is_there() -> None:
    """Whether it was published cannot be read from it: the format of its header may be another."""
    fs = two()
    damage(fs, manifest_name(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fmt, "FORMAT_VERSION", 3)
        name = segment(fs, 0)
    with pytest.raises(FormatVersionError, match=f"{name} has format version 3"):
        load_newest(fs, [])
    replace_file(fs, name, b"what somebody left here" * 10)
    assert load_newest(fs, []).number == 1


def test_a_folder_without_manifests_holds_no_store() -> None:
    fs = MemoryFileSystem()
    with pytest.raises(CorruptError, match="no manifest is left"):
        load_newest(fs, [])


class Shifting(MemoryFileSystem):
    """A writer removes manifest 2 for manifest 3 between a listing and the reading."""

    def __init__(self, image: Any) -> None:
        super().__init__(image=image)
        self.moves = 0

    def list(self, name: str) -> list[str]:
        found = super().list(name)
        if name == "" and self.moves:
            self.moves -= 1
            for old in (1, 2):
                if self.exists(manifest_name(old)):
                    self.unlink(manifest_name(old))
            if not self.exists(manifest_name(3)):
                assert install_manifest(self, replace(FIRST, number=3), "owner") is not None
        return found


def test_manifests_replaced_while_one_looks_are_looked_for_again() -> None:
    fs = Shifting(two().image())
    fs.moves = 1
    assert load_newest(fs, []).number == 3


def test_a_file_that_is_never_there_ends_the_search() -> None:
    fs = FaultFileSystem(two())
    fs.fail("open", code=errno.ENOENT, forever=True)
    with pytest.raises(StorageIOError):
        load_newest(fs, [])
    assert 2 <= fs.calls["list"] < 20


def test_another_error_of_the_disk_is_no_damage() -> None:
    """A manifest that cannot be read now may be the newest: nothing is stepped over."""
    for kind in ("open", "pread"):
        fs = FaultFileSystem(two())
        fs.fail(kind, code=errno.EIO)
        with pytest.raises(StorageIOError, match="EIO"):
            load_newest(fs, [])
        fs.fail(kind, code=errno.EIO)
        with pytest.raises(StorageIOError, match="EIO"):
            is_damaged(fs, 2)


def test_what_is_not_there_is_not_damaged() -> None:
    fs = two()
    assert not is_damaged(fs, 2)
    assert not is_damaged(fs, 3)


def test_the_lock_file_is_opened_where_there_is_one() -> None:
    fs = two()
    assert open_announced(fs, writable=False) is None
    replace_file(fs, LOCK, bytes(2))
    for writable in (True, False):
        file = open_announced(fs, writable=writable)
        assert file is not None
        assert file.size() == 2
        file.close()


# --- whole stores ---------------------------------------------------------------------------------


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
    assert content(reader) == {b"\x01a": b"1", b"\x01b": b"2"}
    newest = load_newest(fs, [])
    assert newest.number > 2
    assert content(open_log(fs)) == content(reader)


def test_lsns_that_a_damaged_manifest_set_free_are_not_given_again() -> None:
    """The manifest before it has a lower ceiling; LSNs in the log count too."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    log = open_log(fs)
    given = [store(log, b"\x01b", b"%d" % number) for number in range(5)]
    fs.kill()
    damage(fs, manifest_name(load_newest(fs, []).number))
    log = open_log(fs)
    assert store(log, b"\x01c", b"3") > max(given)
    assert content(log)[b"\x01b"] == b"4"
