"""Verification finds damage anywhere, says where, and changes nothing."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.memory import MemoryIndex
from mldb.log.log import Log
from mldb.log.manifest import manifest_name, manifest_numbers
from mldb.log.segment import segment_name
from mldb.log.verify import VerifyReport, verify
from tests.support.files import append_to, contents_of, read_file, replace_file
from tests.support.hooked import Hooked
from tests.support.logs import content, flip, open_log, store
from tests.support.segments import segment_ids, segment_names


def several_segments() -> MemoryFileSystem:
    """Two segments with footers, one closed behind a torn tail, an active one with a mark."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os", segment_entries=4)
    for number in range(10):
        store(log, b"\x01%d" % (number % 7), b"value %d" % number * 30, number)
    log.close()
    append_to(fs, segment_names(fs)[2], b"torn")
    log = open_log(fs, durability="os")
    assert log.recovery.dropped_bytes == 4
    for number in range(3):
        store(log, b"\x01more %d" % number, b"value %d" % number * 30, 20 + number)
    log.close()
    return fs


def checked(fs: MemoryFileSystem) -> VerifyReport:
    """Verify, and see that nothing is changed by it."""
    before = contents_of(fs)
    report = verify(open_log(fs, "r"))
    assert contents_of(fs) == before
    return report


def test_a_key_of_thousands_of_versions_in_one_segment_is_no_damage() -> None:
    """Their LSNs are not held but looked up, and were compared with a tuple, which they are not."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os", segment_entries=1500)
    for number in range(1600):
        store(log, b"\x01one", b"", number)
    log.close()
    assert verify(open_log(fs, "r")).problems == ()


def test_a_whole_store_has_no_problem_and_every_byte_and_commit_is_counted() -> None:
    fs = several_segments()
    log = open_log(fs, "r")
    seen: list[tuple[int, int]] = []
    report = verify(log, lambda done, total: seen.append((done, total)))
    sizes = [info.length for info in log.state.manifest.segments]
    total = sum(sizes) + len(read_file(fs, segment_names(fs)[3]))
    assert report == VerifyReport(4, 13, total, ())
    assert report.ok
    assert seen == [(sum(sizes[: n + 1]), total) for n in range(3)] + [(total, total)]
    assert verify(open_log(MemoryFileSystem())) == VerifyReport(1, 0, fmt.FILE_HEADER_SIZE)


def places(fs: MemoryFileSystem, seed: int) -> Iterator[tuple[str, int]]:
    """Every file that verification covers with places in it, every byte of which counts.

    What is behind the valid length of a closed segment does not count, and hints do not.
    """
    rng = random.Random(seed)
    manifest = open_log(fs, "r").state.manifest
    lengths = {segment_name(info.id): info.length for info in manifest.segments}
    names = [name for name in contents_of(fs) if name.startswith(("segments/", "MANIFEST"))]
    for name in sorted(names):
        length = lengths.get(name, len(read_file(fs, name)))
        for place in range(rng.randrange(13), length, 13):
            yield name, place


def test_every_flipped_bit_is_found_in_its_file_near_its_place(seed: int) -> None:
    """Headers, bodies, padding, payloads, checksums, footers, side indexes and manifests."""
    fs = several_segments()
    log = open_log(fs, "r")
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for where, row in log.head().commits(0, fmt.LSN_MAX):
        rows.setdefault(segment_name(where), []).append((row.start, row.end, row.lsn))
    active, newest = segment_names(fs)[-1], log.state.manifest
    at_once = {active, manifest_name(newest.number)}
    if newest.base is not None:
        at_once.add(manifest_name(newest.base.number))
    found = 0
    hint = next(name for name in contents_of(fs) if name.startswith("hints/"))
    fs.unlink(hint)
    for name, place in places(fs, seed):
        data = read_file(fs, name)
        replace_file(fs, name, flip(data, 8 * place + seed % 8))
        try:
            report = checked(fs)
        except MldbError as error:  # the newest manifest and the active segment are read at once
            assert name in str(error), (name, place)
            assert name in at_once
        else:
            assert not report.ok, (name, place)
            problem = report.problems[0]
            assert problem.file == name, place
            assert 0 <= problem.offset <= place, name
            assert problem.message
            for start, end, lsn in rows.get(name, []):
                if start <= place < end and problem.lsns:
                    assert problem.lsns == (lsn,), (name, place)
        found += 1
        replace_file(fs, name, data)
    assert found > 500
    assert checked(fs).ok


def test_behind_damage_it_goes_on_and_finds_the_rest() -> None:
    """A damaged footer once kept the batches in front of it from being checked."""
    fs = several_segments()
    log = open_log(fs, "r")
    ids = segment_ids(fs)
    first, second, *_ = segment_names(fs)
    own = [row for where, row in log.head().commits(0, fmt.LSN_MAX) if where == ids[0]]
    data = read_file(fs, first)
    for row in (own[0], own[2]):
        data = flip(data, 8 * (row.start + 10))
    replace_file(fs, first, data)
    other = read_file(fs, second)
    replace_file(fs, second, flip(other, 8 * (len(other) - 100)))
    report = checked(fs)
    assert [problem.lsns for problem in report.problems[:2]] == [(own[0].lsn,), (own[2].lsn,)]
    assert [problem.offset for problem in report.problems[:2]] == [own[0].start, own[2].start]
    assert {problem.file for problem in report.problems} == {first, second}
    assert report.commits == 13


@pytest.mark.parametrize("damage", ["missing", "cut", "swapped"])
def test_a_segment_that_is_not_there_as_a_whole_is_reported_and_the_others_are_checked(
    damage: str,
) -> None:
    fs = several_segments()
    name, second, third, _ = segment_names(fs)
    data = read_file(fs, name)
    fs.unlink(name)
    if damage == "cut":
        replace_file(fs, name, data[:-1])
    elif damage == "swapped":
        replace_file(fs, name, read_file(fs, second) + bytes(len(data)))
    last = read_file(fs, third)
    replace_file(fs, third, flip(last, 8 * 200))
    report = checked(fs)
    assert [problem.file for problem in report.problems] == [name, third]
    assert report.problems[0].offset == (len(data) - 1 if damage == "cut" else 0)


def test_a_missing_side_index_is_reported() -> None:
    fs = several_segments()
    name = segment_names(fs)[2].replace(".seg", ".idx")
    fs.unlink(name)
    [problem] = checked(fs).problems
    assert name in problem.message


def test_a_manifest_that_opening_stepped_over_is_reported() -> None:
    fs = several_segments()
    older, newest = (manifest_name(number) for number in manifest_numbers(fs.list(""))[-2:])
    for name in (older, newest):
        data = read_file(fs, name)
        replace_file(fs, name, flip(data, 8 * 150))
        [problem] = checked(fs).problems
        assert problem.file == name
        replace_file(fs, name, data)


def test_what_is_not_valid_is_not_verified() -> None:
    """The torn tail of a closed segment, hints, and what recovery kept are nobody's data."""
    fs = several_segments()
    append_to(fs, segment_names(fs)[2], b"more")
    for name in list(contents_of(fs)):
        if name.startswith(("hints/", "lost+found/")):
            replace_file(fs, name, b"nothing")
    assert checked(fs).ok


def test_a_live_writer_is_no_problem() -> None:
    fs = several_segments()
    log: Log = open_log(fs, durability="os")
    reader = open_log(fs, "r")
    for number in range(5):
        store(log, b"\x01live", b"%d" % number, 30)
        assert verify(reader).problems == verify(log).problems == ()
        assert verify(reader).commits == 14 + number
    assert content(reader) == content(log)


@pytest.mark.parametrize("wrong", ["less", "twice"])
def test_an_index_that_is_whole_and_wrong_is_found(wrong: str) -> None:
    """Its checksums are right: whoever wrote it did not know what the segment holds."""
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=3)
    for number in range(3):
        store(log, b"\x01a", b"%d" % number, number)
    active = log.state.active
    entries, rows = active.memory.dump()
    own = entries[b"\x01a"]
    memory = MemoryIndex()
    for row, entry in zip(rows, own, strict=True):
        if wrong == "less" and row is rows[1]:
            continue
        times = 2 if wrong == "twice" and row is rows[1] else 1
        memory.add(row, [(b"\x01a", entry)] * times)
    active.memory = memory
    store(log, b"\x01b", b"next segment", 9)
    [problem] = checked(fs).problems
    assert problem.file == segment_names(fs)[0]
    assert ("lists 2 commits" if wrong == "less" else "contradicts itself") in problem.message


@pytest.mark.parametrize(("entries", "segments"), [(1, {4, 5}), (2, {2, 3}), (100, {1})])
def test_it_is_of_one_moment_whoever_seals_meanwhile(entries: int, segments: set[int]) -> None:
    """Another process commits, and perhaps rolls, before every call of it.

    Sealed segments and the active one were taken apart: one that was sealed in between was in
    neither, and its damage was not found.
    """
    number = 0
    outcomes = set()
    while True:
        number += 1
        fs = MemoryFileSystem()
        writer = open_log(fs, segment_entries=entries, durability="os")
        for place in range(4):
            store(writer, b"\x01%d" % place, b"value %d" % place * 30, place)
        hooked = Hooked(fs)
        log = open_log(hooked, "r")
        active = segment_names(fs)[-1]
        data = read_file(fs, active)
        fs.open(active, "rw").pwritev([b"V"], data.rindex(b"value 3"))
        hooked.at(number, partial(store, writer, b"\x01new", b"x", 9))
        report = verify(log)
        assert [problem.file for problem in report.problems] == [active], (number, hooked.happened)
        outcomes.add(report.segments)
        if not hooked.happened:
            break
    assert number > 4
    assert outcomes == segments


def test_it_is_of_one_moment_although_a_thread_of_the_same_handle_rolls() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=2, durability="os")
    store(log, b"\x01a", b"0")
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count(1):
            store(log, b"\x01a", b"%d" % number, number)
            if stop.is_set():
                return

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        for _ in range(30):
            before = log.head().commit.epoch
            report = verify(log)
            assert report.problems == ()
            assert before + 1 <= report.commits <= log.head().commit.epoch + 2
            assert report.segments == (report.commits + 1) // 2
    finally:
        stop.set()
        thread.join(30)
