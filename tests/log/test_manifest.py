"""Manifests: put-if-absent, a base and few changes, and no process misses one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError, StorageIOError
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.grown import Grown
from mldb.log.index.lineage import Jumps, in_ranges
from mldb.log.lone import PENDING
from mldb.log.manifest import (
    Features,
    Manifest,
    Mark,
    SegmentInfo,
    install_manifest,
    load_manifest,
    manifest_name,
    manifest_numbers,
    newest_announced,
    refuse_to_write,
    remove_old,
)
from mldb.log.manifest_codec import decode_manifest, decode_segment
from mldb.log.newest import load_newest
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import CLOCK, SEGMENT_ID, STORE_ID, content, flip, open_log, store
from tests.support.parts import examples

OWNER = "owner"
MARK = Mark(SEGMENT_ID, fmt.FILE_HEADER_SIZE, 0, bytes(16))
FIRST = Manifest(
    1,
    STORE_ID,
    CLOCK,
    Grown(),
    SEGMENT_ID,
    STORE_ID,
    MARK,
    0,
    1 + fmt.LSN_CEILING_STEP,
    Jumps.of([(9, 2)]),
    ((1, 2),),
    (STORE_ID,),
)


def folder() -> MemoryFileSystem:
    fs = MemoryFileSystem()
    fs.mkdir(PENDING)
    fs.mkdir("segments")
    return fs


def install(fs: MemoryFileSystem, manifest: Manifest) -> Manifest:
    """Install a manifest as the next one of a handle, and return it as it reads."""
    found = install_manifest(fs, manifest, OWNER)
    assert found is not None
    return found


def info(number: int) -> SegmentInfo:
    """A sealed segment."""
    chain = number.to_bytes(16, "big")
    return SegmentInfo(chain, 1, STORE_ID, 900, "", 800, number, number, 0, 2, chain)


# --- installing -----------------------------------------------------------------------------------


def test_the_first_to_install_a_number_wins() -> None:
    fs = folder()
    first = install(fs, FIRST)
    assert install_manifest(fs, replace(FIRST, lsn_floor=7), OWNER) is None
    assert load_manifest(fs, 1) == first
    assert first == replace(FIRST, digest=first.digest, base=first.base)
    assert first.digest == digest128(read_file(fs, manifest_name(1)))
    assert fs.list(PENDING) == []


def test_a_manifest_that_would_not_read_as_meant_gets_no_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is decoded again before it is linked: a bug must not be what a store is opened by."""
    fs = folder()
    real = install_manifest.__globals__["encode_manifest"]

    def wrong(stored: object, *known: object) -> bytes:
        return bytes(real(replace(stored, lsn_floor=99), *known))  # type: ignore[type-var]

    monkeypatch.setattr("mldb.log.manifest.encode_manifest", wrong)
    with pytest.raises(AssertionError, match="would not read as it was meant"):
        install_manifest(fs, FIRST, OWNER)
    impossible = replace(FIRST, jumps=Jumps.of([(5, 7)]))
    monkeypatch.undo()
    with pytest.raises(CorruptError, match="impossible"):
        install_manifest(fs, impossible, OWNER)
    assert contents_of(fs) == {}


def test_a_manifest_beyond_its_limit_gets_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = folder()
    monkeypatch.setattr("mldb.log.manifest._BYTES_MAX", 300)
    with pytest.raises(StorageIOError, match="Nothing was stored"):
        install_manifest(fs, FIRST, OWNER)
    assert contents_of(fs) == {}


def test_names_of_other_files_are_no_manifests() -> None:
    """Digits of other scripts are digits to a regular expression, and led to a missing file."""
    names = [
        "MANIFEST-٠٠٠٠٠٠٠٠٠٩",
        "MANIFEST-2",
        "MANIFEST-00000000021",
        "MANIFEST-0000000009\n",
        "xMANIFEST-0000000009",
        "segments",
    ]
    assert manifest_numbers([*names, manifest_name(7), manifest_name(3)]) == [3, 7]


# --- a base and its changes -----------------------------------------------------------------------


def named_base(fs: MemoryFileSystem, number: int) -> int | None:
    """The number of the base that a manifest file names."""
    name = manifest_name(number)
    base = decode_manifest(read_file(fs, name), name).base
    return None if base is None else base[0]


def test_a_manifest_names_what_changed_since_its_base() -> None:
    fs = folder()
    newest = install(fs, replace(FIRST, segments=Grown(map(info, range(1, 1001)))))
    whole = len(read_file(fs, manifest_name(1)))
    for number in range(2, 12):
        grown = newest.segments.then([info(1000 + number)])
        jumps = newest.jumps.then(10 * number, 1)
        newest = install(fs, replace(newest, number=number, segments=grown, jumps=jumps))
        assert load_manifest(fs, number) == newest
        assert (newest.segments, newest.jumps) == (grown, jumps)
        assert named_base(fs, number) == 1
        assert len(read_file(fs, manifest_name(number))) < whole / 20


def test_a_seal_and_who_follows_it_look_at_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 in the base and 20 that came since. What is kept is not compared either."""
    fs = folder()
    kept = Silent((2 * lsn, 2 * lsn) for lsn in range(1, 1000))
    newest = install(fs, replace(FIRST, segments=Grown(map(info, range(1, 1001))), kept=kept))
    for number in range(2, 22):
        segments = newest.segments.then([info(1000 + number)])
        newest = install(fs, replace(newest, number=number, segments=segments))
    known = load_manifest(fs, 21)
    looked: list[bytes] = []

    def counted(fields: dict[str, Any], segment_id: bytes) -> object:
        looked.append(segment_id)
        return decode_segment(fields, segment_id)

    monkeypatch.setattr("mldb.log.manifest_codec.decode_segment", counted)
    monkeypatch.setattr("mldb.log.manifest_encoder.decode_segment", counted)
    for number in range(22, 30):
        looked.clear()
        added = info(1000 + number)
        segments = newest.segments.then([added])
        newest = install(fs, replace(newest, number=number, segments=segments))
        assert looked == [added.id]
        assert newest.segments._items is segments._items
        assert newest.kept is kept
    looked.clear()
    followed = load_manifest(fs, 29, known)
    assert followed == newest
    assert len(looked) == 28, "what its own base has not kept as bytes; the base is not read again"
    fs.unlink(manifest_name(1))
    assert load_manifest(fs, 29, followed) == newest


def test_a_whole_manifest_is_packed_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It held up a commit for 0.1 s at 10,000 segments: now every seal before it does a share."""
    fs = folder()
    install(fs, replace(FIRST, segments=Grown(map(info, range(1, 2001)))))
    newest = load_manifest(fs, 1)  # as who opens the store has it: nothing is packed
    looked: list[bytes] = []

    def counted(fields: dict[str, Any], segment_id: bytes) -> object:
        looked.append(segment_id)
        return decode_segment(fields, segment_id)

    monkeypatch.setattr("mldb.log.manifest_encoder.decode_segment", counted)
    most = whole = 0
    for number in range(2, fmt.CHANGES_MAX + 4):
        looked.clear()
        segments = newest.segments.then([info(2000 + number)])
        newest = install(fs, replace(newest, number=number, segments=segments))
        if named_base(fs, number) is None:
            whole = len(looked)
        most = max(most, len(looked))
    assert whole == 1, "the one that came; a base of the base was packed by then"
    assert most <= 1 + 2000 // (fmt.CHANGES_MAX // 2) + 1


class Silent(tuple[tuple[int, int], ...]):
    """Ranges that are shared, so nobody may compare them with themselves."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        assert other is not self
        return super().__eq__(other)

    __hash__ = tuple.__hash__


def test_more_changes_than_the_limit_make_a_whole_one_that_is_the_next_base() -> None:
    fs = folder()
    newest = install(fs, FIRST)
    bases = []
    for number in range(2, 2 * fmt.CHANGES_MAX + 10):
        grown = newest.segments.then([info(number)])
        newest = install(fs, replace(newest, number=number, segments=grown))
        bases.append(named_base(fs, number) or number)
    assert load_manifest(fs, newest.number) == newest
    assert bases == [1] * 256 + [258] * 257 + [515] * 7
    assert len(newest.segments) == len(bases)


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 400), unique=True, max_size=12),
            st.booleans(),
            st.none() | st.integers(1, 30),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_changes_it_reads_as_it_was_meant(
    steps: list[tuple[list[int], bool, int | None]],
) -> None:
    """Segments come, go and change places, jumps are added, retention narrows what is kept."""
    fs = folder()
    newest = install(fs, FIRST)
    for number, (ids, jumps, kept) in enumerate(steps, 2):
        changed = replace(
            newest,
            number=number,
            segments=Grown(map(info, ids)),
            jumps=newest.jumps.then(100 * number, 1) if jumps else newest.jumps,
            kept=newest.kept if kept is None else ((1, kept),),
            predecessor=newest.digest,
        )
        newest = install(fs, changed)
        assert newest == replace(changed, digest=newest.digest, base=newest.base)
        assert load_manifest(fs, number) == newest


def test_jumps_that_are_taken_back_make_a_whole_manifest() -> None:
    """Those of the base cannot be removed by one that is changes of it."""
    fs = folder()
    install(fs, FIRST)
    second = install(fs, replace(load_manifest(fs, 1), number=2, jumps=Jumps.of([(8, 1)])))
    assert named_base(fs, 2) is None
    assert load_manifest(fs, 2).jumps == second.jumps == ((8, 1),)


def test_what_is_kept_may_not_be_widened_to_everything_by_changes() -> None:
    """``nil`` there means: as in the base."""
    fs = folder()
    first = install(fs, FIRST)
    for number, kept in ((2, ((1, 2),)), (3, ((2, 2),)), (4, ())):
        installed = install(fs, replace(first, number=number, kept=kept))
        assert (installed.kept, load_manifest(fs, number).kept) == (kept, kept)


def test_a_manifest_with_more_changes_of_its_base_than_the_limit_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = folder()
    first = install(fs, FIRST)
    segments = Grown(map(info, range(1, fmt.CHANGES_MAX + 2)))
    with monkeypatch.context() as patch:
        patch.setattr(fmt, "CHANGES_MAX", 1000)
        install(fs, replace(first, number=2, segments=segments))
        install(fs, replace(first, number=3, segments=Grown(segments[:-1])))
    with pytest.raises(CorruptError, match="257 changes of its base"):
        load_manifest(fs, 2)
    assert load_manifest(fs, 3).segments == segments[:-1]


@pytest.mark.parametrize("harm", ["lost", "damaged", "another", "has a base"])
def test_a_manifest_whose_base_is_not_what_it_names_is_damaged(harm: str) -> None:
    fs = folder()
    first = install(fs, FIRST)
    second = install(fs, replace(first, number=2, segments=Grown([info(5)])))
    third = replace(second, number=3, segments=Grown([info(5), info(6)]))
    name = manifest_name(1)
    if harm == "lost":
        fs.unlink(name)
    elif harm == "damaged":
        replace_file(fs, name, flip(read_file(fs, name), 2000))
    elif harm == "another":
        other = folder()
        install(other, replace(FIRST, lsn_floor=7))
        replace_file(fs, name, read_file(other, name))
    else:
        assert second.base is not None
        changes = replace(second.base, number=2, digest=second.digest)
        third = replace(third, base=changes)
    if harm == "has a base":
        install(fs, third)
    with pytest.raises(CorruptError, match=r"its base|is not the base|has a base itself") as caught:
        load_manifest(fs, 3 if harm == "has a base" else 2)
    assert manifest_name(3 if harm == "has a base" else 2) in str(caught.value)


def test_the_two_newest_and_their_bases_stay() -> None:
    fs = folder()
    previous = install(fs, FIRST)
    for number in range(2, 9):
        base = None if number == 5 else previous.base
        newest = install(fs, replace(previous, number=number, base=base))
        remove_old(fs, previous, newest)
        bases = {1} if number < 5 else {1, 5} if number == 5 else {5}
        assert set(manifest_numbers(fs.list(""))) == bases | {number - 1, number}
        assert load_manifest(fs, number) == newest
        assert load_manifest(fs, number - 1) == previous
        previous = newest


def test_what_is_newer_than_the_newest_is_not_removed() -> None:
    """Another one may be there damaged; it is evidence."""
    fs = folder()
    first = install(fs, FIRST)
    second = install(fs, replace(first, number=2))
    replace_file(fs, manifest_name(9), b"damaged")
    remove_old(fs, first, second)
    assert manifest_numbers(fs.list("")) == [1, 2, 9]


# --- what it says ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), unique=True, max_size=10).map(sorted), st.integers(-1, 61))
def test_a_commit_is_kept_when_a_range_has_it(edges: list[int], lsn: int) -> None:
    kept = tuple(zip(edges[::2], edges[1::2], strict=False))
    assert in_ranges(lsn, kept) == any(low <= lsn <= high for low, high in kept)


def test_a_feature_that_writers_must_know_stops_writers_only() -> None:
    fs = folder()
    install(fs, replace(FIRST, features=Features((), ("ink", "quills"), ("pine",))))
    manifest = load_manifest(fs, 1)
    with pytest.raises(FormatVersionError, match=r"uses ink, quills.*must to write it.*newer mldb"):
        refuse_to_write(fs, manifest)
    refuse_to_write(fs, replace(manifest, features=Features((), (), ("pine",))))


def test_the_announced_manifest_counts_only_when_it_is_the_newest_for_certain() -> None:
    fs = folder()
    assert newest_announced(fs, 0) is None
    assert newest_announced(fs, 1) is None
    first = install(fs, FIRST)
    second = install(fs, replace(first, number=2))
    assert newest_announced(fs, 2) == second
    assert newest_announced(fs, 3) is None
    third = install(fs, replace(first, number=3))
    assert newest_announced(fs, 2) is None
    assert newest_announced(fs, 3) == third
    replace_file(fs, manifest_name(3), b"damaged")
    assert newest_announced(fs, 3) is None


def test_a_base_is_not_taken_for_the_newest_after_a_power_loss() -> None:
    """The lock file is not synced: it may be as long as the number of a base that stayed."""
    fs = folder()
    previous = install(fs, FIRST)
    for number in range(2, 6):
        newest = install(fs, replace(previous, number=number))
        remove_old(fs, previous, newest)
        previous = newest
    assert manifest_numbers(fs.list("")) == [1, 4, 5]
    for number in range(5):
        assert newest_announced(fs, number) is None, number
    assert newest_announced(fs, 5) == newest


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
    numbers = manifest_numbers(fs.list(""))
    assert len(numbers) == 3
    assert numbers[0] == 1, "the base"
    assert numbers[1] > 4
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

    monkeypatch.setattr("mldb.log.opening.load_newest", late)
    reader = open_log(fs, "r")
    assert content(reader) == content(writer)
    assert reader.head().number == writer.head().number
