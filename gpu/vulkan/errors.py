"""From what Vulkan answers to errors that say what happened and what to do.

The ``vulkan`` package raises exceptions without a text, one class per result code. They end here:
``translated`` turns them into the typed errors of mldb, and ``load`` does the same for the ways in
which the package itself can be missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mldb.errors import GpuUnavailableError

SUCCESS: Final = 0
TIMEOUT: Final = 2
DEVICE_LOST: Final = -4

NO_PACKAGE: Final = (
    "the Python package `vulkan` is not installed; `pip install mldb[vulkan]` brings it"
)
NO_LOADER: Final = (
    "the Vulkan loader libvulkan.so.1 is not on this machine; install the system package "
    "`libvulkan1` (Debian, Ubuntu) or `vulkan-loader` (Fedora)"
)


class DeviceMemoryError(GpuUnavailableError):
    """The device has too little memory. Nothing was allocated; the device goes on working.

    ``asked_bytes`` is the allocation that failed.
    """

    def __init__(self, message: str, *, asked_bytes: int) -> None:
        super().__init__(message)
        self.asked_bytes = asked_bytes


class DeviceLostError(GpuUnavailableError):
    """The driver lost the device; every later call on it fails.

    ``batch`` is the number of the batch that was waited for, counted from 1; 0 if none was.
    """

    def __init__(self, message: str, *, batch: int = 0) -> None:
        super().__init__(message)
        self.batch = batch


class DeviceTimeoutError(GpuUnavailableError):
    """The device did not finish a batch in time. ``batch`` is its number, counted from 1."""

    def __init__(self, message: str, *, batch: int) -> None:
        super().__init__(message)
        self.batch = batch


def load_vulkan() -> Any:
    """Return the ``vulkan`` module. Raises GpuUnavailableError with what to install."""
    try:
        import vulkan
    except ModuleNotFoundError as error:
        raise GpuUnavailableError(NO_PACKAGE) from error
    except OSError as error:
        # The package opens the loader when it is imported and guesses at an SDK that is missing.
        raise GpuUnavailableError(NO_LOADER) from error
    return vulkan


@contextmanager
def translated(api: Any, doing: str, *, device: str = "") -> Iterator[None]:
    """Turn what the Vulkan calls of the block raise into GpuUnavailableError.

    ``doing`` ends the sentence "Vulkan failed to ...". A lost device becomes DeviceLostError.
    """
    place = f" on {device}" if device else ""
    try:
        yield
    except api.VkErrorDeviceLost as error:
        raise lost(device) from error
    except (api.VkError, api.VkException) as error:
        name = type(error).__name__
        raise GpuUnavailableError(f"Vulkan failed to {doing}{place}: {name}") from error


@contextmanager
def allocating(
    api: Any, device: str, asked_bytes: int, heap_bytes: int, option: str
) -> Iterator[None]:
    """Turn memory that ran out into DeviceMemoryError; ``option`` names what to lower."""
    try:
        yield
    except (api.VkErrorOutOfDeviceMemory, api.VkErrorOutOfHostMemory) as error:
        raise DeviceMemoryError(
            f"{device} has no room for {asked_bytes:,} bytes (its largest heap has "
            f"{heap_bytes:,}); nothing was lost: lower {option}, or close what else uses it",
            asked_bytes=asked_bytes,
        ) from error


def lost(device: str, batch: int = 0) -> DeviceLostError:
    """Return the error of a lost device."""
    during = f" during batch {batch}" if batch else ""
    return DeviceLostError(
        f"the Vulkan device {device} was lost{during}; it has to be opened again. Results are a "
        "pure function of their keys, so the batches repeated from there are the same",
        batch=batch,
    )


def timed_out(device: str, batch: int, seconds: float) -> DeviceTimeoutError:
    """Return the error of a batch that does not end."""
    return DeviceTimeoutError(
        f"batch {batch} did not end within {seconds:g} s on {device}; its buffers are left alone, "
        "since the device may still write them. Close the device and open another, or end the "
        "process; fewer rows or steps in a batch take less time",
        batch=batch,
    )


def error_of(result: int, device: str, batch: int, seconds: float) -> GpuUnavailableError:
    """Return the error of a result code other than SUCCESS."""
    if result == TIMEOUT:
        return timed_out(device, batch, seconds)
    if result == DEVICE_LOST:
        return lost(device, batch)
    return GpuUnavailableError(f"Vulkan answered {result} for batch {batch} on {device}")
