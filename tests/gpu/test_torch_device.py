"""The torch device beyond the contract: kernels, threads, tensors, tables, and what is missing."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mldb.errors import GpuUnavailableError, InvalidTypeError, InvalidValueError
from mldb.gpu import torch_device
from mldb.gpu.cpu import chains as chains_compiled
from mldb.gpu.cpu.threads import PART_ROWS, RowThreads
from mldb.gpu.device import Dynamics, MixtureEnergy, SelfEnergy
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.torch_device import TorchDevice
from mldb.noise import philox, philox_compiled
from mldb.noise import philox_torch as torch_philox
from mldb.noise.keys import Keys


@pytest.fixture(params=[True, False], ids=["compiled", "eager"])
def device(request: pytest.FixtureRequest) -> Iterator[TorchDevice]:
    opened = TorchDevice("cpu", compiled=request.param)
    yield opened
    opened.close()


def unit_rows(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    x: Any = rng.standard_normal(shape)
    rows: npt.NDArray[np.float32] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return rows.astype(np.float32)


def make_keys(count: int, pass_number: int = 0) -> Keys:
    return Keys(
        2**64 - 5, pass_number, np.arange(count, dtype=np.uint64), np.zeros(count, np.uint16)
    )


def test_tensors_and_arrays_are_taken(device: TorchDevice, rng: np.random.Generator) -> None:
    x, keys, kappa = unit_rows(rng, 20, 32), make_keys(20), np.full(20, 50, np.float32)
    tensors = torch.from_numpy(x), torch.from_numpy(kappa)
    first = device.langevin(x, keys, SelfEnergy(x, kappa), Dynamics(3, 0.001)).result()
    energy = SelfEnergy(tensors[0], tensors[1])
    second = device.langevin(tensors[0], keys, energy, Dynamics(3, 0.001)).result()
    assert isinstance(first.x, torch.Tensor)
    assert first.x.dtype == torch.float32
    assert first.accepted.dtype == torch.int32
    assert torch.equal(first.x, second.x)


def test_strided_rows_are_read_right(device: TorchDevice, rng: np.random.Generator) -> None:
    wide = unit_rows(rng, 20, 2, 16)
    wide = np.ascontiguousarray(wide.transpose(1, 0, 2)).transpose(1, 0, 2)
    rows = wide[:, 0]
    found = device.isotropic(rows, make_keys(20), 0.5).result().x
    again = device.isotropic(np.ascontiguousarray(rows), make_keys(20), 0.5).result().x
    assert torch.equal(found, again)


def test_read_only_tables_give_no_warning(device: TorchDevice, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 30, 16)
    rows.flags.writeable = False
    table = device.load(rows)
    assert table.imported
    index = np.zeros((4, 2), np.int32)
    ones = np.ones((4, 2), np.float32)
    energy = MixtureEnergy(table, index, ones, ones)
    device.langevin(rows[:4], make_keys(4), energy, Dynamics(1, 0.01)).result()


def test_tables_of_other_devices_are_refused(device: TorchDevice, rng: np.random.Generator) -> None:
    class Other:
        rows, dim, imported = 30, 16, False

        def close(self) -> None:
            """Nothing to give back."""

    ones = np.ones((4, 2), np.float32)
    energy = MixtureEnergy(Other(), np.zeros((4, 2), np.int32), ones, ones)
    with pytest.raises(InvalidTypeError, match="another device"):
        device.langevin(unit_rows(rng, 4, 16), make_keys(4), energy, Dynamics(1, 0.01)).result()


def test_how_it_runs_is_told() -> None:
    with TorchDeviceContext(compiled=True) as compiled:
        assert compiled.compiled
        assert compiled.compile_seconds > 0
        assert compiled.name == "torch (cpu, numba)"
    with TorchDeviceContext(compiled=False) as eager:
        assert not eager.compiled
        assert eager.name == "torch (cpu, eager)"


class TorchDeviceContext:
    """A device that is closed at the end of a block."""

    def __init__(self, **options: Any) -> None:
        self.device = TorchDevice("cpu", **options)

    def __enter__(self) -> TorchDevice:
        return self.device

    def __exit__(self, *_: object) -> None:
        self.device.close()


def test_without_numba_torch_operations_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_device, "load_kernels", lambda: None)
    with TorchDeviceContext() as device:
        assert not device.compiled
    with pytest.raises(GpuUnavailableError, match=r"mldb\[lake\]"):
        TorchDevice("cpu", compiled=True)


def test_without_torch_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(GpuUnavailableError, match=r"mldb\[torch\]"):
        TorchDevice("cpu")


def test_a_missing_cuda_device_is_named() -> None:
    with pytest.raises(GpuUnavailableError, match="cuda:99"):
        TorchDevice("cuda:99")


def test_threads_do_not_change_bytes(rng: np.random.Generator) -> None:
    count = 5 * PART_ROWS + 3
    x, keys = unit_rows(rng, count, 64), make_keys(count)
    ends = []
    for threads in (1, 2, 5):
        with TorchDeviceContext(compiled=True, threads=threads) as device:
            ends.append(device.isotropic(x, keys, 0.3).result().x)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_no_more_than_slots_are_under_way(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    x = unit_rows(rng, 8, 16)
    with TorchDeviceContext(compiled=True, threads=1) as device:
        gate = threading.Event()
        started: list[Any] = []
        device._engine.threads._pool.submit(gate.wait)  # type: ignore[union-attr]

        def fill() -> None:
            batches = (make_keys(8, number) for number in range(device.slots + 1))
            started.extend(device.isotropic(x, keys, 0.5) for keys in batches)

        filler = threading.Thread(target=fill)
        filler.start()
        filler.join(0.2)
        assert filler.is_alive()
        assert len(started) == device.slots
        gate.set()
        filler.join()
        for number, pending in enumerate(started):
            expected = NumpyDevice().isotropic(x, make_keys(8, number), 0.5).result().x
            assert np.abs(pending.result().x.numpy() - expected).max() < 1e-6


def test_memory_is_used_again_after_slots_further_batches(rng: np.random.Generator) -> None:
    x = unit_rows(rng, 8, 16)
    with TorchDeviceContext(compiled=True, copy=False) as device:
        first = device.isotropic(x, make_keys(8), 0.5).result().x
        before, place = first.clone(), first.data_ptr()
        for number in range(1, device.slots + 1):
            later = device.isotropic(x[:5], make_keys(5, number), 0.5).result().x
            assert later.data_ptr() != place
        assert torch.equal(first, before)
        energy = SelfEnergy(x, np.full(8, 9, np.float32))
        last = device.langevin(x, make_keys(8), energy, Dynamics(1, 0.01)).result().x
        assert last.data_ptr() == place


def test_ranges_cover_all_rows_once() -> None:
    threads = RowThreads(2)
    for rows in (0, 1, PART_ROWS - 1, 3 * PART_ROWS + 5, 100 * PART_ROWS):
        seen = np.zeros(rows, np.int64)

        def run(first: int, end: int, seen: Any = seen) -> None:
            seen[first:end] += 1

        for future in threads.start(run, rows):
            future.result()
        assert (seen == 1).all()
    threads.close()


def test_a_bad_row_does_not_stop_later_batches(rng: np.random.Generator) -> None:
    x = unit_rows(rng, 8, 16)
    with TorchDeviceContext(compiled=True) as device:
        bad = device.isotropic(x * np.float32(2), make_keys(8), 0.5)
        good = device.isotropic(x, make_keys(8), 0.5)
        with pytest.raises(InvalidValueError, match="row 0"):
            bad.result()
        assert torch.isfinite(good.result().x).all()


def test_integer_path_is_numpy_bit_for_bit(rng: np.random.Generator) -> None:
    rows = rng.integers(0, 2**48, 50, dtype=np.uint64) | np.uint64(1 << 47)
    keys = Keys(2**63 + 1, 2**32 - 1, rows, np.full(50, 65535, np.uint16))
    draws = torch_philox.TorchDraws(keys, torch.device("cpu"))
    assert np.array_equal(draws.normals(7, 640).numpy(), philox.normals(keys, 7, 640))
    assert np.array_equal(draws.uniforms(7).numpy(), philox.accept_uniforms(keys, 7))


def test_each_kernel_is_compiled_once(rng: np.random.Generator) -> None:
    """Strided, read-only, mapped: none of it may cost seconds in the middle of a training."""
    with TorchDeviceContext(compiled=True) as device:
        x, keys, kappa = unit_rows(rng, 40, 20), make_keys(40), np.full(40, 9, np.float32)
        frozen = x.copy()
        frozen.flags.writeable = False
        shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
        assert not shifted.flags.aligned
        half = Keys(1, 1, keys.rows[::2], keys.augmentations[::2])
        for rows in (x, frozen, shifted, np.asfortranarray(x), torch.from_numpy(x)):
            device.isotropic(rows, keys, 0.5).result()
            device.langevin(rows, keys, SelfEnergy(rows, kappa), Dynamics(1, 0.01)).result()
        device.isotropic(x[::2], half, 0.5).result()
        device.langevin(x[::2], half, SelfEnergy(x[::2], kappa[::2]), Dynamics(1, 0.01)).result()
    kernels, chains = philox_compiled.load_kernels(), chains_compiled.load_chains("direct")
    assert kernels is not None
    assert chains is not None
    for kernel in (kernels.isotropic, kernels.noise, chains.direct):
        compiled: Any = kernel
        assert len(compiled.signatures) == 1


def test_a_forked_child_can_open_its_own(rng: np.random.Generator) -> None:
    """As a loader's worker does; the compiled code is inherited, the threads are not."""
    x, keys = unit_rows(rng, 4 * PART_ROWS, 16), make_keys(4 * PART_ROWS)
    with TorchDeviceContext(compiled=True, threads=2) as device:
        expected = device.isotropic(x, keys, 0.5).result().x.numpy().tobytes()
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Python warns that other threads do not survive; that is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            with TorchDeviceContext(compiled=True, threads=2) as own:
                found = own.isotropic(x, keys, 0.5).result().x.numpy().tobytes()
            os.write(writer, b"same" if found == expected else b"other")
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            assert file.read() == "same"
        os.waitpid(child, 0)


def test_kernels_can_be_compiled_ahead() -> None:
    with TorchDeviceContext(compiled=True) as device:
        assert device.prepare("direct") > 0
    with TorchDeviceContext(compiled=False) as device:
        assert device.prepare("direct") == 0


def test_chain_kernels_say_how_long_they_took() -> None:
    chains = chains_compiled.load_chains("direct")
    assert chains is not None
    assert chains.seconds["direct"] > 0
    assert chains_compiled.load_chains("direct") is chains
