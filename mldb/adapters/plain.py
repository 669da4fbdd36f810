"""What of a framework's log is a number, and what of its configuration metadata can hold."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Final

import numpy as np

_PLAIN: Final = (type(None), bool, int, float, str)
_DEPTH_MAX: Final = 16


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


def plain_of(value: Any, depth: int = 0) -> Any:
    """Return *value* as metadata can hold it: nested dicts and lists of plain values.

    What is none of these becomes its text.
    """
    if type(value) in _PLAIN:
        return value
    if depth < _DEPTH_MAX:
        if isinstance(value, Mapping):
            return {str(key): plain_of(part, depth + 1) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain_of(part, depth + 1) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
