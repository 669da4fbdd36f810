"""Mapped segments are bounded, and letting one go never hurts a reader."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import StorageIOError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.mappings import MappingBudget
from tests.support.faults import FaultFileSystem


class _Item:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_the_longest_mapped_goes_first() -> None:
    budget = MappingBudget(2)
    items = [_Item() for _ in range(3)]
    for item in items:
        budget.note(item)
    assert [item.released for item in items] == [1, 0, 0]
    assert (len(budget), budget.released) == (2, 1)


def test_noting_again_does_not_count_twice() -> None:
    budget = MappingBudget(2)
    item, other = _Item(), _Item()
    for _ in range(5):
        budget.note(item)
    budget.note(other)
    assert (item.released, other.released, budget.released) == (0, 0, 0)


@pytest.mark.parametrize(("limit", "most"), [(2, 3), (64, 12)])
def test_a_store_maps_no_more_than_it_may(store_path: Path, limit: int, most: int) -> None:
    """The option changes how many segments stay mapped; every array stays right and alive."""
    with mldb.open(store_path, segment_bytes=40_000, durability="os") as db:
        for epoch in range(10):
            db.store_tensor("x", np.full(10_000, epoch, "f4"), epoch=epoch)
    with mldb.open(store_path, max_mapped=limit, map_bytes=1) as db:
        held = [db.query_tensor("x", as_of=epoch) for epoch in range(10)]
        held += [db.query_tensor("x", as_of=epoch) for epoch in reversed(range(10))]
        stats = db.stats()
        assert stats["max_mapped"] == limit
        assert stats["mapped_segments"] <= most
        assert (stats["mappings_released"] > 0) == (limit == 2)
    expected = [*range(10), *reversed(range(10))]
    assert [float(array[-1]) for array in held] == expected


# --- a store that grows while arrays of it are kept -----------------------------------------------

_GROWING = """
import json, os, resource, sys
import numpy as np
import mldb

path, small = sys.argv[1], int(sys.argv[2])

def mapped():
    with open("/proc/self/maps") as maps:
        return [line.split()[-1] for line in maps if path in line]

def descriptors():
    return len(os.listdir("/proc/self/fd"))

before = descriptors()
most_maps = most_descriptors = 0
with mldb.open(path, map_bytes=0, durability="os", segment_bytes=small) as db:
    kept = []
    for number in range(10_000):
        db.store_tensor(f"x{number % 7}", np.full(300, number))
        kept.append(db[f"x{number % 7}"])
        if number % 100 == 99:
            most_maps = max(most_maps, len(mapped()))
            most_descriptors = max(most_descriptors, descriptors() - before)
    right = [int(array[-1]) for array in kept] == list(range(10_000))
    files = len(set(mapped()))
    segments = db.stats()["segments"]
print(json.dumps([most_maps, most_descriptors, right, files, segments]))
"""


def run(code: str, *arguments: object) -> Any:
    """Run *code* in a process of its own and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(mldb.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_ten_thousand_kept_arrays_of_a_growing_segment_hold_a_handful_of_mappings(
    store_path: Path,
) -> None:
    """It was one mapping and one descriptor for each array: the 1,021st read failed."""
    maps, descriptors, right, files, segments = run(_GROWING, store_path, 256 << 20)
    assert (right, files, segments) == (True, 2, 1)  # the segment, and the hint of its index
    assert maps <= 16
    assert descriptors <= 32 + files


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_they_hold_a_handful_for_each_segment_where_the_log_rolls_meanwhile(
    store_path: Path,
) -> None:
    maps, descriptors, right, files, segments = run(_GROWING, store_path, 4 << 20)
    assert right
    assert 5 < files <= segments
    assert maps <= 16 * files
    assert descriptors <= 32 + maps


# --- no descriptor left ---------------------------------------------------------------------------


class Exhausted(FaultFileSystem):
    """Maps nothing any more, once ``lacking``; notes what was read instead."""

    def __init__(self, inner: MemoryFileSystem) -> None:
        super().__init__(inner)
        self.lacking = False
        self.read: list[tuple[str, int]] = []

    def open(self, name: str, mode: Any) -> Any:
        """Open a file whose reads are noted."""
        file = super().open(name, mode)
        outer, pread = self, file.pread

        class Noted:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(file, attribute)

            def map(self, count: int) -> memoryview:
                if outer.lacking:
                    raise StorageIOError("mmap failed with EMFILE", errno=errno.EMFILE)
                return file.map(count)

            map_private = map

            def pread(self, count: int, offset: int) -> bytes:
                outer.read.append((name, count))
                return pread(count, offset)

        return Noted()


def test_without_room_for_a_mapping_a_read_copies_its_range_and_never_the_segment() -> None:
    """A read copied the whole segment into private memory: 2.5 GiB in ten reads."""
    fs = MemoryFileSystem()
    large = np.arange(3 << 20, dtype=np.uint8)
    with mldb.MLDatabase.on(fs, segment_entries=5, durability="os") as db:
        for epoch in range(12):
            db.store_tensor("x", large + np.uint8(epoch), epoch=epoch)
            db.store_tensor(f"small{epoch}", [epoch], {"e": epoch}, epoch=epoch)
    fault = Exhausted(fs)
    with mldb.MLDatabase.on(fault, mode="r", map_bytes=0) as db:
        assert len(db.history("x")) == 12  # its indexes are mapped
        for segment in db._log.state.parts.segments.values():
            segment.unmap()
        fault.lacking = True
        for epoch in (0, 5, 11):
            fault.read.clear()
            array = db.query_tensor("x", as_of=epoch)
            assert np.array_equal(array, large + np.uint8(epoch))
            assert not array.flags.writeable
            read = sum(count for name, count in fault.read if name.endswith(".seg"))
            assert large.nbytes <= read < large.nbytes + (300 << 10), "the range and some heads"
            fault.read.clear()
            part = db.tensor("x", as_of=epoch)[2_000_000:2_000_100]
            assert part.tolist() == (large + np.uint8(epoch))[2_000_000:2_000_100].tolist()
            read = sum(count for name, count in fault.read if name.endswith(".seg"))
            assert read < (2 << 20) + (300 << 10), "the blocks that hold it"
            assert db.query_tensor(f"small{epoch}", as_of=epoch).tolist() == [epoch]
            assert db.metadata(f"small{epoch}", as_of=epoch) == {"e": epoch}
        assert len(list(db.events())) == 24
        assert sorted(db) == sorted(["x", *(f"small{epoch}" for epoch in range(12))])
        fault.lacking = False
        assert db["x"][7] == 18


_EXHAUSTED = """
import json, os, resource, sys
import numpy as np
import mldb

path = sys.argv[1]
with mldb.open(path, map_bytes=0, segment_entries=3, durability="os") as db:
    for epoch in range(60):
        db.store_tensor("x", np.full(100_000, epoch, "u1"), epoch=epoch)
limit = len(os.listdir("/proc/self/fd")) + 24
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
with mldb.open(path, map_bytes=0) as db:
    kept = [db.query_tensor("x", as_of=epoch) for epoch in range(60)]
    again = [db.query_tensor("x", as_of=epoch) for epoch in range(60)]
    names = db.names()
    db["y"] = 1
    right = [int(array[-1]) for array in kept + again] == [*range(60), *range(60)]
    written = int(db["y"]), db.verify().ok
print(json.dumps([right, names, written]))
"""


def test_with_few_descriptors_reads_and_writes_go_on(store_path: Path) -> None:
    """Arrays that are kept hold theirs; the rest gives way to who needs one."""
    assert run(_EXHAUSTED, store_path) == [True, ["x"], [1, True]]


# --- listings -------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_a_listing_maps_no_more_segments_at_once_than_it_may(store_path: Path) -> None:
    """Each of 40 has its own names, and all are walked at the same time."""
    names = {f"n{place}/{number}" for number in range(40) for place in range(3)}
    with mldb.open(store_path, segment_entries=3, durability="os") as db:
        for number in range(40):
            with db.transaction() as txn:
                for place in range(3):
                    txn[f"n{place}/{number}"] = number
    del txn  # and what it has mapped
    with mldb.open(store_path, max_mapped=4) as db:
        seen = set()
        most = 0
        for name in db:
            seen.add(name)
            with open("/proc/self/maps", encoding="utf-8") as maps:
                lines = {line.split()[-1] for line in maps if str(store_path / "segments") in line}
            most = max(most, len(lines))
        assert seen == names
        assert most <= 4 + 3, (
            "those that may be mapped, one in hand and the maker's, the active one"
        )
        assert db.stats()["mapped_segments"] <= 4 + 1
        assert len(list(db.events())) == 120
        assert db.stats()["mapped_segments"] <= 4 + 1


# --- the budget itself ----------------------------------------------------------------------------


def test_what_is_gone_is_not_kept_alive_nor_counted_for_ever() -> None:
    budget = MappingBudget(3)
    items = [_Item() for _ in range(2)]
    gone = weakref.ref(items[0])
    for item in items:
        budget.note(item)
    del item, items[0]
    assert gone() is None
    for _ in range(3):
        budget.note(_Item())
    assert len(budget) <= 3


def test_all_of_it_can_be_given_back_at_once() -> None:
    budget = MappingBudget(5)
    items = [_Item() for _ in range(4)]
    for item in items:
        budget.note(item)
    assert budget.release_all()
    assert [item.released for item in items] == [1, 1, 1, 1]
    assert not budget.release_all()
    assert len(budget) == 0
