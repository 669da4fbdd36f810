"""Reading a version: the compiled twin and Python alone are asked the same, and answer the same."""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.errors import ClosedError, CorruptError, MldbError, TensorNotFoundError
from mldb.log import native
from mldb.log.door import Door
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.segment import Segment
from mldb.tensors import scope as scopes
from mldb.tensors.border import SIZES, MapBorder
from mldb.tensors.reads import ReadNotes
from tests.support.parts import examples

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")
twin: Any = native.twin
HOUR = 3600 * 10**9
NAMES = ("a", "often", "b/c", "sparse", "zstd")
QUIET: dict[str, Any] = {"durability": "os", "background_compaction": False}


def fill(db: mldb.MLDatabase, rng: np.random.Generator, commits: int) -> None:
    """Versions of all kinds along lineages: raw, encoded, referring, deleted, sparse, empty."""
    import scipy.sparse

    kinds: list[Any] = [
        lambda: rng.standard_normal((5, 3)).astype(np.float32),
        lambda: rng.integers(0, 9, 9000).astype(">i4"),
        lambda: rng.standard_normal(3000).astype(ml_dtypes.bfloat16),
        lambda: np.float64(rng.standard_normal()),
        lambda: np.zeros((0, 4), np.int8),
        lambda: np.full(40_000, 7, np.float32),
        lambda: scipy.sparse.random(20, 20, 0.2, format="csr", random_state=1),
    ]
    first = db.epoch
    for epoch in range(first, first + commits):
        with db.transaction(epoch=epoch) as txn:
            for name in NAMES:
                if name == "often" or rng.random() < 0.4:
                    txn.store_tensor(name, kinds[int(rng.integers(0, len(kinds)))]())
            if rng.random() < 0.1 and "a" in db:
                del txn["a"]
        if rng.random() < 0.08 and epoch > 4:
            db.rewind(int(rng.integers(0, epoch)))


def outcome(db: mldb.MLDatabase, name: str, as_of: Any) -> Any:
    """All that can be seen of what a read returns, or of what it raises."""
    try:
        found = db.query_tensor(name, as_of=as_of)
    except MldbError as error:
        return type(error), str(error)
    if not isinstance(found, np.ndarray):
        return type(found), found.shape, found.toarray().tobytes()
    flags = found.flags
    return (
        *(found.shape, found.dtype, found.tobytes(), type(found.base), found.strides),
        *(flags.writeable, flags.aligned, flags.owndata, flags.c_contiguous),
    )


def state_of(db: mldb.MLDatabase) -> Any:
    """What reads leave behind: what is verified, counted and noted."""
    view, source = db._state.view, db._source
    segments = {
        key: (sorted(segment._whole), sorted(segment._blocks), segment.mapped_bytes)
        for key, segment in view.segments.items()
    }
    counters = source.mapped_reads, source.copied_reads, view.units.lookups, view.units.touched
    return segments, counters, sorted(source.reads._fresh), source.reads.noted


@pytest.mark.parametrize("verify", ["first", "never", "always"])
@pytest.mark.parametrize("seed", range(4))
def test_every_read_is_the_same_and_leaves_the_same(tmp_path: Path, seed: int, verify: Any) -> None:
    rng = np.random.default_rng([1, seed])
    options = QUIET | {
        "segment_entries": (40, 1 << 16)[seed % 2],
        "map_bytes": (8000, 0)[seed // 2],
    }
    with mldb.open(tmp_path / "s", compression="zstd", **options) as db:
        fill(db, rng, 20)
    options |= {"compression": None}
    with mldb.open(tmp_path / "s", **options) as db:
        fill(db, rng, 20)
        db._log.tidy_directory()
    options |= {"verify": verify}
    moments = [None, -1, *range(42), 10**6, mldb.Lsn(3), "no such tag", True, np.int64(4), 2**70]
    asked = list(itertools.product((*NAMES, "missing", ""), moments)) * 3
    rng.shuffle(asked)
    unknown = mock.patch.object(scopes.Source, "remember")  # so that each of both looks anew
    with (
        unknown,
        mldb.open(tmp_path / "s", **options) as one,
        mldb.open(tmp_path / "s", **options) as two,
    ):
        for name, as_of in asked:
            fast = outcome(one, name, as_of)
            with native.switched_off():
                assert fast == outcome(two, name, as_of), (name, as_of)
        assert state_of(one) == state_of(two)


def test_known_versions_are_read_without_a_step_of_python(tmp_path: Path) -> None:
    """So that the tests here compare something: mapped and copied, active, sealed and merged."""
    for entries in (1 << 16, 12):
        path = tmp_path / str(entries)
        with mldb.open(path, segment_entries=entries, map_bytes=8000, **QUIET) as db:
            for epoch in range(40):
                with db.transaction(epoch=epoch) as txn:
                    txn["large"] = np.full(5000, epoch, np.float32)
                    txn["small"] = np.full(5, epoch, np.float32)
            db._log.tidy_directory()
        with mldb.open(path, map_bytes=8000, **QUIET) as db:
            # The epoch of the head may be joined by more, so it is not remembered.
            asked = [(name, at) for name in ("large", "small") for at in (*range(39), None)]
            before = [db.query_tensor(name, as_of=at) for name, at in asked]
            with mock.patch("mldb.write.handle.read_array", side_effect=AssertionError):
                again = [db.query_tensor(name, as_of=at) for name, at in asked]
            assert all(map(np.array_equal, before, again))
            with (
                db.at(7) as snapshot,
                mock.patch.object(scopes, "read_array", side_effect=KeyError),
            ):
                assert snapshot["large"][0] == 7
            assert (entries == 12) == (len(db._state.view.sealed) > 2)
            assert (entries == 12) == (db._state.view.units.lookups > 60)


def test_the_first_read_of_bytes_verifies_them_in_one_pass(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s", map_bytes=8000, **QUIET) as db:
        for epoch in range(5):
            db.store_tensor("w", np.arange(300_000, dtype=np.float64) + epoch, epoch=epoch)
    with mldb.open(tmp_path / "s", map_bytes=8000, **QUIET) as db:
        for epoch in range(4):
            db.query_tensor("w", as_of=epoch)
        segment = db._state.active.segment
        frames = set(segment._whole)
        segment._whole.clear()
        with mock.patch.object(Segment, "_find_blocks", side_effect=AssertionError):
            for epoch in range(4):  # not that of the head, which is not remembered
                assert db.query_tensor("w", as_of=epoch)[1] == epoch + 1
        assert segment._whole == frames


def damaged_copies(data: bytes, start: int, stop: int) -> Iterator[bytes]:
    """The file with one bit of each byte of a frame flipped."""
    for at in range(start, stop):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


@pytest.mark.parametrize("size", [40, 3000])
def test_damage_is_told_by_python_and_believed_by_nobody(tmp_path: Path, size: int) -> None:
    """Each byte of a frame is flipped: header, body, checksums, padding, payload."""
    with mldb.open(tmp_path / "s", map_bytes=0, **QUIET) as db:
        for epoch in range(3):
            db.store_tensor("w", np.arange(size, dtype=np.uint8) + epoch, epoch=epoch)
    with mldb.open(tmp_path / "s", map_bytes=0, mode="r") as db:
        for epoch in range(3):
            db.query_tensor("w", as_of=epoch)
        segment, entry = db._state.active.segment, db._scope(1).tensor_entry("w")
        frame, _ = segment.frame(entry.frame)
        whole = bytes(segment._map)
        step = 1 if size < 100 else 17
        start = entry.frame if size < 100 else frame.payload_offset
        told = 0
        for data in itertools.islice(damaged_copies(whole, start, frame.end), 0, None, step):
            found = []
            for pure in (False, True):
                segment._map, segment._whole, segment._blocks = memoryview(data), set(), {}
                if pure:
                    with native.switched_off():
                        found.append((outcome(db, "w", 1), outcome(db, "w", 2), segment._whole))
                else:
                    found.append((outcome(db, "w", 1), outcome(db, "w", 2), segment._whole))
            assert found[0] == found[1]
            told += found[0][0][0] is CorruptError
        assert told == len(range(start, frame.end, step))


def test_a_frame_of_several_tensors_is_verified_as_python_does_it(tmp_path: Path) -> None:
    """Small ones share a frame; one of many blocks is verified as far as it is read."""
    with mldb.open(tmp_path / "s", map_bytes=0, **QUIET) as db, db.transaction(epoch=1) as txn:
        for number in range(9):
            txn[f"w{number}"] = np.full(100 + number, number, np.float32)
        txn["large"] = np.arange(700_000, dtype=np.float32)
    options = QUIET | {"map_bytes": 0}
    with mldb.open(tmp_path / "s", **options) as one, mldb.open(tmp_path / "s", **options) as two:
        names = [f"w{number}" for number in range(9)] + ["large"]
        for name in [*names, *names]:
            fast = outcome(one, name, 1)
            with native.switched_off():
                assert fast == outcome(two, name, 1)
        assert state_of(one) == state_of(two)


def test_what_is_closed_forked_or_gone_is_refused_as_before(tmp_path: Path) -> None:
    db = mldb.open(tmp_path / "s", map_bytes=0, **QUIET)
    for epoch in range(4):
        db.store_tensor("w", np.full(3000, epoch), epoch=epoch)
    for _ in range(2):
        kept = db.query_tensor("w", as_of=1)
    child = os.fork()
    if not child:
        try:
            db.query_tensor("w", as_of=1)
        except ClosedError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    del db["w"]
    with pytest.raises(TensorNotFoundError):
        db["w"]
    assert db.query_tensor("w", as_of=1)[0] == 1
    db.close()
    with pytest.raises(ClosedError):
        db.query_tensor("w", as_of=1)
    assert kept[-1] == 1


def test_a_commit_of_another_handle_is_seen_by_the_next_read(tmp_path: Path) -> None:
    """The look at two sizes is all that stands between a read and an old answer."""
    with mldb.open(tmp_path / "s", **QUIET) as one, mldb.open(tmp_path / "s", **QUIET) as two:
        for epoch in range(30):
            one.store_tensor("w", np.full(4, epoch), epoch=epoch)
            assert two["w"][0] == epoch
            assert two.query_tensor("w", as_of=epoch)[0] == epoch
        one.rewind(3)
        one.store_tensor("w", np.full(4, 99), epoch=4)
        assert [int(two.query_tensor("w", as_of=at)[0]) for at in (2, 4, 7)] == [2, 99, 99]


def test_what_is_read_outlives_what_it_was_read_from(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s", map_bytes=0, max_mapped=1, segment_entries=4, **QUIET) as db:
        for epoch in range(30):
            db.store_tensor("w", np.full(2000, epoch), epoch=epoch)
        arrays = [db.query_tensor("w", as_of=at) for at in [*range(30)] * 3]
        assert db.stats()["mappings_released"] > 30
    assert [int(array[-1]) for array in arrays] == [*range(30)] * 3


def test_two_sizes_are_compared_as_python_does_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 7)
    (tmp_path / "b").write_bytes(b"x" * 9)
    fs = OsFileSystem(str(tmp_path))
    one, two = fs.open("a", "r"), fs.open("b", "r")
    for size, other in itertools.product((-2, -1, 0, 7, 9, 2**62), repeat=2):
        expected = one.size() == size and two.size() == other
        assert twin.are_as_long(one, size, two, other) is expected
    memory = MemoryFileSystem()
    held = memory.open("a", "create")
    for odd in (None, held, 3, "a", object()):
        assert twin.are_as_long(one, 7, odd, 0) is False
        assert twin.are_as_long(odd, 0, two, 9) is False
    two.close()
    assert twin.are_as_long(one, 7, two, 9) is False
    assert twin.are_as_long(one, 7, two, -1) is False


odd_things = st.sampled_from(
    [None, 0, -1, 2**70, "w", b"\x01w", (), (1,), ((1, 2),), [], {}, {"w": 1}, 1.5, object(), True]
)


@given(st.data())
@examples(300)
def test_odd_things_are_not_mine(data: st.DataObject) -> None:
    """Fields of the scope and of the view, and the arguments themselves, are replaced by others."""
    db = mldb.MLDatabase.on(MemoryFileSystem(), map_bytes=0, **QUIET)
    for epoch in range(3):
        db.store_tensor("w", np.full(64, epoch, np.uint8), epoch=epoch)
    for at in (0, 1, 2, None, 0, 1):
        db.query_tensor("w", as_of=at)
    scope = db._scope(1)
    expected = twin.read(scope, "w", HOUR)
    assert expected is not None
    fields: list[Any] = list(scope.view)
    for at in data.draw(st.sets(st.sampled_from([0, 1, 5, 7, 9, 10]), max_size=3)):
        fields[at] = data.draw(odd_things)
    view = type(scope.view)._make(fields) if data.draw(st.booleans()) else tuple(fields)
    intervals = data.draw(st.just(scope.intervals) | odd_things)
    source = data.draw(st.just(scope.source) | odd_things)
    changed: Any = scope._replace(view=view, intervals=intervals, source=source)  # type: ignore[arg-type]
    name: Any = data.draw(st.just("w") | odd_things)
    found = twin.read(changed, name, HOUR)
    assert found is None or found.tobytes() == expected.tobytes()
    as_of: Any = data.draw(st.sampled_from([None, 0, 1, 2, True, 2**70, "x", 1.0]))
    found = twin.read_as_of(source, view, as_of, name, HOUR)
    assert found is None or found.size == 64
    assert twin.read(data.draw(odd_things), "w", HOUR) is None
    db.close()


def test_descriptions_that_do_not_fit_their_bytes_are_not_mine() -> None:
    db = mldb.MLDatabase.on(MemoryFileSystem(), map_bytes=0, **QUIET)
    db.store_tensor("w", np.arange(64, dtype=np.uint8))
    for _ in range(2):
        db["w"]
    scope = db._scope()
    attr = scope.tensor_entry("w").attr
    assert twin.read(scope, "w", HOUR) is not None
    shape, dtype, size = scopes._plain[attr]
    assert (shape, dtype, size) == ((64,), np.dtype(np.uint8), 64)
    odd: list[Any] = [
        ((65,), dtype, 64),
        ((64,), np.dtype(np.uint16), 64),
        ((-64,), dtype, 64),
        ((0,), dtype, 64),
        ((2**62, 4), dtype, 64),
        ((64,), dtype, 63),
        ((1,) * 40 + (64,), dtype, 64),
    ]
    for description in odd:
        with mock.patch.dict(scopes._plain, {attr: description}):
            assert twin.read(scope, "w", HOUR) is None
    db.close()


def test_it_is_met_with_the_classes_that_it_knows() -> None:
    kinds = (scopes.Scope, scopes.Source, Door, MapBorder, ReadNotes)
    for place in range(5):
        with pytest.raises((AttributeError, TypeError)):
            twin.meet((*kinds[:place], int, *kinds[place + 1 :]), 1, {}, {})
    with pytest.raises(TypeError):
        twin.meet(kinds, 1, None, {})
    twin.meet(kinds, SIZES[0], scopes._keys, scopes._plain)


def test_threads_read_while_all_that_is_known_is_forgotten(tmp_path: Path) -> None:
    """Hashing lets other threads run, who may replace whatever was found before."""
    path, count = tmp_path / "s", 40
    with mldb.open(path, map_bytes=4000, segment_entries=64, max_mapped=3, **QUIET) as db:
        for epoch in range(count):
            with db.transaction(epoch=epoch) as txn:
                txn["large"] = np.full(30_000, epoch, np.float32)
                txn["small"] = np.full(9, epoch, np.float32)
        wrong: list[Any] = []
        done = threading.Event()

        def read(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(2500):
                epoch, name = rng.randrange(count), rng.choice(("large", "small"))
                array = db.query_tensor(name, as_of=epoch)
                if array[0] != epoch or array[-1] != epoch:
                    wrong.append((name, epoch))

        def forget() -> None:
            rng = random.Random(7)
            while not done.is_set():
                for segment in list(db._state.view.segments.values()):
                    segment._whole = set()
                rng.choice((scopes._plain.clear, scopes._keys.clear, db._source.reads.known))()
                db._state.mappings.release_all()

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            spoiler = threading.Thread(target=forget)
            readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
            for thread in (spoiler, *readers):
                thread.start()
            for thread in readers:
                thread.join()
            done.set()
            spoiler.join()
        finally:
            done.set()
            sys.setswitchinterval(before)
        assert wrong == []
