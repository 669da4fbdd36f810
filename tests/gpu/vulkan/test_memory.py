"""Which memory is taken on devices that are not here, and how long memory lives."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mldb.gpu.vulkan.memory import MemoryPlace, allocate, can_share, importable_size, memory_type
from tests.support.vulkan import keys_of, opened, unit_rows

LOCAL, VISIBLE, COHERENT, CACHED = 1, 2, 4, 8
API = SimpleNamespace(
    VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT=LOCAL,
    VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT=VISIBLE,
    VK_MEMORY_PROPERTY_HOST_COHERENT_BIT=COHERENT,
    VK_MEMORY_PROPERTY_HOST_CACHED_BIT=CACHED,
)
# The memory types of a discrete card with a window for the host, and of an integrated one.
DISCRETE = (
    0,
    LOCAL,
    VISIBLE | COHERENT,
    VISIBLE | COHERENT | CACHED,
    LOCAL | VISIBLE | COHERENT,
)
INTEGRATED = (LOCAL, LOCAL | VISIBLE | COHERENT, LOCAL | VISIBLE | COHERENT | CACHED)


def _context(types: tuple[int, ...], kind: str) -> Any:
    found = [SimpleNamespace(propertyFlags=flags) for flags in types]
    memory = SimpleNamespace(memoryTypeCount=len(found), memoryTypes=found)
    return SimpleNamespace(api=API, memory=memory, info=SimpleNamespace(kind=kind))


@pytest.mark.parametrize(
    ("place", "index"),
    [
        (MemoryPlace.DEVICE, 1),
        (MemoryPlace.UPLOAD, 2),
        (MemoryPlace.READBACK, 3),
        (MemoryPlace.SHARED, 4),
    ],
)
def test_memory_of_a_discrete_card(place: MemoryPlace, index: int) -> None:
    assert memory_type(_context(DISCRETE, "discrete"), place) == index


def test_cached_memory_is_preferred_and_not_demanded() -> None:
    context = _context(INTEGRATED, "integrated")
    assert memory_type(context, MemoryPlace.SHARED) == 2
    assert memory_type(context, MemoryPlace.SHARED, allowed=0b011) == 1
    assert memory_type(context, MemoryPlace.SHARED, allowed=0b001) is None


@pytest.mark.parametrize(
    ("types", "kind", "shared"),
    [
        (INTEGRATED, "integrated", True),
        (INTEGRATED, "cpu", True),
        # The window of a discrete card is there, and reading it is slow.
        (DISCRETE, "discrete", False),
        ((LOCAL, VISIBLE | COHERENT), "integrated", False),
    ],
)
def test_who_works_without_copies(types: tuple[int, ...], kind: str, shared: bool) -> None:
    assert can_share(_context(types, kind)) is shared


@pytest.mark.parametrize(
    ("alignment", "offset", "size", "expected"),
    [
        (4096, 0, 8192, 8192),
        (4096, 0, 8000, 8192),  # the last page is mapped to its end
        (4096, 16, 8192, 0),
        (65536, 0, 65536, 65536),
        (65536, 0, 8192, 0),  # nobody promises that what follows the page is mapped
        (0, 0, 8192, 0),
    ],
)
def test_what_may_be_imported(alignment: int, offset: int, size: int, expected: int) -> None:
    raw = np.empty(1 << 18, np.uint8)
    start = -raw.ctypes.data % 65536 + offset
    limits = SimpleNamespace(import_alignment=alignment)
    info = SimpleNamespace(limits=limits, extensions={"VK_EXT_external_memory_host"})
    context: Any = SimpleNamespace(info=info)
    assert importable_size(context, raw[start : start + size]) == expected


def test_memory_goes_with_the_last_array_over_it(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []
    with opened(batch_rows=64, copy=False) as device:
        if not device.stats()["direct"]:
            pytest.skip("this device has more buffers than the ones counted here")
        context = device.load(unit_rows(rng, 4, 8)).context
        for name in ("vkFreeMemory", "vkDestroyDevice"):
            real = getattr(context.api, name)

            def record(*arguments: Any, name: str = name, real: Any = real) -> None:
                freed.append(name)
                real(*arguments)

            monkeypatch.setattr(context.api, name, record)
        buffer = allocate(context, 4096, MemoryPlace.UPLOAD, option="nothing")
        assert buffer.view is not None
        part = buffer.view[16:32]
        buffer.close()
        buffer.close()
        part[:] = 7
        assert freed == []
        del part
        gc.collect()
        assert freed == ["vkFreeMemory"]
        view = device.isotropic(unit_rows(rng, 4, 8), keys_of(rng, 4), 0.5).result().x
        gc.collect()
        freed.clear()
    # Closed, but the ring's memory waits for the view, and the device for the memory.
    assert freed == ["vkFreeMemory"]
    assert np.isfinite(view).all()
    del view
    gc.collect()
    assert freed == ["vkFreeMemory", "vkFreeMemory", "vkDestroyDevice"]
