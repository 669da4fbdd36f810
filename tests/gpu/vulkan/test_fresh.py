"""Pages that are taken at once: the bytes stay, and writing costs no fault for each page."""

from __future__ import annotations

import mmap
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mldb.gpu.vulkan import fresh
from mldb.gpu.vulkan.fresh import take_pages
from tests.support.vulkan import keys_of, opened, unit_rows

PAGES = 512

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")


@pytest.fixture
def memory() -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, PAGES * mmap.PAGESIZE, mmap.MAP_PRIVATE), np.uint8)


@pytest.fixture
def known(memory: npt.NDArray[np.uint8]) -> None:
    call, page = fresh._madvise()
    assert page in (1, mmap.PAGESIZE)
    if call is None or call(memory.ctypes.data, mmap.PAGESIZE, fresh._POPULATE_WRITE):
        pytest.skip("this kernel is older than the call")


def faults(act: Callable[[], Any]) -> int:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    act()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("start", "stop"), [(0, PAGES), (0.5, PAGES), (1, 3.5), (7.25, 7.5)])
def test_what_is_written_is_there_before(
    memory: npt.NDArray[np.uint8], start: float, stop: float
) -> None:
    part = memory[int(start * mmap.PAGESIZE) : int(stop * mmap.PAGESIZE)]
    part[:3] = 7
    take_pages(part.view(np.uint32))
    assert part[:5].tolist() == [7, 7, 7, 0, 0]
    np.zeros(64, np.uint8).fill(9)  # the code of it has pages, too
    pages = part.nbytes // mmap.PAGESIZE
    assert faults(lambda: part.fill(9)) <= pages // 64  # each page would be one


def test_what_has_no_pages_or_cannot_be_written_is_left_alone() -> None:
    take_pages(np.empty(0, np.float32))
    read_only = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ)
    take_pages(np.frombuffer(read_only, np.uint8))
    assert read_only[:4] == bytes(4)


def test_without_the_call_writing_does_what_it_did(
    memory: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "_madvise", lambda: (None, 1))
    take_pages(memory)
    memory[-3:] = 5
    assert memory[-4:].tolist() == [0, 5, 5, 5]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("fixed", [False, True])
def test_a_ring_takes_the_pages_that_its_batches_write(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    """A fault for each page was half of what the first batch of a pass took.

    Slots of a given size keep what no batch fills untouched.
    """
    taken: list[int] = []
    monkeypatch.setattr("mldb.gpu.vulkan.slots.take_pages", lambda part: taken.append(part.nbytes))
    with opened(direct=True, batch_rows=64 if fixed else None) as device:
        if device._context.info.kind != "cpu":
            pytest.skip("the memory is the driver's")
        for _ in range(2 * device.slots):
            device.isotropic(unit_rows(rng, 50, 64), keys_of(rng, 50), 0.8).result()
        size = 50 * 64 * 4
        assert taken == ([] if fixed else [size] * 2 * device.slots)
