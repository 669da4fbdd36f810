"""``python -m mldb.gpu.selftest``: what the Vulkan device of this machine does, item by item.

Each item prints PASS, FAIL, SKIP with its reason, or figures, and the next one goes on. Nothing but
plain allocations is made and no setting of a device is changed. The exit status is 1 if an item
failed. On a CPU device it takes less than two minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final, TextIO

import click
import numpy as np

from mldb.errors import GpuUnavailableError, MldbError
from mldb.gpu.device import Dynamics, MixtureEnergy, SelfEnergy
from mldb.gpu.reference import NumpyDevice
from mldb.gpu.selftest import rates
from mldb.gpu.selftest.cuda import export, stamps
from mldb.gpu.selftest.lines import Item, Line, index_of, judged
from mldb.gpu.selftest.memory import imports, memory
from mldb.gpu.selftest.rates import DIM, aligned_rows, sample_keys, unit_rows
from mldb.gpu.vulkan import errors as vk_errors
from mldb.gpu.vulkan import instance as vk_instance
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.noise.keys import Keys

NORMAL_ERROR_MAX: Final = 2e-6
ROW_ERROR_MAX: Final = 1e-6
BATCH_ROWS: Final = 1024

# Random123's vectors: seed, pass, row, augmentation, step, block, and the words that come out.
ONES: Final = (2**64 - 1, 2**32 - 1, 2**48 - 1, 2**16 - 1, 0xFFFF, 0xFFFF)
PI: Final = (0x299F31D0A4093822, 0x85A308D3, 0x734413198A2E, 0x0370, 0x243F, 0x6A88)
KNOWN_ANSWERS: Final = (
    ((0, 0, 0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def devices(_: VulkanDevice) -> Iterator[Line]:
    """Item 1: every device, its limits, memory and extensions."""
    api = vk_errors.load_vulkan()
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
                "driver": info.driver,
                "uuid": info.uuid.hex(),
            }
            text = f"{info.index}: {info.label}, subgroups of {info.lanes}"
            yield judged("devices", not info.missing, text, **figures)
    finally:
        api.vkDestroyInstance(instance, None)


def against_reference(device: VulkanDevice) -> Iterator[Line]:
    """Item 2: known answers, words, normals and chains against the reference."""
    for (seed, pass_number, row, augmentation, step, block), expected in KNOWN_ANSWERS:
        ids = np.array([row], np.uint64), np.array([augmentation], np.uint16)
        words = device.words(Keys(seed, pass_number, *ids), step, block + 1)[0, block]
        found = " ".join(f"{word:08x}" for word in words)
        yield judged("known answer", found == expected, found)
    keys, reference = sample_keys(256), NumpyDevice(np.float32)
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


def figures(device: VulkanDevice) -> Iterator[Line]:
    """Item 6: rates of the shader, of the ring and of torch."""
    for name, value, unit in rates.measure_rates(device, index_of(device)):
        yield Line("rate", "INFO", f"{name}: {value:,.1f} {unit}", {name: value})
    yield Line("rate", "SKIP", "neighbours in fp16 and an unrolled shader: there are none")


ITEMS: Final[tuple[Item, ...]] = (
    devices,
    against_reference,
    export,
    stamps,
    imports,
    figures,
    memory,
)


def run_items(selector: str | None, say: Callable[[Line], None]) -> list[Line]:
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
        found = run_items(
            selector, lambda line: click.echo(f"{line.status}  {line.item}: {line.text}")
        )
    except GpuUnavailableError as error:
        raise click.ClickException(str(error)) from error
    if target is not None:
        json.dump([asdict(line) for line in found], target, indent=1, default=str)
    if any(line.status == "FAIL" for line in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
