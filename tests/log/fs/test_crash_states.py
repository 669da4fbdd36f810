"""Which disks a crash may leave: against an oracle per byte and name, and in known examples."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidValueError
from mldb.log.fs.crash_states import Model, crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Names, Operation, Sync, SyncFolder, Write
from mldb.log.fs.protocol import OpenMode
from tests.support.parts import examples

MODELS: tuple[Model, ...] = get_args(Model)
MUCH = 1_000_000

Disk = tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]]


def disk(fs: MemoryFileSystem) -> Disk:
    """All files with their content, and all folders."""
    image = fs.image()
    files = {path: image.contents[inode] for path, inode in image.files.items()}
    return tuple(sorted(files.items())), tuple(sorted(image.folders))


def content(fs: MemoryFileSystem, name: str) -> bytes | None:
    """The content of a file, None where it is missing."""
    return dict(disk(fs)[0]).get(name)


def contents(fs: MemoryFileSystem, name: str, **options: object) -> set[bytes | None]:
    """What a file may be after everything recorded so far."""
    assert fs.journal is not None
    last = len(fs.journal.operations)
    states = crash_states(fs, at=last, limit=MUCH, **options)  # type: ignore[arg-type]
    return {content(state, name) for state in states}


def durable(fs: MemoryFileSystem, name: str, data: bytes) -> None:
    file = fs.open(name, "create")
    file.pwritev([data], 0)
    file.sync()
    fs.sync_dir(name.rpartition("/")[0])


# Random workloads. Names and sizes are few, so that everything meets everything.

PATHS = ("x", "y", "f/x", "f/y")
paths = st.sampled_from(PATHS)
steps = st.one_of(
    st.tuples(st.just("create"), paths),
    st.tuples(st.just("write"), paths, st.integers(0, 6), st.binary(min_size=1, max_size=5)),
    st.tuples(st.just("write"), paths, st.integers(0, 6), st.binary(min_size=1, max_size=5)),
    st.tuples(st.just("sync"), paths),
    st.tuples(st.just("sync_dir"), st.sampled_from(["", "f"])),
    st.tuples(st.sampled_from(["link", "rename"]), paths, paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("mkdir")),
    st.tuples(st.just("mark")),
)


def workload(moves: list[tuple[object, ...]]) -> MemoryFileSystem:
    fs = MemoryFileSystem(record=True)
    fs.open("x", "create")
    for number, (verb, *arguments) in enumerate(moves):
        name = str(arguments[0]) if arguments else ""
        folder = name.rpartition("/")[0]
        match verb, arguments:
            case "create", _ if fs.exists(folder) or not folder:
                if not fs.exists(name):
                    fs.open(name, "create")
            case "write", (_, int(offset), bytes(data)) if fs.exists(folder) or not folder:
                mode: OpenMode = "rw" if fs.exists(name) else "create"
                fs.open(name, mode).pwritev([data], offset)
            case "sync", _ if fs.exists(name):
                fs.open(name, "rw").sync()
            case "sync_dir", (str(name),) if fs.exists(name) or not name:
                fs.sync_dir(name)
            case (("link" | "rename"), (_, str(other))) if fs.exists(name):
                if "/" not in other or fs.exists("f"):
                    getattr(fs, str(verb))(name, other)
            case "unlink", _:
                fs.unlink(name)
            case "mkdir", _:
                fs.mkdir("f")
            case "mark", _:
                fs.mark(number)
            case _:
                continue
    return fs


@dataclass
class Bytes:
    """What one inode may hold: per byte every value since the last sync, and the least length."""

    now: bytearray = field(default_factory=bytearray)
    synced: int = 0
    values: dict[int, set[int]] = field(default_factory=lambda: defaultdict(lambda: {0}))

    def write(self, offset: int, data: bytes) -> None:
        self.now.extend(bytes(max(0, offset - len(self.now))))
        self.now[offset : offset + len(data)] = data
        for place, value in enumerate(data, offset):
            self.values[place].add(value)

    def sync(self) -> None:
        self.synced = len(self.now)
        self.values.clear()
        for place, value in enumerate(self.now):
            self.values[place] = {value}

    def allow(self, data: bytes) -> bool:
        if not self.synced <= len(data) <= len(self.now):
            return False
        return all(value in self.values[place] for place, value in enumerate(data))


class Oracle:
    """What POSIX allows after a number of operations, one byte and one name at a time.

    It knows less than the model (not which bytes and names belong together), and shares no code
    with it.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, Bytes] = {0: Bytes()}
        self.now: dict[str, int | None] = {}
        self.since: dict[str, set[int | None]] = defaultdict(lambda: {None})

    def apply(self, operation: Operation) -> None:
        match operation:
            case Write(inode, offset, data):
                self.inodes[inode].write(offset, data)
            case Sync(inode):
                self.inodes[inode].sync()
            case SyncFolder(folder):
                for path in list(self.since):
                    if path.rpartition("/")[0] == folder:
                        self.since[path] = {self.now[path]}
            case Names(_, effects):
                for path, number in effects:
                    self.inodes.setdefault(number or 0, Bytes())
                    self.since[path].add(number)
                    self.now[path] = number

    def allows(self, state: MemoryFileSystem) -> bool:
        files, folders = disk(state)
        found = dict(files)
        for path, inodes in self.since.items():
            gone_folder = path.startswith("f/") and "f" not in folders
            if path in found:
                if not any(number and self.inodes[number].allow(found[path]) for number in inodes):
                    return False
            elif path in folders:
                if 0 not in inodes:
                    return False
            elif None not in inodes and not gone_folder:
                return False
        return set(found) <= set(self.since)


def oracles(fs: MemoryFileSystem) -> Iterator[Oracle]:
    """The oracle before the first operation, after the first, … ; it is one object that goes on."""
    assert fs.journal is not None
    oracle = Oracle()
    yield oracle
    for operation in fs.journal.operations:
        oracle.apply(operation)
        yield oracle


@examples(120)
@given(
    st.lists(steps, min_size=5, max_size=30),
    st.sampled_from(["posix", "ordered"]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([40, 400]),
)
def test_every_state_is_possible(
    moves: list[tuple[object, ...]], model: Model, sector: int, torn: bool, limit: int
) -> None:
    check_states(workload(moves), model, sector, torn, limit)


@pytest.mark.parametrize("number", range(60))
def test_every_state_of_a_long_workload_is_possible(number: int) -> None:
    rng = random.Random(number)
    moves: list[tuple[object, ...]] = []
    for _ in range(40):
        path, other = rng.sample(PATHS, 2)
        kinds: list[tuple[object, ...]] = [
            ("write", path, rng.randrange(7), bytes([rng.randrange(1, 256)]) * rng.randrange(1, 6)),
            rng.choice([("sync", path), ("sync_dir", rng.choice(["", "f"]))]),
            rng.choice([("link", path, other), ("rename", path, other), ("unlink", path)]),
            rng.choice([("mkdir",), ("mark",), ("create", path)]),
        ]
        moves += rng.choices(kinds, (5, 2, 2, 2))
    model = MODELS[number % 2]
    check_states(workload(moves), model, rng.randrange(1, 5), rng.random() < 0.7, 600)


def check_states(fs: MemoryFileSystem, model: Model, sector: int, torn: bool, limit: int) -> None:
    states = list(
        crash_states(fs, model=model, sector=sector, torn_sectors=torn, limit=limit, seed=1)
    )
    assert len(states) <= limit
    assert len({(disk(state), len(state.marks)) for state in states}) == len(states)
    for done, oracle in enumerate(oracles(fs)):
        for state in states:
            if state.operations_done == done:
                assert oracle.allows(state), state.description
    points = [state.operations_done for state in states]
    assert points == sorted(points)


@examples(60)
@given(st.lists(steps, min_size=2, max_size=6))
def test_an_ordered_disk_is_a_posix_disk(moves: list[tuple[object, ...]]) -> None:
    fs = workload(moves)
    assert fs.journal is not None
    for done in range(len(fs.journal.operations) + 1):
        posix, ordered = (
            {
                disk(state)
                for state in crash_states(
                    fs, at=done, model=model, sector=4, torn_sectors=False, limit=MUCH
                )
            }
            for model in MODELS[:2]
        )
        assert replayed(fs.journal.operations[:done]) in ordered
        assert ordered <= posix


@examples(100)
@given(
    st.binary(max_size=3),
    st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=3)), max_size=3),
)
def test_sectors_of_one_byte_give_every_subset(
    base: bytes, writes: list[tuple[int, bytes]]
) -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "x", base)
    file = fs.open("x", "rw")
    now, values = bytearray(base), defaultdict[int, list[int]](list)
    lengths = {len(base)}
    for offset, data in writes:
        file.pwritev([data], offset)
        grown = range(max(len(now), offset) + 1, offset + len(data) + 1)
        lengths.update(grown)
        now.extend(bytes(max(0, offset - len(now))))
        now[offset : offset + len(data)] = data
        for place, value in enumerate(data, offset):
            values[place].append(value)
    old = base.ljust(len(now), b"\0")
    expected = {
        bytes(choice)
        for length in lengths
        for choice in itertools.product(*({old[p], *values[p]} for p in range(length)))
    }
    assert contents(fs, "x", sector=1) == expected


@examples(50)
@given(st.lists(steps, max_size=25))
def test_a_killed_process_loses_nothing(moves: list[tuple[object, ...]]) -> None:
    fs = workload(moves)
    assert fs.journal is not None
    operations = fs.journal.operations
    expected: set[tuple[int, Disk]] = set()
    for done in range(len(operations) + 1):
        after = operations[done] if done < len(operations) else None
        cuts = len(after.data) if isinstance(after, Write) else 1
        for cut in range(cuts):
            partly = [after._replace(data=after.data[:cut])] if isinstance(after, Write) else []
            expected.add((done, replayed([*operations[:done], *partly])))
    states = list(crash_states(fs, model="process", limit=MUCH))
    assert {(state.operations_done, disk(state)) for state in states} <= expected
    seen = {(disk(state), len(state.marks)) for state in states}
    assert {found for _, found in expected} == {found for found, _ in seen}


def replayed(operations: list[Operation]) -> Disk:
    files: dict[str, int] = {}
    folders = {""}
    inodes: dict[int, Bytes] = defaultdict(Bytes)
    for operation in operations:
        if isinstance(operation, Write) and operation.data:
            inodes[operation.inode].write(operation.offset, operation.data)
        if isinstance(operation, Names):
            for path, number in operation.effects:
                files.pop(path, None)
                if number == 0:
                    folders.add(path)
                elif number is not None:
                    files[path] = number
    found = {path: bytes(inodes[number].now) for path, number in files.items()}
    return tuple(sorted(found.items())), tuple(sorted(folders))


# Known outcomes.


def test_what_was_synced_is_whole_and_the_rest_is_any_part() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "log", b"AAAA")
    fs.open("log", "rw").pwritev([b"BB", b"CC"], 4)
    found = contents(fs, "log", sector=2, torn_sectors=False)
    zero = b"\0\0"
    assert found == {
        b"AAAA",
        b"AAAABB",
        b"AAAA" + zero,
        b"AAAABBCC",
        b"AAAABB" + zero,
        b"AAAA" + zero + b"CC",
        b"AAAA" + zero + zero,
    }
    assert contents(fs, "log", sector=2, torn_sectors=False, model="ordered") == {
        b"AAAA",
        b"AAAABB",
        b"AAAABBCC",
    }
    assert contents(fs, "log", model="process") == {b"AAAABBCC"}


def test_a_sector_may_tear_inside() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "log", b"a" * 8)
    fs.open("log", "rw").pwritev([b"b" * 8], 0)
    assert contents(fs, "log", torn_sectors=False) == {b"a" * 8, b"b" * 8}
    cuts = set()
    for seed in range(60):
        torn = contents(fs, "log", seed=seed) - {b"a" * 8, b"b" * 8}
        assert len(torn) == 1
        cuts |= torn
    assert cuts == {b"b" * cut + b"a" * (8 - cut) for cut in range(1, 8)}


def test_an_overwritten_sector_may_hold_any_of_its_versions() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "log", b"old")
    file = fs.open("log", "rw")
    for data in (b"one", b"two", b"six"):
        file.pwritev([data], 0)
    assert contents(fs, "log", torn_sectors=False) == {b"old", b"one", b"two", b"six"}
    file.sync()
    assert contents(fs, "log") == {b"six"}


def test_a_file_without_a_synced_name_may_vanish() -> None:
    fs = MemoryFileSystem(record=True)
    file = fs.open("log", "create")
    file.pwritev([b"data"], 0)
    file.sync()
    assert contents(fs, "log") == {None, b"data"}
    fs.sync_dir("")
    assert contents(fs, "log") == {b"data"}


def test_a_synced_name_does_not_bring_the_data() -> None:
    fs = MemoryFileSystem(record=True)
    fs.open("log", "create").pwritev([b"data"], 0)
    fs.sync_dir("")
    assert contents(fs, "log", torn_sectors=False) == {b"", bytes(4), b"data"}


def test_a_folder_that_is_lost_takes_its_files_along() -> None:
    fs = MemoryFileSystem(record=True)
    fs.mkdir("f")
    durable(fs, "f/log", b"data")
    assert contents(fs, "f/log") == {None, b"data"}
    fs.sync_dir("")
    assert contents(fs, "f/log") == {b"data"}


@pytest.mark.parametrize("model", ["posix", "ordered"])
def test_a_rename_happens_whole_or_not_at_all(model: Model) -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "current", b"old")
    durable(fs, "temporary", b"new")
    fs.rename("temporary", "current")
    last = len(fs.journal.operations) if fs.journal else 0
    found = {disk(state)[0] for state in crash_states(fs, at=last, model=model)}
    assert found == {(("current", b"old"), ("temporary", b"new")), (("current", b"new"),)}
    fs.sync_dir("")
    assert contents(fs, "temporary", model=model) == {None}


def test_a_rename_between_folders_comes_apart() -> None:
    fs = MemoryFileSystem(record=True)
    fs.mkdir("a")
    fs.mkdir("b")
    fs.sync_dir("")
    durable(fs, "a/x", b"data")
    fs.rename("a/x", "b/x")
    fs.sync_dir("b")
    assert contents(fs, "b/x") == {b"data"}
    assert contents(fs, "a/x") == {None, b"data"}
    fs.sync_dir("a")
    assert contents(fs, "a/x") == {None}


def test_an_unlinked_name_may_come_back() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "x", b"data")
    fs.unlink("x")
    assert contents(fs, "x") == {None, b"data"}
    fs.sync_dir("")
    assert contents(fs, "x") == {None}


def test_two_names_of_one_file_agree() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "x", b"old")
    fs.link("x", "y")
    fs.sync_dir("")
    fs.open("x", "rw").pwritev([b"new"], 0)
    for state in crash_states(fs, limit=MUCH):
        if content(state, "y") is not None:
            assert content(state, "x") == content(state, "y")
    state.open("x", "rw").pwritev([b"NEW"], 0)
    assert content(state, "y") == b"NEW"


def test_ordered_loses_the_newest_names_first() -> None:
    fs = MemoryFileSystem(record=True)
    for name in "abc":
        fs.open(name, "create")
    last = len(fs.journal.operations) if fs.journal else 0
    found = {
        model: {"".join(name for name, _ in disk(s)[0]) for s in crash_states(fs, model=model)}
        for model in MODELS
    }
    assert found["ordered"] == {"", "a", "ab", "abc"}
    assert found["posix"] == {"", "a", "b", "c", "ab", "ac", "bc", "abc"}
    assert [disk(s)[0] for s in crash_states(fs, at=last, model="process")] == [
        (("a", b""), ("b", b""), ("c", b""))
    ]


@pytest.mark.parametrize("of_file", [False, True])
def test_ordered_makes_all_names_certain_at_any_sync(of_file: bool) -> None:
    fs = MemoryFileSystem(record=True)
    fs.mkdir("f")
    file = fs.open("a", "create")
    assert contents(fs, "a", model="ordered") == {None, b""}
    if of_file:
        file.sync()
    else:
        fs.sync_dir("f")
    assert contents(fs, "a", model="ordered") == {b""}
    assert contents(fs, "a") == {None, b""}


# Marks, choice and limits.


def test_the_same_disk_comes_again_after_a_promise() -> None:
    fs = MemoryFileSystem(record=True)
    fs.open("x", "create")
    fs.mark("promised")
    fs.open("y", "create")
    found = [(state.marks, content(state, "x")) for state in crash_states(fs, at=[0, 1, 2])]
    assert ([], None) in found
    assert (["promised"], None) in found
    assert (["promised"], b"") in found
    assert all(marks for marks, data in found if data is not None)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("limit", [1, 7, 100, 2000])
def test_a_seed_repeats_itself_and_the_limit_holds(model: Model, limit: int) -> None:
    fs = busy()
    first, again, other = (
        [disk(s) for s in crash_states(fs, model=model, limit=limit, seed=seed, sector=16)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert 0 < len(first) <= limit
    assert limit != 100 or first != other


def busy() -> MemoryFileSystem:
    """Many unsynced writes in several files."""
    fs = MemoryFileSystem(record=True)
    files = [fs.open(f"log-{number}", "create") for number in range(3)]
    for turn in range(20):
        file = files[turn % 3]
        file.pwritev([bytes([turn + 1]) * 50], file.size())
        if turn == 10:
            fs.sync_dir("")
            file.sync()
    return fs


def test_the_limit_is_spread_over_the_crash_points() -> None:
    fs = busy()
    assert fs.journal is not None
    points = [state.operations_done for state in crash_states(fs, limit=1000, sector=16)]
    assert set(points) == set(range(len(fs.journal.operations) + 1))
    assert len(points) > 900
    assert max(points.count(point) for point in set(points)) < 120


def test_a_sample_has_both_extremes_and_single_losses() -> None:
    fs = busy()
    last = len(fs.journal.operations) if fs.journal else 0
    found = [disk(state)[0] for state in crash_states(fs, at=last, limit=300, sector=16)]
    whole = disk(fs)[0]
    assert whole in found
    assert min(sum(len(data) for _, data in files) for files in found) == 200
    assert sum(len(set(whole) - set(files)) == 1 for files in found) > 10


def test_points_are_checked() -> None:
    fs = busy()
    last = len(fs.journal.operations) if fs.journal else 0
    assert [s.operations_done for s in crash_states(fs, at=range(3), model="process")] == [0, 1, 2]
    assert list(crash_states(fs, at=[])) == []
    for at in (-1, last + 1):
        with pytest.raises(InvalidValueError, match="crash points go from 0"):
            next(crash_states(fs, at=at))
    for options in ({"sector": 0}, {"limit": 0}, {"model": "hopeful"}):
        with pytest.raises(InvalidValueError):
            next(crash_states(fs, **options))
    with pytest.raises(InvalidValueError, match="record=True"):
        next(crash_states(MemoryFileSystem()))


def test_a_description_says_what_was_lost() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "log", b"AAAA")
    fs.rename("log", "LOG")
    fs.open("LOG", "rw").pwritev([b"BBBB"], 4)
    texts = {s.description for s in crash_states(fs, at=6, torn_sectors=False)}
    fs.open("later", "create").pwritev([b"x"], 0)
    start = "after operation 6 of 6 (write [4:+4] of log): names lost: "
    assert any(text.startswith(f"{start}rename LOG; log: length ") for text in texts)
    assert f"{start}nothing; LOG: length 8, 1 unsynced pieces on disk [0:+8]" in texts
    (cut,) = list(crash_states(fs, at=5, model="process"))[3:]
    assert cut.description.endswith("(rename log -> LOG): the next write cut after 3 of 4 bytes")


def test_states_are_independent_file_systems() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "x", b"data")
    fs.clock_ns = 12345
    lock = fs.lock("LOCK")
    assert lock.try_acquire()
    first, second = list(crash_states(fs))[-2:]
    before = disk(fs), disk(second)
    first.open("x", "rw").pwritev([b"DATA+"], 0)
    first.unlink("x")
    first.mkdir("f")
    assert (disk(fs), disk(second)) == before
    assert second.lock("LOCK").try_acquire()
    assert second.time_ns() == 12345
    assert second.journal is None


# Crashes of crashed disks, and whether the whole finds anything.


def test_a_crashed_disk_can_crash_again() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "x", b"old")
    fs.mark("first")
    fs.open("x", "rw").pwritev([b"new"], 0)
    (lost,) = [
        s
        for s in crash_states(fs, at=4, torn_sectors=False, record=True)
        if b"old" in (content(s, "x") or b"")
    ]
    lost.mark("second")
    lost.open("y", "create")
    assert lost.marks == ["first", "second"]
    again = list(crash_states(lost, record=True))
    assert {(content(s, "x"), content(s, "y")) for s in again} == {(b"old", None), (b"old", b"")}
    assert {tuple(s.marks) for s in again} == {("first", "second")}


def test_what_a_killed_process_left_unsynced_can_still_be_lost() -> None:
    fs = MemoryFileSystem(record=True)
    durable(fs, "log", b"")
    fs.mark("made")
    fs.open("log", "rw").pwritev([b"tail"], 0)
    for killed in crash_states(fs, model="process", record=True):
        tail = content(killed, "log")
        if tail and len(tail) == 2:
            break
    durable(killed, "trusted", tail or b"")
    assert killed.marks == ["made"]
    found = {(content(s, "log"), content(s, "trusted")) for s in crash_states(killed)}
    assert {(b"", b"ta"), (b"ta", b"ta")} <= found
    killed.open("log", "rw").sync()
    assert contents(killed, "log") == {b"ta"}


def save(fs: MemoryFileSystem, number: int, skip: str) -> None:
    """Replace a file durably, leaving out one step."""
    data = b"%d" % number * 20
    fs.unlink("temporary")
    file = fs.open("temporary", "create")
    if skip == "order":
        fs.rename("temporary", "current")
    file.pwritev([data[:7], data[7:]], 0)
    if skip != "sync":
        file.sync()
    if skip == "early":
        fs.mark(number)
    if skip != "order":
        fs.rename("temporary", "current")
    if skip != "sync_dir":
        fs.sync_dir("")
    fs.mark(number)


def damage(fs: MemoryFileSystem, model: Model) -> set[str]:
    """What a reader finds wrong after a crash."""
    found = set()
    for state in crash_states(fs, model=model, sector=8, limit=3000):
        data = content(state, "current") or b""
        acknowledged = max((int(str(mark)) for mark in state.marks), default=0)
        if data not in {b"", *(b"%d" % number * 20 for number in range(1, 4))}:
            found.add("torn")
        elif int(data[:1] or b"0") < acknowledged:
            found.add("lost")
    return found


@pytest.mark.parametrize(
    ("skip", "posix", "ordered", "process"),
    [
        ("nothing", "", "", ""),
        ("sync", "torn", "torn", ""),
        ("sync_dir", "lost", "lost", ""),
        ("order", "torn", "torn", "torn"),
        ("early", "lost", "lost", "lost"),
    ],
)
def test_a_missing_step_is_found(skip: str, posix: str, ordered: str, process: str) -> None:
    fs = MemoryFileSystem(record=True)
    for number in (1, 2, 3):
        save(fs, number, skip)
    for model, expected in zip(MODELS, (posix, ordered, process), strict=True):
        found = damage(fs, model)
        assert expected in found if expected else not found
