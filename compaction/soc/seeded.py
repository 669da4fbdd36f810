"""Choices by seed and id: the same for a row wherever it stands, on every machine."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import InvalidValueError
from mldb.integers import integer

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_SEED_BITS: Final = 64


def check_mix_seed(seed: object) -> int:
    """Return a seed, a whole number of 64 bits. Raises InvalidTypeError, InvalidValueError."""
    value = integer("seed", seed)
    if not 0 <= value < 1 << _SEED_BITS:
        raise InvalidValueError(f"seed={value} does not fit in {_SEED_BITS} bits without sign")
    return value


def mix(seed: int, turn: int, ids: Numbers) -> npt.NDArray[np.uint64]:
    """Return 64 bits for each id: the finisher of SplitMix64 (Steele, Lea, Flood 2014), twice."""
    with np.errstate(over="ignore"):
        start = _mixed(np.array([seed], np.uint64) + _STEP * np.uint64(turn + 1))
        return _mixed(np.asarray(ids).astype(np.uint64) * _STEP + start)


def seeded_order(seed: int, turn: int, ids: Numbers) -> Numbers:
    """Return a permutation of the places of *ids*; the order of two ids depends on them alone."""
    return np.argsort(mix(seed, turn, ids), kind="stable")


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ words >> np.uint64(30)) * _FIRST
    words = (words ^ words >> np.uint64(27)) * _SECOND
    return words ^ words >> np.uint64(31)
