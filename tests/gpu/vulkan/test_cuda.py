"""The bridge to CUDA with a runtime that keeps a record, over memory that is really exported."""

from __future__ import annotations

import gc
import os
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mldb.errors import ClosedError, GpuUnavailableError, InvalidValueError
from mldb.gpu.cuda.runtime import CudaBindings
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.vulkan import cuda as vk_cuda
from mldb.gpu.vulkan.cuda import CudaOutput, TensorMaker
from mldb.gpu.vulkan.device import VulkanDevice
from mldb.noise.keys import Keys
from tests.support.cuda import FakeRuntime, maker, with_timelines
from tests.support.vulkan import device_of, keys_of, opened, unit_rows


def _uuid(device: VulkanDevice) -> bytes:
    return device.exported_memory().context.info.uuid


def _shared(device: VulkanDevice, failing: str = "") -> tuple[FakeRuntime, CudaOutput]:
    runtime = FakeRuntime(_uuid(device), failing)
    return runtime, CudaOutput(device, runtime, maker=maker(runtime))


@pytest.mark.parametrize("direct", [None, False])
def test_cuda_sees_what_the_shader_wrote(rng: np.random.Generator, direct: bool | None) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    with opened(exported=True, copy=False, direct=direct, batch_rows=64) as device:
        _, output = _shared(device)
        for _ in range(4):  # every slot, and the first one again
            pending = device.isotropic(x, keys, 0.8)
            assert output.tensor(pending).tobytes() == pending.result().x.tobytes()
        output.close()


def test_calls_come_in_order_and_the_descriptor_is_cudas() -> None:
    with opened(exported=True, copy=False, batch_rows=64) as device:
        runtime, output = _shared(device)
        assert runtime.calls == ["uuids", "import_memory", "map_buffer"]
        os.fstat(runtime.descriptors[0])  # open: CUDA has it
        output.close()
        output.close()
        assert runtime.calls[3:] == ["synchronize", "free", "destroy_memory"]
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(runtime.descriptors[0])


@pytest.mark.parametrize(
    ("failing", "undone"),
    [("uuids", []), ("import_memory", []), ("map_buffer", ["destroy_memory"])],
)
def test_a_failing_step_leaves_nothing_behind(failing: str, undone: list[str]) -> None:
    with opened(exported=True, copy=False, batch_rows=64) as device:
        before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
        runtime = FakeRuntime(_uuid(device), failing)
        with pytest.raises(GpuUnavailableError, match=failing):
            CudaOutput(device, runtime, maker=maker(runtime))
        assert runtime.calls[runtime.calls.index(failing) + 1 :] == undone
        for descriptor in runtime.descriptors:
            with pytest.raises(OSError, match="descriptor"):
                os.fstat(descriptor)
        if before:
            runtime.mapped = None
            assert set(os.listdir("/proc/self/fd")) <= before
        # The device goes on working.
        keys = keys_of(np.random.default_rng(1), 2)
        assert device.normals(keys, 0, 8).shape == (2, 8)


def test_a_tensor_keeps_both_sides_alive(rng: np.random.Generator) -> None:
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    device = device_of(exported=True, copy=False, batch_rows=64)
    runtime, output = _shared(device)
    runtime.vulkan = [weakref.ref(device), weakref.ref(device.exported_memory())]
    pending = device.isotropic(x, keys, 0.8)
    expected = pending.result().x.copy()
    tensor = output.tensor(pending, copy=False)
    watched = weakref.ref(output)
    del device, output, pending
    gc.collect()
    assert tensor.tobytes() == expected.tobytes()
    assert "free" not in runtime.calls
    del tensor
    gc.collect()
    assert watched() is None
    assert runtime.calls[-3:] == ["synchronize", "free", "destroy_memory"]
    assert all(one() is None for one in runtime.vulkan)


def test_batches_that_are_copied_out_are_refused(rng: np.random.Generator) -> None:
    with opened(exported=True, copy=False, batch_rows=4) as device:
        _, output = _shared(device)
        for rows, dim in ((9, 32), (2, 33)):
            pending = device.isotropic(unit_rows(rng, rows, dim), keys_of(rng, rows), 0.8)
            with pytest.raises(InvalidValueError, match="copy"):
                output.tensor(pending)
        old = [device.isotropic(unit_rows(rng, 2, 32), keys_of(rng, 2), 0.8) for _ in range(4)]
        with pytest.raises(ClosedError):
            output.tensor(old[0])
        output.close()


def test_devices_that_do_not_export_are_refused() -> None:
    runtime = FakeRuntime(b"")
    for copy in (True, False):
        with opened(copy=copy, batch_rows=64) as device:
            refused = pytest.raises(InvalidValueError, match="exported")
            with refused:
                CudaOutput(device, runtime, maker=maker(runtime))
    assert runtime.calls == []


def test_a_gpu_that_cuda_does_not_have_is_refused() -> None:
    runtime = FakeRuntime(bytes(range(16)))
    assert vk_cuda.ordinal_of(runtime, bytes(range(16))) == 1
    with pytest.raises(GpuUnavailableError, match="UUID"):
        vk_cuda.ordinal_of(runtime, bytes(range(1, 17)))


def test_without_cuda_bindings_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(GpuUnavailableError, match="pip install cuda-bindings"):
        CudaBindings()


class _FakeBindings:
    """The functions of cuda.bindings.runtime: each answers (error, value)."""

    class cudaExternalMemoryHandleDesc:
        def __init__(self) -> None:
            self.handle = type("Handle", (), {})()

    class cudaExternalMemoryBufferDesc:
        pass

    class cudaExternalSemaphoreHandleDesc(cudaExternalMemoryHandleDesc):
        pass

    class cudaExternalSemaphoreHandleType:
        cudaExternalSemaphoreHandleTypeTimelineSemaphoreFd = 9

    class cudaExternalSemaphoreWaitParams:
        def __init__(self) -> None:
            self.params = type("Params", (), {"fence": type("Fence", (), {})()})()

    class cudaExternalSemaphoreSignalParams(cudaExternalSemaphoreWaitParams):
        pass

    class cudaExternalMemoryHandleType:
        cudaExternalMemoryHandleTypeOpaqueFd = 1

    cudaExternalMemoryDedicated = 1

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[Any, ...]]] = []
        self.error = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.seen.append((name, arguments))
            return (self.error, 77)

        return call


def test_descriptions_for_cuda_are_filled_in() -> None:
    bindings = CudaBindings.__new__(CudaBindings)
    fake = bindings._runtime = _FakeBindings()
    bindings._ordinal = None
    assert bindings.import_memory(9, 4096) == 77
    name, (wanted,) = fake.seen[0]
    assert name == "cudaImportExternalMemory"
    assert (wanted.type, wanted.handle.fd, wanted.size, wanted.flags) == (1, 9, 4096, 1)
    assert bindings.map_buffer("memory", 256, 512) == 77
    name, (memory, part) = fake.seen[1]
    assert name == "cudaExternalMemoryGetMappedBuffer"
    assert (memory, part.offset, part.size, part.flags) == ("memory", 256, 512, 0)
    assert bindings.import_timeline(9) == 77
    name, (wanted,) = fake.seen[-1]
    assert name == "cudaImportExternalSemaphore"
    assert (wanted.type, wanted.handle.fd, wanted.flags) == (9, 9, 0)
    for verb in ("Wait", "Signal"):
        getattr(bindings, verb.lower())("timeline", 12, 34)
        name, (which, how, count, stream) = fake.seen[-1]
        assert name == f"cuda{verb}ExternalSemaphoresAsync"
        assert (which, how[0].params.fence.value, how[0].flags) == (["timeline"], 12, 0)
        assert (count, stream) == (1, 34)
    bindings.destroy_timeline("timeline")
    bindings.synchronize_stream(34)
    assert [name for name, _ in fake.seen[-2:]] == [
        "cudaDestroyExternalSemaphore",
        "cudaStreamSynchronize",
    ]
    bindings.use(3)
    fake.seen.clear()
    bindings.synchronize()
    assert fake.seen == [  # and the caller's device is what it was
        *(("cudaGetDevice", ()), ("cudaSetDevice", (3,)), ("cudaDeviceSynchronize", ())),
        ("cudaSetDevice", (77,)),
    ]
    fake.error = 35
    with pytest.raises(GpuUnavailableError, match="CUDA refused cudaGetDevice"):
        bindings.free(77)


# --- whose turn it is -----------------------------------------------------------------------------


@contextmanager
def late_stream(
    failing: str = "", failing_at: int = 1, *, direct: bool | None = None
) -> Iterator[tuple[VulkanDevice, FakeRuntime]]:
    """A device whose timelines CUDA has, and a CUDA whose stream comes late; both end."""
    with opened(exported=True, copy=False, batch_rows=64, direct=direct) as device:
        runtime = with_timelines(device, failing, failing_at=failing_at)
        yield device, runtime
        assert runtime.stream is not None
        runtime.stream.close()


def _read_late(
    device: VulkanDevice, output: CudaOutput, runtime: FakeRuntime, *, copy: bool, batches: int = 40
) -> int:
    """How many batches were not what the shader wrote when the stream came to read them."""
    rng = np.random.default_rng(3)
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    found, want = [], []
    assert runtime.stream is not None
    for number in range(batches):
        key = Keys(keys.seed, number, keys.rows, keys.augmentations)
        tensor = output.tensor(device.isotropic(x, key, 0.8), copy=copy)
        if not copy:  # what the user does with it, in the same stream
            view, tensor = tensor, np.zeros_like(tensor)
            runtime.stream.put(partial(np.copyto, tensor, view))
        found.append(tensor)
        want.append(NumpyDevice(np.float32).isotropic(x, key, 0.8).result().x)
    runtime.stream.synchronize()
    return sum(not np.allclose(a, b, atol=1e-5) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("direct", [None, False])
def test_a_slot_is_not_written_before_the_stream_has_read_it(
    copy: bool, shared: bool, direct: bool | None
) -> None:
    """CUDA reads when its stream comes there; the shader used to write again before that."""
    with late_stream(direct=direct) as (device, runtime):
        output = CudaOutput(device, runtime, maker=maker(runtime), timelines=shared)
        assert _read_late(device, output, runtime, copy=copy) == 0
        waits = runtime.calls.count("synchronize_stream")
        if shared:
            assert (runtime.calls.count("wait"), waits) == (40, 0)
            assert runtime.calls.count("signal") >= 37  # the last views are still out
        else:
            assert (runtime.calls.count("wait"), runtime.calls.count("signal")) == (0, 0)
            assert waits >= 37
        assert device.stats()["fetches"] == 0  # nothing came to the host
        output.close()
        assert device.isotropic(*_one_row(), 0.8).result().x.shape == (1, 32)


def test_the_test_above_sees_a_slot_that_is_written_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with late_stream() as (device, runtime):
        output = CudaOutput(device, runtime, maker=maker(runtime))
        monkeypatch.setattr(output._turns, "end", lambda slot, stream: None)
        assert _read_late(device, output, runtime, copy=True) > 5
        output.close()


def test_timelines_are_imported_and_given_back_in_order() -> None:
    with late_stream() as (device, runtime):
        output = CudaOutput(device, runtime, maker=maker(runtime))
        assert runtime.calls == [
            *("uuids", "import_memory", "map_buffer", "import_timeline", "import_timeline")
        ]
        output.close()
        assert runtime.calls[5:] == [
            *("synchronize", "destroy_timeline", "destroy_timeline", "free", "destroy_memory")
        ]
        for descriptor in runtime.descriptors:
            with pytest.raises(OSError, match="descriptor"):
                os.fstat(descriptor)


@pytest.mark.parametrize(
    ("failing_at", "undone"),
    [(1, ["free", "destroy_memory"]), (2, ["destroy_timeline", "free", "destroy_memory"])],
)
def test_a_timeline_that_is_refused_leaves_nothing_behind(
    failing_at: int, undone: list[str]
) -> None:
    with late_stream("import_timeline", failing_at) as (device, runtime):
        with pytest.raises(GpuUnavailableError, match="import_timeline"):
            CudaOutput(device, runtime, maker=maker(runtime))
        assert runtime.calls[3 + failing_at :] == undone
        for descriptor in runtime.descriptors:
            with pytest.raises(OSError, match="descriptor"):
                os.fstat(descriptor)
        assert device.isotropic(*_one_row(), 0.8).result().x.shape == (1, 32)


def _two_streams(runtime: FakeRuntime, stream: list[int]) -> Any:
    made = maker(runtime)
    return TensorMaker(made.tensor, lambda ordinal: stream[0])


def test_signals_of_two_streams_come_in_order() -> None:
    """The timeline went backwards when the second stream was ahead of the first."""
    with late_stream() as (device, runtime):
        stream = [10]
        output = CudaOutput(device, runtime, maker=_two_streams(runtime, stream))
        calls: list[tuple[str, Any, int, int]] = []
        for name in ("wait", "signal"):
            monkey = getattr(runtime, name)

            def noted(one: Any, value: int, at: int, name: str = name, plain: Any = monkey) -> None:
                which = "freed" if one[0] is runtime.timelines[1] else "ready"
                calls.append((name, which, value, at))
                plain(one, value, at)

            setattr(runtime, name, noted)
        for stream[0] in (10, 11, 11):
            output.tensor(device.isotropic(*_one_row(), 0.8))
        first = calls[0][2]
        assert calls == [
            ("wait", "ready", first, 10),
            ("signal", "freed", 1, 10),
            ("wait", "ready", first + 1, 11),
            ("wait", "freed", 1, 11),
            ("signal", "freed", 2, 11),
            ("wait", "ready", first + 2, 11),
            ("signal", "freed", 3, 11),
        ]
        output.close()


def test_every_stream_that_reads_a_batch_is_waited_for() -> None:
    """Of two views of one batch only the second one's stream was."""
    with late_stream() as (device, runtime):
        stream = [10]
        output = CudaOutput(device, runtime, maker=_two_streams(runtime, stream))
        pending = device.isotropic(*_one_row(), 0.8)
        views = []
        for stream[0] in (10, 11, 10):
            views.append(output.tensor(pending, copy=False))
        runtime.streams.clear()
        for _ in range(device.slots):
            device.isotropic(*_one_row(), 0.8)
        assert set(runtime.streams) == {10, 11}
        assert runtime.calls.count("signal") == 2
        del views
        output.close()


def test_a_turn_that_could_not_be_ended_is_not_forgotten() -> None:
    with late_stream("signal") as (device, runtime):
        output = CudaOutput(device, runtime, maker=maker(runtime))
        view = output.tensor(device.isotropic(*_one_row(), 0.8), copy=False)
        for _ in range(device.slots - 1):
            device.isotropic(*_one_row(), 0.8)
        with pytest.raises(GpuUnavailableError, match="signal"):
            device.isotropic(*_one_row(), 0.8)
        device.isotropic(*_one_row(), 0.8)  # asks again, and now it goes
        assert runtime.calls.count("signal") == 2
        del view
        output.close()


def test_a_device_is_shared_once_at_a_time_and_its_timeline_goes_on() -> None:
    """The second output began to count at 1, below where the timeline stood."""
    with late_stream() as (device, runtime):
        output = CudaOutput(device, runtime, maker=maker(runtime))
        assert _read_late(device, output, runtime, copy=True, batches=7) == 0
        with pytest.raises(InvalidValueError, match="shared already"):
            CudaOutput(device, runtime, maker=maker(runtime))
        output.close()
        with pytest.raises(ClosedError, match="no longer"):
            output.tensor(device.isotropic(*_one_row(), 0.8))
        again = CudaOutput(device, runtime, maker=maker(runtime))
        assert _read_late(device, again, runtime, copy=True, batches=7) == 0
        again.close()


def test_memory_under_a_tensor_outlives_close(rng: np.random.Generator) -> None:
    """It was freed, and on a GPU the next use would end the process's CUDA context."""
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    with opened(exported=True, copy=False, batch_rows=64) as device:
        runtime, output = _shared(device)
        pending = device.isotropic(x, keys, 0.8)
        want = pending.result().x.tobytes()
        tensor = output.tensor(pending, copy=False)
        output.close()
        assert "free" not in runtime.calls
        assert tensor.tobytes() == want
        del tensor
        gc.collect()
        assert runtime.calls[-3:] == ["synchronize", "free", "destroy_memory"]


def test_a_reader_that_takes_long_is_no_device_that_hangs() -> None:
    """A stream behind other work for longer than the time-out made the device dead."""
    with late_stream() as (device, runtime):
        device._ring.timeout_s = 0.05
        output = CudaOutput(device, runtime, maker=maker(runtime))
        assert runtime.stream is not None
        runtime.stream.put(partial(time.sleep, 0.5))
        assert _read_late(device, output, runtime, copy=True, batches=8) == 0
        assert device.usable
        output.close()


def test_a_forked_child_leaves_cuda_alone() -> None:
    with opened(exported=True, copy=False, batch_rows=64) as device:
        runtime, output = _shared(device)
        child = os.fork()
        if not child:
            output.close()
            os._exit(runtime.calls.count("free"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        output.close()
        assert runtime.calls.count("free") == 1


def test_rows_stay_on_the_device_until_they_are_asked_for(rng: np.random.Generator) -> None:
    """They used to be copied to the host as well, beside being handed to CUDA."""
    x, keys = unit_rows(rng, 10, 32), keys_of(rng, 10)
    with opened(batch_rows=64) as plain:
        want = plain.isotropic(x, keys, 0.8).result().x.tobytes()
    with opened(exported=True, copy=False, direct=False, batch_rows=64) as device:
        _, output = _shared(device)
        kept = [device.isotropic(x, keys, 0.8) for _ in range(device.slots)]
        assert all(output.tensor(pending).tobytes() == want for pending in kept)
        assert device.stats()["fetches"] == 0
        assert all(pending.result().x.tobytes() == want for pending in kept)
        assert all(pending.result().x.tobytes() == want for pending in kept)
        assert device.stats()["fetches"] == device.slots
        device.words(keys, 0, 3)
        assert device.stats()["fetches"] == device.slots
        assert device.isotropic(x, keys, 0.8).result().x.tobytes() == want
        bad = device.isotropic(2 * x, keys, 0.8)
        with pytest.raises(InvalidValueError, match="length"):
            output.tensor(bad)
        output.close()


def _one_row() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return unit_rows(rng, 1, 32), keys_of(rng, 1)
