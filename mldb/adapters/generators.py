"""The random generators of a process: what frameworks save of them, without their pickles."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch

_KINDS: Final = ("cuda", "npu", "hpu", "mlu", "musa", "xpu")


def rng_state() -> dict[str, Any]:
    """The generators of Python, NumPy and torch: of the CPU, and of all devices that are in use."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the one that models and Trainers use
        "cpu": torch.random.get_rng_state(),
    }
    for name, devices in _devices():
        found[name] = [devices.get_rng_state(number) for number in range(devices.device_count())]
    return found


def set_rng_state(stored: Mapping[str, Any]) -> None:
    """Put the generators back. Those of devices that are not there are left out."""
    random.setstate(stored["python"])
    np.random.set_state(stored["numpy"])  # noqa: NPY002
    torch.random.set_rng_state(stored["cpu"].cpu())
    for name, devices in _devices():
        for number, state in enumerate(stored.get(name, ())[: devices.device_count()]):
            devices.set_rng_state(state.cpu(), number)


def _devices() -> Iterator[tuple[str, Any]]:
    """The kinds of devices that this process uses, and the part of torch that knows them."""
    for name in _KINDS:
        devices = getattr(torch, name, None)
        if devices is not None and devices.is_available() and devices.is_initialized():
            yield name, devices
