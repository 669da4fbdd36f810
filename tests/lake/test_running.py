"""Iterations that run beside one another, and how each begins, ends and fails.

The story behind this file: a second iteration of a loader ended the first one, so that
``len(list(zip(l, l)))`` was 1 of 5; a state taken in the last step of a pass resumed into an empty
one; and one error in the middle of a pass skipped the rest of it.
"""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest

import mldb
from mldb.gpu.reference import NumpyDevice
from mldb.lake.augment import devices
from mldb.lake.order.passes import Pass, Passes
from mldb.lake.order.plan import Plan
from mldb.lake.rows.tiers import Segments
from mldb.lake.stream.batches import Stream
from mldb.lake.stream.settings import StreamOptions
from tests.lake.test_prefetch import threads
from tests.support.lakes import BATCH, KINDS, ROWS, data, db, fill, raw, stream

__all__ = ["data", "db"]

torch = pytest.importorskip("torch")

BATCHES = 16


def passes_of(lake: Any, kind: str, count: int, **options: Any) -> list[list[bytes]]:
    """The batches of the first passes, each read alone."""
    found = []
    for number in range(count):
        alone = stream(lake, kind, **options)
        alone.dataset.set_pass(number)
        found.append(raw(alone))
    return found


# --- side by side ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 8])
@pytest.mark.parametrize("kind", [*KINDS])
def test_two_iterations_of_a_loader_leave_each_other_alone(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str, prefetch: int
) -> None:
    lake = fill(db, data)
    first, second, third = passes_of(lake, kind, 3)
    loader = stream(lake, kind, prefetch=prefetch)
    pairs = list(zip(loader, loader, strict=True))
    assert len(pairs) == len(first)
    assert raw(pair[0] for pair in pairs) == first
    assert raw(pair[1] for pair in pairs) == second
    assert raw(loader) == third


@pytest.mark.parametrize("options", [{}, {"loader": {"collate_fn": lambda batch: batch}}])
def test_a_look_at_the_first_batch_ends_nothing(
    db: mldb.MLDatabase, data: dict[str, Any], options: dict[str, Any]
) -> None:
    """``next(iter(loader))`` in a step, for a picture of what comes: the epoch ended there."""
    lake = fill(db, data)
    passes = passes_of(lake, "permutation", 4)
    loader = stream(lake, **options)
    got = []
    for number, batch in enumerate(loader):
        got += raw([batch])
        if number < 3:
            assert raw([next(iter(loader))]) == passes[number + 1][:1]
    assert got == passes[0]


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_iterations_with_workers_are_independent_too(
    store_path: Path, data: dict[str, Any], persistent: bool
) -> None:
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        passes = passes_of(lake, "isotropic", 5)
        options = {"multiprocessing_context": "fork", "persistent_workers": persistent}
        loader = stream(lake, "isotropic", num_workers=2, loader=options)
        first = iter(loader)
        got = raw(itertools.islice(first, 3))
        second = iter(loader)
        assert raw([next(second)]) == passes[1][:1]
        assert (loader.state_dict()["pass"], loader.state_dict()["done"]) == (1, 1)
        assert got + raw(first) == passes[0]
        assert raw(second) == passes[1][1:]
        assert raw(loader) == passes[2]
        for batch in loader:
            assert raw([batch]) == passes[3][:1]
            break
        assert raw(loader) == passes[4]
        del first, second
        loader.dataset.set_pass(0)
        older, newer = iter(loader), iter(loader)
        assert raw([next(newer), next(older)]) == [passes[1][0], passes[0][0]]
        assert raw([next(iter(loader))]) == passes[2][:1]  # the third, whoever came last


class FailWhere:
    """A collate function that fails in the workers while ``at`` is not 0."""

    def __init__(self) -> None:
        self.at = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __call__(self, batch: Any) -> Any:
        if self.at.item():
            raise KeyError("collate")
        return batch


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_in_a_worker_costs_no_batch(
    store_path: Path, data: dict[str, Any], persistent: bool
) -> None:
    """Those that persist had gone on with the pass, or to the next one."""
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        passes = passes_of(lake, "isotropic", 3)
        fail = FailWhere()
        options = {"multiprocessing_context": "fork", "persistent_workers": persistent}
        options |= {"collate_fn": fail, "prefetch_factor": 1}
        loader = stream(lake, "isotropic", num_workers=2, loader=options)
        assert raw(loader) == passes[0]
        fail.at.fill_(1)
        for _ in range(2):
            with pytest.raises(KeyError):
                next(iter(loader))
        fail.at.fill_(0)
        iterator = iter(loader)
        got = raw(itertools.islice(iterator, 5))
        fail.at.fill_(1)
        rest: list[Any] = []
        with pytest.raises(KeyError):
            rest.extend(iterator)
        fail.at.fill_(0)
        assert got + raw(rest) + raw(loader) == passes[1]
        assert raw(loader) == passes[2]


def test_the_state_is_that_of_the_newest_iteration(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    passes = passes_of(lake, "permutation", 3)
    loader = stream(lake)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    next(second)
    state = loader.state_dict()
    assert raw(first) == passes[0][1:]
    assert loader.state_dict() == state
    resumed = stream(lake)
    resumed.load_state_dict(state)
    assert raw(resumed) == raw(second) == passes[1][2:]


def test_what_the_next_iteration_begins_with_ends_none_that_runs(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    want = passes_of(lake, "permutation", 1)[0]
    loader = stream(lake)
    running = iter(loader)
    got = raw(itertools.islice(running, 2))
    state = loader.state_dict()
    loader.dataset.set_pass(9)
    assert (loader.state_dict()["pass"], loader.dataset.pass_number) == (9, 9)
    loader.load_state_dict(state)
    assert got + raw(running) == want
    assert loader.state_dict() == state | {"cursor": 2, "done": 0}
    assert raw(loader) == want[2:]


def test_a_second_iteration_does_not_double_the_memory_of_the_tiers(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    want = passes_of(lake, "permutation", 3)
    loader = stream(lake, warm_bytes=1 << 20)
    first = iter(loader)
    next(first)
    assert loader.stats()["warm"]["misses"] == 0
    second = iter(loader)
    assert raw(itertools.islice(second, 3)) == want[1][:3]
    assert loader.stats()["warm"] is None  # it reads from the segments
    del first
    assert raw(second) == want[1][3:]
    list(loader)
    moved = loader.stats()["warm"]["moved_bytes"]
    assert moved == lake.get()["mu"].nbytes  # the tier of the first one, that came in once


def test_a_stream_refuses_a_second_user(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    rows = fill(db, data).rows()
    options = StreamOptions(batch_size=BATCH, order="sequential", device="numpy")
    current = Passes(rows, options).plan(0)
    one = Stream(rows, "sphere", options)
    flow = one.flow(current, current.plan.read())
    next(flow)
    with pytest.raises(mldb.UsageError, match="take one of your own"):
        next(one.flow(current, current.plan.read()))
    with pytest.raises(mldb.UsageError, match="take one of your own"):
        one.make(current, current.plan.batch(0))
    assert len(list(flow)) == BATCHES - 1
    assert one.make(current, current.plan.batch(0)).shape[0] == BATCH


def test_an_iteration_that_was_left_keeps_no_thread(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    """The dataset knows how far it came, and does not keep it alive."""
    loader = stream(fill(db, data))
    gc.disable()
    try:
        for _ in loader:
            assert threads() == 1
            break
        assert threads() == 0
        iterator = iter(loader)
        assert threads() == 0  # nothing begins before it is asked
        next(iterator)
        iterator.close()
        assert (threads(), list(iterator)) == (0, [])
    finally:
        gc.enable()


# --- the end of a pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_state_of_any_step_names_the_next_batch(
    db: mldb.MLDatabase, data: dict[str, Any], world: int, even: bool
) -> None:
    """Each rank, resumed from a state of its own, does what it would have done: never nothing."""
    lake = fill(db, data)
    for rank in range(world):
        place: dict[str, Any] = {"rank": rank, "world": world, "even_ranks": even}
        loader = stream(lake, **place)
        steps = [(raw([batch])[0], loader.state_dict()) for _ in range(2) for batch in loader]
        batches = [batch for batch, _ in steps]
        half = len(batches) // 2
        for at, (_, state) in enumerate(steps[: half + 1], 1):
            resumed = stream(lake, **place)
            resumed.load_state_dict(state)
            rest = batches[at:half] if at < half else batches[at:]
            assert rest
            assert len(resumed) == len(rest)
            assert raw(resumed) == rest, f"after step {at} of rank {rank}"
            if at < half:
                assert raw(resumed) == batches[half:]


def test_all_ranks_agree_on_the_pass_when_all_are_done(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    """In the last common step a state still names the batch that one rank alone has."""
    lake = fill(db, data)
    want = passes_of(lake, "permutation", 2)
    ranks = [stream(lake, rank=rank, world=3) for rank in range(3)]
    states = [[loader.state_dict() for _ in loader] for loader in ranks]
    assert [len(found) for found in states] == [6, 5, 5]
    assert states[0][:5] == states[1] == states[2]
    assert states[0][5]["pass"] == 1
    alone = stream(lake)
    alone.load_state_dict(states[1][-1])
    assert raw(alone) == want[0][15:]
    assert raw(alone) == want[1]
    # Where that batch is left out, so that all make as many steps, all are done.
    for rank in range(3):
        loader = stream(lake, rank=rank, world=3, even_ranks=True)
        last = [loader.state_dict() for _ in loader][-1]
        assert (last["pass"], last["cursor"], last["done"]) == (1, 0, 0)


@pytest.mark.slow
def test_a_state_of_the_last_step_with_workers_names_the_next_pass(
    store_path: Path, data: dict[str, Any]
) -> None:
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        want = passes_of(lake, "isotropic", 2)
        options = {"num_workers": 2, "loader": {"multiprocessing_context": "fork"}}
        loader = stream(lake, "isotropic", **options)
        states = [loader.state_dict() for _ in loader]
        for at in (14, 15, 16):
            resumed = stream(lake, "isotropic", **options)
            resumed.load_state_dict(states[at - 1])
            assert raw(resumed) == (want[0][at:] or want[1])


def test_a_state_of_no_batch_is_refused(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    loader = stream(fill(db, data))
    state = loader.state_dict()
    for key in ("cursor", "done"):
        with pytest.raises(mldb.InvalidValueError, match="a pass has at most"):
            loader.load_state_dict(state | {key: 10**12})
    loader.load_state_dict(state | {"cursor": BATCHES})  # as states of the last step once were
    assert len(raw(loader)) == BATCHES


# --- errors ---------------------------------------------------------------------------------------


class FailOnce:
    """A reader of segments that fails with EIO at one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        gather = Segments.gather

        def failing(segments: Any, rows: Any, out: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise mldb.StorageIOError("EIO", errno=5)
            gather(segments, rows, out)

        monkeypatch.setattr(Segments, "gather", failing)


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("kind", ["permutation", "isotropic"])
@pytest.mark.parametrize("again", ["the iterator", "the loader"])
def test_one_error_in_the_middle_of_a_pass_costs_no_row(
    db: mldb.MLDatabase,
    data: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    prefetch: int,
    again: str,
) -> None:
    """The rest of the pass was skipped, 5,056 of 6,400 rows, and every retry burnt a pass."""
    lake = fill(db, data)
    first, second = passes_of(lake, kind, 2)
    for at in (1, 2, 9, BATCHES):
        with monkeypatch.context() as patch:
            loader = stream(lake, kind, prefetch=prefetch)
            FailOnce(patch, at)
            got, iterator = [], iter(loader)
            with pytest.raises(mldb.StorageIOError, match="EIO"):
                got.extend(iterator)
            got = raw(got)
            state = loader.state_dict()
            assert (state["pass"], state["cursor"] + state["done"]) == (0, len(got))
            rest = raw(iterator if again == "the iterator" else loader)
            assert got + rest == first, at
            assert raw(loader) == second
            assert threads() == 0


def test_an_error_that_stays_burns_no_pass(
    db: mldb.MLDatabase, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(db, data)
    want = passes_of(lake, "permutation", 1)[0]
    loader = stream(lake, prefetch=0)
    fault = FailOnce(monkeypatch, 6)
    iterator = iter(loader)
    got = raw(itertools.islice(iterator, 5))
    for source in (iterator, loader, loader, iterator, loader):
        with pytest.raises(mldb.StorageIOError):
            list(source)
        fault.left = 1
    fault.left = 0
    assert got + raw(loader) == want


class Losable(NumpyDevice):
    """A device that is lost at one batch. ``opened`` counts them, ``gone`` lets none be opened."""

    opened: ClassVar[list[Losable]]
    gone = False
    at = 0

    def __init__(self) -> None:
        super().__init__()
        self.opened.append(self)
        self.closed = False

    def isotropic(self, *arguments: Any) -> Any:
        type(self).at -= 1
        if not self.usable or self.at == 0:
            self.usable = False
            raise mldb.GpuUnavailableError("the device was lost")
        return super().isotropic(*arguments)

    def close(self) -> None:
        self.closed = True

    @classmethod
    def open(cls, spec: str, *, copy: bool, needs: object = None) -> Losable:
        if cls.gone:
            raise mldb.GpuUnavailableError(f"there is no device {spec!r}")
        return cls()


@pytest.fixture
def losable(monkeypatch: pytest.MonkeyPatch) -> type[Losable]:
    class Fresh(Losable):
        opened: ClassVar[list[Losable]] = []

    monkeypatch.setattr(devices, "open_device", Fresh.open)
    monkeypatch.setattr(devices, "_idle", {})
    return Fresh


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_lost_device_is_opened_again(
    db: mldb.MLDatabase, data: dict[str, Any], losable: type[Losable], prefetch: int
) -> None:
    """It never was: every iteration that followed failed at its first batch."""
    lake = fill(db, data)
    first, second = passes_of(lake, "isotropic", 2)
    losable.opened.clear()
    devices._idle.clear()
    loader = stream(lake, "isotropic", prefetch=prefetch)
    losable.at = 6
    got: list[Any] = []
    with pytest.raises(mldb.GpuUnavailableError, match="was lost"):
        got.extend(loader)
    assert 0 < len(got) < 6
    assert raw(got) + raw(loader) == first
    assert raw(loader) == second
    assert [device.closed for device in losable.opened] == [True, False]


def test_a_device_that_was_named_and_is_gone_is_refused(
    db: mldb.MLDatabase, data: dict[str, Any], losable: type[Losable]
) -> None:
    lake = fill(db, data)
    want = passes_of(lake, "isotropic", 1)[0]
    loader = stream(lake, "isotropic", device="vulkan:0")
    losable.at = 5
    with pytest.raises(mldb.GpuUnavailableError, match="was lost"):
        list(loader)
    losable.gone = True
    for _ in range(3):
        with pytest.raises(mldb.GpuUnavailableError, match="there is no device 'vulkan:0'"):
            next(iter(loader))
    losable.gone = False
    state = loader.state_dict()
    number = state["cursor"] + state["done"]
    assert raw(loader) == want[number:]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_out_of_order_are_refused(
    db: mldb.MLDatabase, data: dict[str, Any], workers: int
) -> None:
    """A state counts batches: resumed, 300 of 1,600 rows were lost and 300 came twice."""
    lake = fill(db, data)
    with pytest.raises(mldb.InvalidValueError, match="in_order=False"):
        stream(lake, "isotropic", num_workers=workers, loader={"in_order": False})
    options = {"in_order": True}
    assert len(stream(lake, "isotropic", num_workers=workers, loader=options)) == BATCHES


def test_a_plan_of_a_pass_is_one_object_for_all_who_read_it(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    rows = fill(db, data).rows()
    passes = Passes(rows, StreamOptions(batch_size=BATCH, order="permutation"))
    held = passes.begin(0)
    assert passes.plan(1) is not held
    assert passes.plan(0) is held
    assert isinstance(held, Pass)
    assert isinstance(held.plan, Plan)
    assert held.plan.order.length == ROWS
