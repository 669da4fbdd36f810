"""The types of arrays that several modules speak of, under one name each."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float32s: TypeAlias = npt.NDArray[np.float32]
"""Rows [n, d] as a lake holds them, or one such number for each row."""

Float64s: TypeAlias = npt.NDArray[np.float64]

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
"""Of any width."""

Bools: TypeAlias = npt.NDArray[np.bool_]

Numbers: TypeAlias = npt.NDArray[np.int64]
"""Row numbers, ids, labels, commits: whole numbers of which there are many."""
