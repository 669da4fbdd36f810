"""The measurements of ``mldb.gpu.selftest``: rates of the shader, of the ring, and of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s
from mldb.gpu.device import Dynamics, Energy, MixtureEnergy, SelfEnergy
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.noise.keys import Keys

DIM: Final = 640
NEIGHBOURS: Final = 16
STEPS: Final = 5
STEP_SIZE: Final = 1e-4
TABLE_ROWS: Final = 20_000
PAGE: Final = 4096
MEASURED_ROUNDS: Final = 5

Figure = tuple[str, float, str]
_T = TypeVar("_T")


def unit_rows(count: int, dim: int) -> Float32s:
    """Return rows [count, dim] of length 1; the same ones each time."""
    x = np.random.default_rng(count).standard_normal((count, dim), np.float32)
    rows: Float32s = x / np.linalg.norm(x, axis=1, keepdims=True)
    return rows


def aligned_rows(count: int, dim: int) -> Float32s:
    """Return such rows in memory that starts at a page."""
    raw = np.empty(4 * count * dim + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    rows = raw[start : start + 4 * count * dim].view(np.float32).reshape(count, dim)
    rows[...] = unit_rows(count, dim)
    return rows


def sample_keys(count: int) -> Keys:
    """Return keys of *count* rows."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 1 << 48, count, dtype=np.uint64)
    return Keys(0x0123456789ABCDEF, 7, rows, rng.integers(0, 1 << 16, count).astype(np.uint16))


def timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """Return how many seconds a call took, and what it returned."""
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def best(work: Callable[[], object], rounds: int = MEASURED_ROUNDS) -> float:
    """Return the fewest seconds of several calls, after one that does not count."""
    work()
    return min(timed(work)[0] for _ in range(rounds))


def measure_rates(device: VulkanDevice, index: int) -> Iterator[Figure]:
    """Yield name, value and unit of each figure."""
    yield from _first_use(index)
    yield from _kernels(device)
    yield from _forms(index)
    keys, x = sample_keys(1), unit_rows(1, DIM)
    seconds = best(lambda: device.isotropic(x, keys, 0.9).result(), 50)
    yield "one row there and back", seconds * 1e6, "us"
    yield from _torch()


def _first_use(index: int) -> Iterator[Figure]:
    """How long a new device takes to compile; drivers may keep what they compiled before."""
    other = open_vulkan(index, batch_rows=64)
    own = partial(other.prepare, "self", DIM)
    mixture = partial(other.prepare, "mixture", DIM, neighbours=NEIGHBOURS)
    yield "first use of self", timed(own)[0], "s"
    yield "first use of mixture", timed(mixture)[0], "s"
    other.close()


def batch(device: VulkanDevice, kind: str, rows: int) -> Callable[[], Any]:
    """Return a call that runs one batch of *rows* rows to its end."""
    x, keys = unit_rows(rows, DIM), sample_keys(rows)
    if kind == "normals":
        return lambda: device.normals(keys, 0, DIM)
    energy: Energy = SelfEnergy(x, np.full(rows, 500, np.float32))
    if kind == "mixture":
        energy = MixtureEnergy(device.load(aligned_rows(TABLE_ROWS, DIM)), *neighbours(rows))
    dynamics = Dynamics(STEPS, STEP_SIZE)
    return lambda: device.langevin(x, keys, energy, dynamics).result()


def neighbours(rows: int) -> tuple[npt.NDArray[np.int32], Float32s, Float32s]:
    """Return index, kappa and log weight [rows, 16]."""
    rng, shape = np.random.default_rng(4), (rows, NEIGHBOURS)
    index = rng.integers(0, TABLE_ROWS, shape).astype(np.int32)
    kappa = rng.uniform(100, 900, shape).astype(np.float32)
    return index, kappa, rng.standard_normal(shape, np.float32)


def _kernels(device: VulkanDevice) -> Iterator[Figure]:
    capacity = int(device.stats()["batch_rows"])
    for kind in ("normals", "self", "mixture"):
        yield f"{kind}, {capacity} rows", capacity / best(batch(device, kind, capacity)), "rows/s"
    x, mine = unit_rows(capacity, DIM), sample_keys(capacity)
    energy, dynamics = SelfEnergy(x, np.full(capacity, 500, np.float32)), Dynamics(STEPS, STEP_SIZE)
    for augment in (1, 4, 16, 40):

        def several(augment: int = augment) -> None:
            numbers = (np.full(capacity, a, np.uint16) for a in range(augment))
            keys = (Keys(mine.seed, 0, mine.rows, number) for number in numbers)
            for one in [device.langevin(x, key, energy, dynamics) for key in keys]:
                one.result()

        rate = augment * capacity / best(several, 2)
        yield f"self, {augment} augmentations in flight", rate, "rows/s"


def _forms(index: int) -> Iterator[Figure]:
    """The same work with other workgroups, and with copies instead of shared memory."""
    forms: list[tuple[str, dict[str, Any]]] = [
        (f"{n} splats a workgroup", {"subgroups": n}) for n in (1, 2, 4, 8)
    ]
    forms += [(f"staging, ring of {n}", {"direct": False, "slots": n}) for n in (2, 3, 4)]
    for name, options in forms:
        other = open_vulkan(index, batch_rows=1024, **options)
        for kind in ("self", "mixture"):
            yield f"{kind}, {name}", 1024 / best(batch(other, kind, 1024), 3), "rows/s"
        other.close()


def _torch() -> Iterator[Figure]:
    """The rival: the same mathematics in torch with torch.randn, on the CPU and on CUDA."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    for place in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for kind in ("self", "mixture"):
            work = torch_batch(kind, 1024, place)
            yield f"torch on {place}, {kind}", 1024 / best(work, 3), "rows/s"


def torch_batch(kind: str, rows: int, place: str, chunk: int = 256) -> Callable[[], object]:
    """Return a call that runs one batch by torch: batched products, ``chunk`` rows at a time."""
    import torch

    x = torch.from_numpy(unit_rows(rows, DIM)).to(place)
    table = torch.from_numpy(aligned_rows(TABLE_ROWS, DIM)).to(place)
    index, kappa, weight = (torch.from_numpy(a).to(place) for a in neighbours(rows))
    spread = (2 * STEP_SIZE) ** 0.5

    def step(here: Any, force: Any) -> Any:
        a = STEP_SIZE * force + spread * torch.randn_like(here)
        v = a - here * (here * a).sum(1, keepdim=True)
        size = v.norm(dim=1, keepdim=True)
        moved = torch.cos(size) * here + torch.sin(size) / size * v
        return moved / moved.norm(dim=1, keepdim=True)

    def chain(part: slice) -> Any:
        here = x[part]
        if kind == "self":
            force = 500.0 * here
            for _ in range(STEPS):
                here = step(here, force)
            return here
        mu = table[index[part].reshape(-1)].view(-1, NEIGHBOURS, DIM)
        for _ in range(STEPS):
            cosine = torch.bmm(mu, here[:, :, None])[:, :, 0]
            pull = torch.softmax(weight[part] + kappa[part] * (cosine - 1), 1) * kappa[part]
            here = step(here, torch.bmm(pull[:, None, :], mu)[:, 0])
        return here

    def all_rows() -> object:
        ends = [chain(slice(first, first + chunk)) for first in range(0, rows, chunk)]
        if place == "cuda":
            torch.cuda.synchronize()
        return ends

    return all_rows
