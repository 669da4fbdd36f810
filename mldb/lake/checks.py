"""What settings refuse: values that cannot be meant, by the name of their field."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import integer


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is none of *choices*, a Literal. Raises InvalidValueError."""
    allowed = get_args(choices)
    if value not in allowed:
        raise InvalidValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def check_count(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number from *low* to *high*.

    Raises InvalidTypeError, InvalidValueError.
    """
    if not low <= integer(name, value) <= high:
        raise InvalidValueError(f"{name}={value} is outside {low} .. {high}")


def check_number(name: str, value: object) -> None:
    """Refuse what is no real number. Raises InvalidTypeError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}, not a number")


def check_share(name: str, value: Any, most: float = 1.0) -> None:
    """Refuse what is no number from 0 to *most*. Raises InvalidTypeError, InvalidValueError."""
    check_number(name, value)
    if not 0 <= value <= most:  # NaN is not
        raise InvalidValueError(f"{name}={value} is not between 0 and {most:g}")
