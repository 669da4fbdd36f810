"""Which device runs: the one asked for, or with "auto" the first that can do it and opens.

An explicit choice never falls back to another device: it opens or raises GpuUnavailableError. With
"auto" the request decides: devices that cannot do it are passed over (``mldb.gpu.capability``), and
a Vulkan driver for the CPU stands behind torch where torch is faster. The NumPy reference is the
last resort. It computes the same function from the same noise, only slower, and taking it gives one
RuntimeWarning per process.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Final, NamedTuple

from mldb.errors import GpuUnavailableError, InvalidTypeError, InvalidValueError
from mldb.gpu.capability import Kind, Needs, cpu_driver_is_slower, lacks
from mldb.gpu.device import Device
from mldb.gpu.vulkan.instance import ENVIRONMENT, DeviceInfo, default_device
from mldb.log.ownership import OwnedLock

_logger = logging.getLogger(__name__)

NAMES: Final = ("auto", "vulkan", "vulkan:NAME", "cuda", "cuda:N", "torch", "cpu", "numpy")

_warn_lock = OwnedLock("the warning that no device was found")
_warned: list[bool] = []


def open_device(spec: str = "auto", *, copy: bool = True, needs: Needs | None = None) -> Device:
    """Open a device. Its owner closes it; a forked child opens its own.

    "auto" takes the first that is there and can do what *needs* says: a discrete Vulkan device that
    shares memory with CUDA, CUDA through torch, another Vulkan device, torch on the CPU, NumPy. A
    Vulkan driver for the CPU comes behind torch where it measured slower. "vulkan:NAME" is the
    Vulkan device whose name contains NAME, or whose number is NAME; "cuda:N" the N-th CUDA device;
    "torch" and "cpu" are torch on the CPU, "numpy" the reference. With ``copy=False`` results may
    be overwritten once ``slots`` further batches were started.

    Raises InvalidValueError for an unknown name, and with each device and why where none can do
    what is needed; GpuUnavailableError when the device that was named is not there.
    """
    name, detail = check_spec(spec)
    if name == "auto":
        return _auto(needs, copy=copy)
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


def is_torch_on_cpu(spec: str, needs: Needs | None = None) -> bool:
    """Whether :func:`open_device` would open torch on the CPU, as far as can be told unopened.

    Leaves CUDA alone, so that processes may be forked afterwards. Raises InvalidValueError for an
    unknown name.
    """
    name, _ = check_spec(spec)
    if name != "auto":
        return name in ("torch", "cpu")
    if os.environ.get(ENVIRONMENT):
        return False
    able = (
        candidate.kind
        for candidate in _candidates(needs, [], copy=False)
        if lacks(candidate.kind, needs, candidate.driver) is None
        and (candidate.kind != "cuda" or _has_cuda())
    )
    return next(able, None) == "torch"


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.device_count() > 0  # is_available() would begin to use it


class _Candidate(NamedTuple):
    """A device that "auto" may take. ``driver`` is what Vulkan has, asked before it is opened."""

    name: str
    kind: Kind
    open: Callable[[], Device]
    driver: DeviceInfo | None = None


def _auto(needs: Needs | None, *, copy: bool) -> Device:
    """Open the best device that can do it; why each other was not taken is kept for messages."""
    reasons: list[str] = []
    if os.environ.get(ENVIRONMENT):  # a choice, which never gives way to another device
        shared = _opened(_Candidate("vulkan", "vulkan", partial(_shared, copy=copy)), reasons)
        return _chosen(_vulkan(None, copy=copy) if shared is None else shared)
    for candidate in _candidates(needs, reasons, copy=copy):
        why = lacks(candidate.kind, needs, candidate.driver)
        if why is not None:
            reasons.append(f"{candidate.name}: {why}")
            continue
        if candidate.kind == "numpy":
            _warn_once(reasons)
        device = _opened(candidate, reasons)
        if device is not None:
            return _chosen(device)
    raise InvalidValueError("no device can run this: " + " | ".join(reasons))


def _candidates(needs: Needs | None, reasons: list[str], *, copy: bool) -> Iterator[_Candidate]:
    """What "auto" may take, the best first."""
    driver = _driver(reasons)
    vulkan = _Candidate("vulkan", "vulkan", partial(_vulkan, None, copy=copy), driver)
    on_cpu = driver is not None and driver.kind == "cpu"
    if driver is not None and not on_cpu:
        yield vulkan._replace(name="vulkan shared with cuda", open=partial(_shared, copy=copy))
    yield _Candidate("cuda", "cuda", partial(_torch, "cuda", copy=copy))
    last = on_cpu and cpu_driver_is_slower(needs)
    if driver is not None and not last:
        yield vulkan
    yield _Candidate("torch", "torch", partial(_torch, "cpu", copy=copy))
    if last:
        yield vulkan
    yield _Candidate("numpy", "numpy", _numpy)


def _opened(candidate: _Candidate, reasons: list[str]) -> Device | None:
    try:
        return candidate.open()
    except GpuUnavailableError as error:
        reasons.append(f"{candidate.name}: {error}")
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


def _driver(reasons: list[str]) -> DeviceInfo | None:
    """The Vulkan device that would be opened, as its driver describes it; None without one."""
    try:
        return _described()
    except GpuUnavailableError as error:
        reasons.append(f"vulkan: {error}")
        return None


@cache
def _described() -> DeviceInfo:
    """Asked once per process (it takes 30 ms), and again after a failure."""
    return default_device()


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
