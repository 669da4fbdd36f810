"""A Vulkan device for a test, and one batch of every kind of work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest

from mldb.errors import GpuUnavailableError
from mldb.gpu.device import ChainMethod, Device, Dynamics, Energy, MixtureEnergy, SelfEnergy
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.noise.keys import Keys

Floats = npt.NDArray[np.float32]
METHODS: tuple[ChainMethod, ...] = ("ula", "mala")


def give_up(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI_REQUIRE_VULKAN says that Vulkan has to be there."""
    if os.environ.get("CI_REQUIRE_VULKAN"):
        pytest.fail(reason)
    pytest.skip(reason)


def device_of(**options: Any) -> VulkanDevice:
    """Open the Vulkan device of this machine; without one the test is skipped."""
    try:
        return open_vulkan(**options)
    except GpuUnavailableError as error:
        give_up(str(error))


@contextmanager
def opened(**options: Any) -> Iterator[VulkanDevice]:
    """The same, closed at the end."""
    device = device_of(**options)
    try:
        yield device
    finally:
        device.close()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows under their own splat and under neighbours of a table."""

    keys: Keys
    x: Floats
    mu: Floats
    kappa: Floats
    rows: Floats
    index: npt.NDArray[np.int32]
    kappas: Floats
    log_weight: Floats


def unit_rows(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    """Rows [rows, dim] of length 1, uniform."""
    x = rng.standard_normal((rows, dim))
    unit: Floats = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit


def keys_of(rng: np.random.Generator, rows: int) -> Keys:
    """Keys that use every bit of every field."""
    return Keys(
        seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
        pass_number=int(rng.integers(0, 2**32)),
        rows=rng.integers(0, 2**48, rows, dtype=np.uint64),
        augmentations=rng.integers(0, 2**16, rows).astype(np.uint16),
    )


def batch_of(
    rng: np.random.Generator, *, rows: int, dim: int, neighbours: int, table: int = 50
) -> Batch:
    """A batch with neighbours that pull about as hard as the noise."""
    shape = (rows, neighbours)
    return Batch(
        keys=keys_of(rng, rows),
        x=unit_rows(rng, rows, dim),
        mu=unit_rows(rng, rows, dim),
        kappa=rng.uniform(dim / 4, 2 * dim, rows).astype(np.float32),
        rows=unit_rows(rng, table, dim),
        index=rng.integers(0, table, shape).astype(np.int32),
        kappas=rng.uniform(dim / 4, 2 * dim, shape).astype(np.float32),
        log_weight=rng.standard_normal(shape).astype(np.float32),
    )


def results_of(device: Device, batch: Batch, *, steps: int = 3) -> dict[str, npt.NDArray[Any]]:
    """Run a batch of every mode; the chains end in x, and MALA's counts are there as well."""
    dim = batch.x.shape[1]
    found: dict[str, npt.NDArray[Any]] = {
        "words": device.words(batch.keys, 2, 5),
        "normals": device.normals(batch.keys, 2, dim),
        "isotropic": device.isotropic(batch.x, batch.keys, 0.9).result().x,
    }
    table = device.load(batch.rows)
    energies: dict[str, Energy] = {
        "own": SelfEnergy(batch.x, batch.kappa),
        "self": SelfEnergy(batch.mu, batch.kappa),
        "mixture": MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight),
    }
    for name, energy in energies.items():
        for method in METHODS:
            dynamics = Dynamics(steps, 0.05 / dim, method=method)
            ends = device.langevin(batch.x, batch.keys, energy, dynamics).result()
            found[f"{name} {method}"] = ends.x
            found[f"{name} {method} accepted"] = ends.accepted
    table.close()
    return found


def largest_error(found: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """The largest distance of a row to what it should be; rows have length 1."""
    return float(np.linalg.norm(found - exact, axis=-1).max())
