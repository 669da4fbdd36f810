"""Which device runs: the one asked for, or with "auto" the first of a fixed order that opens.

An explicit choice never falls back to another device: it opens or raises GpuUnavailableError. With
"auto" the NumPy reference is the last resort. It computes the same function from the same noise,
only slower, and taking it gives one RuntimeWarning per process.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, Final

from mldb.errors import GpuUnavailableError, InvalidTypeError, InvalidValueError
from mldb.gpu.device import Device
from mldb.gpu.vulkan.instance import ENVIRONMENT
from mldb.log.ownership import OwnedLock

_logger = logging.getLogger(__name__)

NAMES: Final = ("auto", "vulkan", "vulkan:NAME", "cuda", "cuda:N", "torch", "cpu", "numpy")

_warn_lock = OwnedLock("the warning that no device was found")
_warned: list[bool] = []


def open_device(spec: str = "auto", *, copy: bool = True) -> Device:
    """Open a device. Its owner closes it; a forked child opens its own.

    "auto" takes the first that is there: a discrete Vulkan device that shares memory with CUDA,
    CUDA through torch, another Vulkan device, torch on the CPU, NumPy. "vulkan:NAME" is the Vulkan
    device whose name contains NAME, or whose number is NAME; "cuda:N" the N-th CUDA device;
    "torch" and "cpu" are torch on the CPU, "numpy" the reference. With ``copy=False`` results may
    be overwritten once ``slots`` further batches were started.

    Raises InvalidValueError for an unknown name, GpuUnavailableError when the device that was
    named is not there.
    """
    name, detail = check_spec(spec)
    if name == "auto":
        return _auto(copy=copy)
    if name == "vulkan":
        return _vulkan(detail or None, copy=copy)
    if name == "cuda":
        return _torch(spec, copy=copy)
    if name in ("torch", "cpu"):
        return _torch("cpu", copy=copy)
    return _numpy()


def check_spec(spec: str) -> tuple[str, str]:
    """Return the kind of device and what follows its colon; opens nothing.

    Raises InvalidTypeError, InvalidValueError.
    """
    if not isinstance(spec, str):
        raise InvalidTypeError(f"device is a {type(spec).__name__}, not one of {', '.join(NAMES)}")
    name, _, detail = spec.partition(":")
    known = name == "vulkan" or (name == "cuda" and (not detail or detail.isdecimal()))
    if not known and spec not in NAMES:
        raise InvalidValueError(f"device={spec!r} is not one of {', '.join(map(repr, NAMES))}")
    return name, detail


def _auto(*, copy: bool) -> Device:
    """Open the best device; each failure on the way is kept for the message of the last resort."""
    reasons: list[str] = []
    shared = _try(reasons, lambda: _shared(copy=copy))
    if shared is not None:
        return _chosen(shared)
    if os.environ.get(ENVIRONMENT):  # a choice, which never gives way to another device
        return _chosen(_vulkan(None, copy=copy))
    cuda = _try(reasons, lambda: _torch("cuda", copy=copy))
    if cuda is not None:
        return _chosen(cuda)
    vulkan = _try(reasons, lambda: _vulkan(None, copy=copy))
    if vulkan is not None:
        return _chosen(vulkan)
    torch = _try(reasons, lambda: _torch("cpu", copy=copy))
    if torch is not None:
        return _chosen(torch)
    _warn_once(reasons)
    return _chosen(_numpy())


def _try(reasons: list[str], opened: Any) -> Any:
    try:
        return opened()
    except GpuUnavailableError as error:
        reasons.append(str(error))
        return None


def _chosen(device: Device) -> Device:
    _logger.info("device='auto' is %s", device.name)
    return device


def _warn_once(reasons: list[str]) -> None:
    guard = _warn_lock.hold_unless_inside()
    if guard is None:
        return  # the call around this one warns
    with guard:
        if _warned:
            return
        _warned.append(True)
    warnings.warn(
        "no device was found, so the NumPy reference runs: the same results, many times slower. "
        "pip install mldb[torch,lake] for the CPU, mldb[vulkan] for Vulkan. Tried: "
        + " | ".join(reasons),
        RuntimeWarning,
        stacklevel=4,
    )


def _shared(*, copy: bool) -> Device:
    from mldb.gpu.vulkan.shared import open_shared

    return open_shared(copy=copy)


def _vulkan(selector: str | None, *, copy: bool) -> Device:
    from mldb.gpu.vulkan.device import open_vulkan

    return open_vulkan(selector, copy=copy)


def _torch(device: str, *, copy: bool) -> Device:
    from mldb.gpu.torch_device import TorchDevice

    return TorchDevice(device, copy=copy)


def _numpy() -> Device:
    from mldb.gpu.reference import NumpyDevice

    return NumpyDevice()
