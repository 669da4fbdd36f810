"""Work on columns in steps of a few milliseconds, for who has others to let in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

import numpy as np

Column: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""One column of an index."""

Steps = Generator[None, None, dict[str, Column]]
"""Work in steps; what it returns are columns by name."""

_T = TypeVar("_T")


def finish(steps: Generator[None, None, _T]) -> _T:
    """Do all the steps at once, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: _T = stop.value
            return result
