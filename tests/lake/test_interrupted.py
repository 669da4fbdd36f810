"""Ctrl-C at every step of an iteration: no thread works for nobody, no stream has two users.

The story behind this file: Ctrl-C at the start of a pass left its thread alone with the stream, and
the next pass shared both: over Vulkan 74 of 1,802 interrupts gave batches that were silently wrong.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

import mldb
from mldb.lake.augment import devices
from tests.lake.test_prefetch import threads
from tests.support.lakes import data, db, fill, raw, stream
from tests.support.parts import some_and_many

__all__ = ["data", "db"]

torch = pytest.importorskip("torch")

# Where Python runs a finalizer, it prints what is raised and goes on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Interrupted between any two instructions; other code of mldb at its calls.
CLOSELY = ("mldb.lake.stream.", "mldb.lake.order.passes", "mldb.lake.augment.")
PATIENCE_SECONDS = 10.0
POINTS, MANY = 40, 120
"""Of a use that are tried; all of them take ten minutes, and were tried once."""
TAKEN = 3


class InterruptAt:
    """A trace function that raises KeyboardInterrupt at some of the steps inside mldb."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = set(numbers)
        self.steps = 0
        self.places: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = str(frame.f_globals.get("__name__"))
        if not name.startswith("mldb.") or ".log." in name or is_printed(frame):
            return None
        frame.f_trace_opcodes = name.startswith(CLOSELY)
        frame.f_trace_lines = False
        if event in ("call", "opcode"):
            self.steps += 1
            if self.steps in self.numbers:
                self.places.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name} {event}")
                raise KeyboardInterrupt
        return self


def is_printed(frame: FrameType | None) -> bool:
    """Whether an exception here is printed instead of raised. What called ``use`` is no matter."""
    while frame is not None and frame.f_code is not use.__code__:
        if frame.f_code.co_name in ("__del__", "give_back"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupted(at: InterruptAt) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(at)
    try:
        yield
    except KeyboardInterrupt:
        assert at.places, "a real Ctrl-C"
    finally:
        sys.settrace(before)


def use(loader: Any, got: list[Any]) -> None:
    """Begin a pass and leave it in the middle, where the second Ctrl-C of a nervous user comes."""
    iterator = iter(loader)
    try:
        got.extend(itertools.islice(iterator, TAKEN))
    finally:
        iterator.close()


def settle() -> None:
    """Wait until what was told to stop has stopped."""
    end = time.monotonic() + PATIENCE_SECONDS
    while threads() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.002)
    assert threads() == 0, "a thread works for nobody"


class Case:
    """A loader, the batches it must hand out, and how many steps its use takes."""

    def __init__(self, lake: Any, kind: str, **options: Any) -> None:
        self.lake, self.kind, self.options = lake, kind, options
        alone = stream(lake, kind, **options)
        self.want = [raw(alone) for _ in range(4)]
        count = InterruptAt()
        with interrupted(count):
            use(self.loader(), [])
        self.steps = count.steps

    def loader(self) -> Any:
        return stream(self.lake, self.kind, **self.options)

    def points(self, count: int) -> range:
        """Steps all over the use."""
        points = range(1, self.steps + 1, 1 + self.steps // count)
        print(f"{self.kind}: {len(points)} of {self.steps} steps")
        return points

    def run(self, *numbers: int) -> None:
        """Interrupt the use of a loader, and see what it does then."""
        loader = self.loader()
        got: list[Any] = []
        at = InterruptAt(*numbers)
        with interrupted(at):
            use(loader, got)
        told = f"after Ctrl-C at {at.places}"
        assert raw(got) == self.want[0][: len(got)], told
        state = loader.state_dict()
        del got
        resumed = self.loader()
        resumed.load_state_dict(state)
        position = state["pass"], state["cursor"] + state["done"]
        assert raw(resumed) == self.want[position[0]][position[1] :], told
        # Two that follow, side by side: each has what is its own.
        first, second = iter(loader), iter(loader)
        pairs = list(zip(first, second, strict=True))
        number = first.progress.number
        assert number in (0, 1), told
        assert raw(pair[0] for pair in pairs) == self.want[number], told
        assert raw(pair[1] for pair in pairs) == self.want[number + 1], told
        del pairs, first, second, loader, resumed
        settle()


@pytest.mark.slow
@some_and_many("points", POINTS, MANY)
@pytest.mark.parametrize(
    "kind",
    ["permutation", "isotropic", pytest.param("langevin", marks=pytest.mark.large), "bottom_k"],
)
def test_ctrl_c_at_any_step_of_a_pass_that_a_thread_makes(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str, points: int
) -> None:
    case = Case(fill(db, data), kind)
    assert case.steps > 300
    for number in case.points(points):
        case.run(number)


@pytest.mark.slow
@some_and_many("points", POINTS, MANY)
@pytest.mark.parametrize(
    "kind",
    ["sequential", "permutation", "isotropic", pytest.param("copies", marks=pytest.mark.large)],
)
def test_ctrl_c_at_any_step_of_a_pass_without_a_thread(
    db: mldb.MLDatabase, data: dict[str, Any], kind: str, points: int
) -> None:
    """Here it comes in the middle of a batch: the stream it was in is not used again."""
    case = Case(fill(db, data), kind, prefetch=0, warm_bytes=1 << 20)
    for number in case.points(points):
        case.run(number)


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [0, 8])
@some_and_many("points", 3, 20)
def test_a_second_ctrl_c_while_the_first_is_dealt_with(
    db: mldb.MLDatabase, data: dict[str, Any], prefetch: int, points: int
) -> None:
    case = Case(fill(db, data), "isotropic", prefetch=prefetch)
    for number in case.points(points):
        for later in (1, 2, 3, 5, 8, 13, 21, 34):
            case.run(number, number + later)


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [0, 8])
@some_and_many("points", 15, 40)
@pytest.mark.parametrize("device", ["cpu", "vulkan"])
def test_ctrl_c_over_other_devices(
    db: mldb.MLDatabase, data: dict[str, Any], device: str, prefetch: int, points: int
) -> None:
    lake = fill(db, data)
    try:
        case = Case(lake, "isotropic", device=device, prefetch=prefetch)
    except mldb.GpuUnavailableError as error:
        pytest.skip(str(error))
    for number in case.points(points):
        case.run(number)


def test_a_device_in_the_middle_of_its_work_is_not_handed_on(
    db: mldb.MLDatabase, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows in which state Ctrl-C left it: the next one who asks gets a new one."""
    lake = fill(db, data)
    alone = stream(lake, "isotropic")
    alone.dataset.set_pass(1)
    want = raw(alone)
    monkeypatch.setattr(devices, "_idle", {})
    loader = stream(lake, "isotropic", prefetch=0)
    iterator = iter(loader)
    next(iterator)
    device = loader.dataset._reader().streams._shown._augmenter.device

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(device, "isotropic", stopped)
        with pytest.raises(KeyboardInterrupt):
            list(iterator)
    assert device._closed
    assert raw(loader) == want
    (idle,) = devices._idle.values()  # the pass is over, so its device is here
    assert [found is device for _, found in idle] == [False]  # the one that worked well
