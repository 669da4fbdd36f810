"""What of a framework's log is a number."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any


def numbers_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """The real numbers by name, without ``epoch``: that is the label of the commit already.

    A scalar of NumPy or torch counts as one; texts, lists and truth values do not.
    """
    found = {}
    for name, value in logs.items():
        if name == "epoch" or isinstance(value, bool | str):
            continue
        if isinstance(value, Real) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0):
            found[name] = float(value)
    return found
