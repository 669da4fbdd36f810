"""A CUDA runtime that keeps a record, over memory that Vulkan really exported.

lavapipe exports memory as a memfd, so the bytes that arrive are the ones that the shader wrote. Its
timelines cannot be exported; a :class:`FakeTimeline` stands for what CUDA would have imported, and
sets and awaits the real one from the thread that plays the stream.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan.cuda import CudaOutput, CudaRows, TensorMaker
from mldb.gpu.vulkan.device import VulkanDevice
from mldb.gpu.vulkan.timeline import TimelineSemaphore
from tests.support.vulkan import keys_of, unit_rows

PAYLOAD = 4096
"""Where lavapipe starts an exported allocation inside its memfd."""

STREAM = 7


class FakeStream:
    """Does what is put into it in a thread of its own, in order and late."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._delay_s = delay_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], object]) -> None:
        """Do it later."""
        self._work.put(work)

    def synchronize(self) -> None:
        """Wait for what was put so far."""
        done = threading.Event()
        self.put(done.set)
        assert done.wait(30)

    def close(self) -> None:
        """Do all of it and end."""
        self._work.put(None)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            time.sleep(self._delay_s)
            work()


class FakeTimeline:
    """A timeline of lavapipe as something that has a descriptor."""

    def __init__(self, real: TimelineSemaphore) -> None:
        self.real = real
        self.descriptors: list[int] = []

    @property
    def promised(self) -> int:
        """What somebody was told to set."""
        return self.real.promised

    @promised.setter
    def promised(self, value: int) -> None:
        self.real.promised = value

    def export_descriptor(self) -> int:
        """A new descriptor of something, to see who closes it."""
        self.descriptors.append(os.memfd_create("timeline"))
        return self.descriptors[-1]

    def wait(self, value: int) -> None:
        """Wait on the host."""
        api, device = self.real.context.api, self.real.context.device
        info = api.VkSemaphoreWaitInfo(pSemaphores=[self.real.handle], pValues=[value])
        api.vkWaitSemaphores(device, info, 30_000_000_000)

    def signal(self, value: int) -> None:
        """Set from the host."""
        api, device = self.real.context.api, self.real.context.device
        info = api.VkSemaphoreSignalInfo(semaphore=self.real.handle, value=value)
        api.vkSignalSemaphore(device, info)


class FakeRuntime:
    """A CUDA runtime that maps the descriptor; ``failing`` names the call that fails.

    ``failing_at`` counts calls of that name.
    """

    def __init__(self, uuid: bytes, failing: str = "", *, failing_at: int = 1) -> None:
        self.calls: list[str] = []
        self.stream: FakeStream | None = None
        self.streams: list[int] = []
        self.timelines: list[FakeTimeline] = []
        self.failing, self.failing_at = failing, failing_at
        self._uuid = uuid
        self.descriptors: list[int] = []
        self.mapped: mmap.mmap | None = None
        self.vulkan: list[weakref.ref[Any]] = []

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing and self.calls.count(name) == self.failing_at:
            raise GpuUnavailableError(f"CUDA refused {name}")

    def uuids(self) -> list[bytes]:
        self._enter("uuids")
        return [bytes(16), self._uuid]

    def use(self, ordinal: int) -> None:
        assert ordinal == 1

    def import_memory(self, descriptor: int, size: int) -> Any:
        self.descriptors.append(descriptor)
        self._enter("import_memory")
        self.mapped = mmap.mmap(descriptor, PAYLOAD + size)
        return descriptor

    def map_buffer(self, memory: Any, offset: int, size: int) -> int:
        self._enter("map_buffer")
        assert self.mapped is not None
        return ctypes.addressof(ctypes.c_char.from_buffer(self.mapped)) + PAYLOAD + offset

    def import_timeline(self, descriptor: int) -> Any:
        self.descriptors.append(descriptor)
        self._enter("import_timeline")
        found = [one for one in self.timelines if descriptor in one.descriptors]
        return found[0], descriptor

    def wait(self, timeline: Any, value: int, stream: int) -> None:
        self.streams.append(stream)
        self._enter("wait")
        assert self.stream is not None
        self.stream.put(lambda: timeline[0].wait(value))

    def signal(self, timeline: Any, value: int, stream: int) -> None:
        self.streams.append(stream)
        self._enter("signal")
        assert self.stream is not None
        self.stream.put(lambda: timeline[0].signal(value))

    def synchronize_stream(self, stream: int) -> None:
        assert stream == STREAM
        self._enter("synchronize_stream")
        if self.stream is not None:
            self.stream.synchronize()

    def synchronize(self) -> None:
        assert all(one() is not None for one in self.vulkan), "Vulkan's side went first"
        self._enter("synchronize")
        if self.stream is not None:
            self.stream.synchronize()

    def destroy_timeline(self, timeline: Any) -> None:
        self._enter("destroy_timeline")
        os.close(timeline[1])

    def free(self, pointer: int) -> None:
        self._enter("free")

    def destroy_memory(self, memory: Any) -> None:
        self._enter("destroy_memory")
        os.close(memory)


def as_array(rows: CudaRows, ordinal: int, copy: bool) -> Any:
    """What torch does with the interface, on the CPU: the array keeps ``rows``."""
    wanted = rows.__cuda_array_interface__
    shape, (pointer, _) = wanted["shape"], wanted["data"]
    held: Any = (ctypes.c_char * (4 * shape[0] * shape[1])).from_address(pointer)
    held.rows = rows
    array = np.frombuffer(held, wanted["typestr"]).reshape(shape)
    return array.copy() if copy else array


def maker(runtime: FakeRuntime) -> TensorMaker:
    """Arrays; with a stream, copies are made when the stream comes there, as CUDA does it."""

    def tensor(rows: CudaRows, ordinal: int, copy: bool) -> Any:
        if not copy or runtime.stream is None:
            return as_array(rows, ordinal, copy)
        # A stream holds no objects: whoever frees the memory has to wait for it.
        interface = rows.__cuda_array_interface__
        late = np.zeros(interface["shape"], np.float32)
        place = interface["data"][0]
        runtime.stream.put(lambda: ctypes.memmove(late.ctypes.data, place, late.nbytes))
        return late

    return TensorMaker(tensor, lambda ordinal: STREAM)


def with_timelines(device: VulkanDevice, failing: str = "", *, failing_at: int = 1) -> FakeRuntime:
    """A runtime with a slow stream, and the device's timelines as if they could be exported."""
    uuid = device.exported_memory().context.info.uuid
    runtime = FakeRuntime(uuid, failing, failing_at=failing_at)
    runtime.timelines = [FakeTimeline(device._ring.ready), FakeTimeline(device._ring.freed)]
    runtime.stream = FakeStream(delay_s=0.002)
    object.__setattr__(device, "timelines", lambda: tuple(runtime.timelines))
    return runtime


def hand_over(device: VulkanDevice, batches: int = 8) -> None:
    """Let the stream read batches of every kind while the shader makes the next ones."""
    rng = np.random.default_rng(2)
    runtime = with_timelines(device)
    output = CudaOutput(device, runtime, maker=maker(runtime))
    for number in range(batches):
        pending = device.isotropic(unit_rows(rng, 9, 64), keys_of(rng, 9), 0.9)
        output.tensor(pending, copy=number % 3 > 0)
        if number % 2:
            pending.result()
    output.close()
    assert runtime.stream is not None
    runtime.stream.close()
