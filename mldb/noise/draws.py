"""Random numbers of sampling: pure functions of seed, pass, purpose and a row or position.

They come from the counter generator of the augmentations (``mldb.noise.philox``) at a step that no
chain reaches, so no counter serves both. Below that step the block number tells apart what a number
is for. Any of them is computed without those before it, which makes a resume free of replay.

Layout, kept for as long as ``philox.LAYOUT_VERSION`` stays 2: ``SAMPLING_STEP``, the blocks of
``Purpose``, and the row field holding a row id, a position in the pass or a key number.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.noise.keys import ROW_ID_BITS, STEPS_MAX, Keys
from mldb.noise.philox import Words, words

SAMPLING_STEP: Final = STEPS_MAX
"""Chains of the direct form draw at steps 0 .. STEPS_MAX - 1; the other form sets the top bit."""

SEED_BITS: Final = 64
PASS_BITS: Final = 32
_CHUNK: Final = 8192  # the generator's temporaries then stay in the second-level cache


class Purpose(IntEnum):
    """What a number is for: the first block it uses. The row field is named behind each."""

    DRAW = 0x0000  # one draw with replacement; position in the pass
    RANK = 0x0001  # the rank of a row in bottom-k; row id
    START = 0x0002  # where systematic sampling starts; 0
    ROWS = 0x0010  # round keys of a permutation of rows; 4 * key number
    SORT_ROWS = 0x0011  # sort keys of a small one; position
    STRATA = 0x0012  # the same of strata
    SORT_STRATA = 0x0013
    WINDOW = 0x0014  # round keys inside a window; window << 16 | key number
    SORT_WINDOW = 0x0015  # sort keys; window << 16 | position
    CHOSEN = 0x0016  # the order of a sample without replacement
    SORT_CHOSEN = 0x0017
    LINE = 0x0018  # the order in which systematic sampling lines rows up
    SORT_LINE = 0x0019
    WALK = 0x0100  # hops of a walk, four to a block; row id and augmentation number


def sampling_words(
    seed: int, pass_number: int, purpose: Purpose, numbers: npt.NDArray[np.uint64]
) -> Words:
    """Return four random words for each of *numbers* (u64 [n], below 2^48), u32 [n, 4].

    Raises InvalidValueError for a seed or pass number that does not fit its bits.
    """
    check_seed(seed, pass_number)
    out = np.empty((len(numbers), 4), np.uint32)
    for start in range(0, len(numbers), _CHUNK):
        rows = numbers[start : start + _CHUNK]
        keys = Keys(int(seed), int(pass_number), rows, np.zeros(len(rows), np.uint16))
        out[start : start + _CHUNK] = words(keys, SAMPLING_STEP, 1, first=purpose)[:, 0]
    return out


def check_seed(seed: int, pass_number: int) -> None:
    """Refuse what the counter cannot hold. Raises InvalidTypeError, InvalidValueError."""
    for name, value, bits in (("seed", seed, SEED_BITS), ("pass_number", pass_number, PASS_BITS)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise InvalidTypeError(f"{name} is a {type(value).__name__}, not an int")
        if not 0 <= value < 1 << bits:
            raise InvalidValueError(f"{name}={value} does not fit in {bits} bits without sign")


def is_plain_seed(seed: object, pass_number: object) -> bool:
    """Whether both are Python's own whole numbers that :func:`check_seed` takes."""
    if type(seed) is not int or type(pass_number) is not int:
        return False
    return not (seed >> SEED_BITS or pass_number >> PASS_BITS)


def check_numbers(name: str, numbers: npt.NDArray[np.uint64]) -> None:
    """Refuse row ids and positions that the counter cannot hold. Raises InvalidValueError."""
    if len(numbers) and int(numbers.max()) >> ROW_ID_BITS:
        raise InvalidValueError(
            f"{name} holds {int(numbers.max())}; numbers of rows are below 2^{ROW_ID_BITS}"
        )


def wide(raw: Words, first: int = 0) -> npt.NDArray[np.uint64]:
    """Join words *first* and *first* + 1 of u32 [n, 4] to 64-bit words, u64 [n]."""
    return raw[:, first].astype(np.uint64) << np.uint64(32) | raw[:, first + 1]


def wide_uniforms(raw: Words, first: int = 0) -> Float64s:
    """Return float64 uniforms in (0, 1) from words *first* and *first* + 1 of u32 [n, 4].

    52 bits and a half: exact, and never 0 or 1. One bit more would round up to 1.
    """
    return ((wide(raw, first) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
