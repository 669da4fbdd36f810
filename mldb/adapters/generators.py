"""The random generators of a process: what frameworks save of them, without their pickles."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

_DEVICES: Final = ("cuda", "npu", "hpu", "mlu", "musa", "xpu")


def rng_state() -> dict[str, Any]:
    """The generators of Python, NumPy and torch, and of each device that is there."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the one that models and the Trainer use
        "cpu": torch.random.get_rng_state(),
    }
    for name in _DEVICES:
        device = getattr(torch, name, None)
        if device is not None and device.is_available():
            found[name] = device.get_rng_state()
    return found


def set_rng_state(stored: Mapping[str, Any]) -> None:
    """Put the generators back. One of a device that is not there is left out."""
    random.setstate(stored["python"])
    np.random.set_state(stored["numpy"])  # noqa: NPY002
    torch.random.set_rng_state(stored["cpu"].cpu())
    for name in _DEVICES:
        device = getattr(torch, name, None)
        if name in stored and device is not None and device.is_available():
            device.set_rng_state(stored[name].cpu())
