"""Whole numbers as users give them: of Python or of NumPy, the same to every option.

What comes out of an array or a configuration is often a NumPy integer. From here on it is an
``int``, so that what is stored, sent to a process or written as JSON does not depend on that.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Final

from mldb.deferred import field_names
from mldb.errors import InvalidTypeError, InvalidValueError

_SETTLED: Final = frozenset({int, float, str, bool, type(None)})
_fields: Final[dict[type, tuple[str, ...]]] = {}


def integer(name: str, value: object) -> int:
    """Return *value* as an int. Raises InvalidTypeError for a bool and for what is no integer."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}, not an int")
    return int(value)


def seconds(name: str, value: object, most: float) -> float:
    """Return a number of seconds as a float. Raises InvalidTypeError, InvalidValueError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}, not a number of seconds")
    found = float(value)
    if not 0 <= found <= most:  # NaN is not
        raise InvalidValueError(f"{name}={found!r} is not a number of seconds up to {most}")
    return found


def settle_numbers(settings: Any) -> None:
    """Turn the NumPy numbers among the fields of a frozen dataclass into those of Python.

    Called first in ``__post_init__``. Everything else is left for the checks behind it.
    """
    for name in _names(type(settings)):
        value = getattr(settings, name)
        if type(value) in _SETTLED:
            continue
        if isinstance(value, Integral):
            object.__setattr__(settings, name, int(value))
        elif isinstance(value, Real):
            object.__setattr__(settings, name, float(value))


def _names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass; looking them up takes longer than a stream's other checks."""
    found = _fields.get(kind)
    if found is None:
        found = _fields[kind] = field_names(kind)
    return found
