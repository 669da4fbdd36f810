"""``python -m mldb.gpu.selftest``: what the Vulkan device of this machine does, item by item.

Each item prints PASS, FAIL, SKIP with its reason, or figures, and the next one goes on. Nothing but
plain allocations is made and no setting of a device is changed. The exit status is 1 if an item
failed. On a CPU device it takes less than two minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Literal, TextIO, TypeAlias

import click
import numpy as np
import numpy.typing as npt

from mldb.errors import GpuUnavailableError, MldbError
from mldb.gpu import selftest_rates as rates
from mldb.gpu import vk_cuda, vk_errors, vk_instance
from mldb.gpu.cuda_runtime import CudaBindings, CudaRuntime
from mldb.gpu.device import Dynamics, Keys, MixtureEnergy, Pending, SelfEnergy
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.selftest_rates import DIM, aligned_rows, keys_of, unit_rows
from mldb.gpu.vk_device import VulkanDevice, open_vulkan
from mldb.gpu.vk_errors import DeviceMemoryError
from mldb.gpu.vk_memory import Place, allocate

Status: TypeAlias = Literal["PASS", "FAIL", "SKIP", "INFO"]

NORMAL_ERROR_MAX: Final = 2e-6
ROW_ERROR_MAX: Final = 1e-6
BATCHES: Final = 300
CUDA_BATCHES: Final = 10_000
CYCLES: Final = 100
BATCH_ROWS: Final = 1024

# Random123's vectors: seed, pass, row, augmentation, step, block, and the words that come out.
ONES: Final = (2**64 - 1, 2**32 - 1, 2**48 - 1, 2**16 - 1, 0xFFFF, 0xFFFF)
PI: Final = (0x299F31D0A4093822, 0x85A308D3, 0x734413198A2E, 0x0370, 0x243F, 0x6A88)
KNOWN_ANSWERS: Final = (
    ((0, 0, 0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One finding: its item, how it went, what to read, and figures by name."""

    item: str
    status: Status
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


Item: TypeAlias = Callable[[VulkanDevice], Iterator[Line]]


def judged(item: str, good: bool, text: str, **figures: Any) -> Line:
    """Return PASS or FAIL."""
    return Line(item, "PASS" if good else "FAIL", text, figures)


def devices(_: VulkanDevice) -> Iterator[Line]:
    """Item 1: every device, its limits, memory and extensions."""
    api = vk_errors.load()
    instance = vk_instance.create_instance(api)
    try:
        for info in vk_instance.list_devices(api, instance):
            memory = api.vkGetPhysicalDeviceMemoryProperties(info.handle)
            types = [memory.memoryTypes[i].propertyFlags for i in range(memory.memoryTypeCount)]
            heaps = [memory.memoryHeaps[i].size for i in range(memory.memoryHeapCount)]
            families = api.vkGetPhysicalDeviceQueueFamilyProperties(info.handle)
            figures = {
                "limits": asdict(info.limits),
                "lanes": [info.lanes, *info.lanes_range],
                "memory types": types,
                "heaps": heaps,
                "queues": [[family.queueFlags, family.queueCount] for family in families],
                "extensions": sorted(info.extensions),
                "version": info.version,
                "uuid": info.uuid.hex(),
            }
            text = f"{info.index}: {info.label}, subgroups of {info.lanes}"
            yield judged("devices", not info.missing, text, **figures)
    finally:
        api.vkDestroyInstance(instance, None)


def numbers(device: VulkanDevice) -> Iterator[Line]:
    """Item 2: known answers, words, normals and chains against the reference."""
    for (seed, pass_number, row, augmentation, step, block), expected in KNOWN_ANSWERS:
        ids = np.array([row], np.uint64), np.array([augmentation], np.uint16)
        words = device.words(Keys(seed, pass_number, *ids), step, block + 1)[0, block]
        found = " ".join(f"{word:08x}" for word in words)
        yield judged("known answer", found == expected, found)
    keys, reference = keys_of(256), NumpyDevice(np.float32)
    same = np.array_equal(device.words(keys, 3, 160), reference.words(keys, 3, 160))
    yield judged("words", same, "256 rows of 160 blocks, equal to the reference")
    exact, float32 = NumpyDevice(np.float64).normals(keys, 3, DIM), reference.normals(keys, 3, DIM)
    normals = device.normals(keys, 3, DIM)
    error = float(np.abs(normals - exact).max())
    share = float((normals == float32).mean())
    yield judged("normals", error <= NORMAL_ERROR_MAX, f"largest error {error:.2e}", error=error)
    yield Line("normals", "INFO", f"{share:.2%} equal to NumPy bit for bit", {"share": share})
    yield from _chains(device, keys)


def _chains(device: VulkanDevice, keys: Keys) -> Iterator[Line]:
    rng = np.random.default_rng(2)
    rows, x = aligned_rows(500, DIM), unit_rows(len(keys), DIM)
    shape = (len(keys), 16)
    index = rng.integers(0, len(rows), shape).astype(np.int32)
    kappa = rng.uniform(100, 900, shape).astype(np.float32)
    weight = rng.standard_normal(shape).astype(np.float32)
    for method in ("ula", "mala"):
        dynamics = Dynamics(5, 1e-4, method=method)
        for name in ("self", "mixture"):
            ends = []
            for other in (device, NumpyDevice(np.float64)):
                if name == "self":
                    energy: Any = SelfEnergy(x, kappa[:, 0].copy())
                else:
                    energy = MixtureEnergy(other.load(rows), index, kappa, weight)
                ends.append(other.langevin(x, keys, energy, dynamics).result())
            # A decision of MALA on the border may fall either way.
            same = ends[0].accepted == ends[1].accepted
            error = float(np.linalg.norm(ends[0].x - ends[1].x, axis=1)[same].max())
            good = error <= ROW_ERROR_MAX and same.mean() > 0.98
            text = f"{name}, {method}, 5 steps: largest relative error {error:.2e} to float64"
            yield judged("chains", bool(good), text, error=error, same=float(same.mean()))


def export(device: VulkanDevice) -> Iterator[Line]:
    """Item 3: memory as a descriptor, and on NVIDIA as a CUDA tensor."""
    shared = open_vulkan(_index(device), exported=True, copy=False, batch_rows=64)
    try:
        memory = shared.exported_memory()
        descriptor = vk_cuda.export_descriptor(memory)
        vk_cuda.close_descriptor(descriptor)
        yield Line("export", "PASS", f"{memory.allocated:,} bytes as a file descriptor")
        yield from _as_cuda_tensors(shared)
    except GpuUnavailableError as error:
        yield Line("export", "SKIP", str(error))
    finally:
        shared.close()


def _as_cuda_tensors(shared: VulkanDevice) -> Iterator[Line]:
    runtime = CudaBindings()
    keys, x = keys_of(64), unit_rows(64, DIM)
    output = vk_cuda.CudaOutput(shared, runtime)
    pending = shared.isotropic(x, keys, 0.9)
    tensor = output.tensor(pending, copy=False)
    place = output.rows(pending).__cuda_array_interface__["data"][0]
    yield judged("export", tensor.data_ptr() == place, "torch uses the pointer as it is")
    same = np.array_equal(tensor.cpu().numpy(), pending.result().x)
    yield judged("export", same, "torch reads what the shader wrote")
    del tensor
    output.close()
    memory = shared.exported_memory()
    seen = set()
    for _ in range(CYCLES):
        handle = vk_cuda.import_owned(
            partial(runtime.import_memory, output.ordinal),
            partial(vk_cuda.export_descriptor, memory),
            memory.allocated,
        )
        runtime.destroy_memory(handle)
        descriptor = vk_cuda.export_descriptor(memory)
        vk_cuda.close_descriptor(descriptor)
        seen.add(descriptor)
    yield judged("export", len(seen) <= 2, f"{CYCLES} imports leave no descriptors behind")


def stamps(device: VulkanDevice) -> Iterator[Line]:
    """Item 4: many batches in flight, each looked at: a race shows as another batch's numbers."""
    wrong = _wrong_batches(device, BATCHES, lambda pending: pending.result().x)
    yield judged("batches", not wrong, f"{BATCHES} in flight by {device.slots}, {wrong} wrong")
    try:
        runtime = CudaBindings()
        for shared in (True, False):
            yield _cuda_batches(device, runtime, timelines=shared)
    except GpuUnavailableError as error:
        yield Line("batches", "SKIP", f"shared with CUDA: {error}")


def _cuda_batches(device: VulkanDevice, runtime: CudaRuntime, *, timelines: bool) -> Line:
    shared = open_vulkan(_index(device), exported=True, copy=False, batch_rows=64)
    try:
        if timelines and shared.timelines() is None:
            return Line("batches", "SKIP", "the device cannot share timelines")
        output = vk_cuda.CudaOutput(shared, runtime, timelines=timelines)
        wrong = _wrong_batches(
            shared, CUDA_BATCHES, lambda pending: output.tensor(pending).cpu().numpy()
        )
        output.close()
        who = "timelines shared with CUDA" if timelines else "the host waits for CUDA"
        return judged("batches", not wrong, f"{CUDA_BATCHES}, {who}, {wrong} wrong")
    finally:
        shared.close()


def _wrong_batches(
    device: VulkanDevice, batches: int, rows_of: Callable[[Pending], npt.NDArray[np.float32]]
) -> int:
    reference, count = NumpyDevice(np.float32), 8
    x = unit_rows(count, 32)
    base = keys_of(count)
    wrong = 0
    waiting: list[tuple[Keys, Pending]] = []
    for number in range(batches):
        keys = Keys(base.seed, number, base.rows, base.augmentations)
        waiting.append((keys, device.isotropic(x, keys, 0.5)))
        if len(waiting) == device.slots:
            keys, pending = waiting.pop(0)
            expected = reference.isotropic(x, keys, 0.5).result().x
            wrong += not np.allclose(rows_of(pending), expected, atol=1e-5)
    return wrong


def imports(device: VulkanDevice) -> Iterator[Line]:
    """Item 5: host memory read in place, and what the copy costs instead."""
    rows = aligned_rows(20_000, DIM)
    raw = np.empty(rows.size + 4, np.float32)
    offset = 4 if raw.ctypes.data % 4096 == 0 else 0
    moved = raw[offset : offset + rows.size].reshape(rows.shape)
    moved[...] = rows
    for name, array in (("anonymous, aligned", rows), ("not aligned", moved)):
        before = device.stats()["imports_refused"]
        seconds, table = rates.timed(partial(device.load, array))
        refused = device.stats()["imports_refused"] > before
        how = "in place" if table.imported else "refused, copied" if refused else "copied"
        gigabytes = rows.nbytes / seconds / 1e9
        text = f"{name}: {how} in {seconds * 1e3:.1f} ms ({gigabytes:.1f} GB/s)"
        yield Line("import", "INFO", text, {"imported": table.imported, "seconds": seconds})
        table.close()
    reason = "file mappings and huge pages are the log's: tests/test_vk_table.py maps a file"
    yield Line("import", "SKIP", reason)


def figures(device: VulkanDevice) -> Iterator[Line]:
    """Item 6: rates of the shader, of the ring and of torch."""
    for name, value, unit in rates.measure(device, _index(device)):
        yield Line("rate", "INFO", f"{name}: {value:,.1f} {unit}", {name: value})


def memory(device: VulkanDevice) -> Iterator[Line]:
    """Item 7: more memory than there is ends in an error, and the device works after it."""
    shared = open_vulkan(_index(device), exported=True, copy=False, batch_rows=64)
    context = shared.exported_memory().context
    size = context.info.limits.heap * 3 // 2
    try:
        allocate(context, size, Place.DEVICE, option="nothing").close()
        yield Line("memory", "INFO", f"the driver promised {size:,} bytes, more than it has")
    except DeviceMemoryError as error:
        yield judged("memory", error.asked_bytes == size, str(error))
    except GpuUnavailableError as error:
        yield Line("memory", "FAIL", f"not the error of memory: {error}")
    works = shared.words(keys_of(4), 0, 2).shape == (4, 2, 4)
    yield judged("memory", works, "the device works after it")
    shared.close()


def _index(device: VulkanDevice) -> int:
    return int(device.stats()["index"])


ITEMS: Final[tuple[Item, ...]] = (devices, numbers, export, stamps, imports, figures, memory)


def run(selector: str | None, say: Callable[[Line], None]) -> list[Line]:
    """Run all items on one device; an item that breaks is a FAIL and the next one goes on."""
    found: list[Line] = []

    def keep(line: Line) -> None:
        found.append(line)
        say(line)

    device = open_vulkan(selector, batch_rows=BATCH_ROWS)
    try:
        for item in ITEMS:
            try:
                for line in item(device):
                    keep(line)
            except MldbError as error:
                keep(Line(item.__name__, "FAIL", f"{type(error).__name__}: {error}"))
    finally:
        device.close()
    return found


@click.command(help=__doc__)
@click.option("--device", "selector", help="index or part of the name; else the best one")
@click.option("--json", "target", type=click.File("w"), help="write all findings to this file")
def main(selector: str | None, target: TextIO | None) -> None:
    """Print the findings; exit with 1 if an item failed or there is no device."""
    try:
        found = run(selector, lambda line: click.echo(f"{line.status}  {line.item}: {line.text}"))
    except GpuUnavailableError as error:
        raise click.ClickException(str(error)) from error
    if target is not None:
        json.dump([asdict(line) for line in found], target, indent=1, default=str)
    if any(line.status == "FAIL" for line in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
