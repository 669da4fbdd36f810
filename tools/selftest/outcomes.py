"""What a check says: that a promise held, that it was broken, or that it was not tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["held", "broken", "skipped"]


class BrokenPromise(Exception):
    """A promise did not hold; the text says which, and what was found instead."""


class NotHere(Exception):
    """What a check needs is not installed; the text says what, and how it is installed."""


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check: what was promised, how it went, what to read about it, in how many seconds."""

    name: str
    state: State
    text: str
    seconds: float


def require(holds: object, promise: str) -> None:
    """Raise BrokenPromise unless *holds*."""
    if not holds:
        raise BrokenPromise(promise)
