"""What an item of ``mldb.gpu.selftest.items`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from mldb.gpu.vulkan.device import VulkanDevice

Status: TypeAlias = Literal["PASS", "FAIL", "SKIP", "INFO"]


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


def index_of(device: VulkanDevice) -> int:
    """The number of a device among those of this machine."""
    return int(device.stats()["index"])
