"""A permutation of 0 .. n-1 that is computed where it is read: no start cost, no memory of n.

Up to ``SORTED_MAX`` numbers are sorted by random 64-bit keys: every order is equally likely. Above,
a number is split into two digits (x // b, x % b), and each round adds to one digit, modulo its
base, a hash of the other digit and of a round key. Whatever the hash, that is a bijection of
0 .. a b - 1 (Feistel; Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). The bases
are near the root of n with a b just above n; a result of n or more is sent through again until it
falls below, which hardly ever happens.

Keys come from the counter generator, so an order is the same on every machine and NumPy version,
which ``numpy.random.Generator.permutation`` does not promise. A number costs about 30 ns on one
core, against 18 ns there, where all of them must be made before the first can be read.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidValueError, LimitError
from mldb.log import native
from mldb.noise.draws import Purpose, sampling_words, wide
from mldb.noise.keys import ROW_ID_BITS

SORTED_MAX: Final = 1 << 14
FEISTEL_ROUNDS: Final = 8  # six already pass the tests of statistical quality, three do not
_BASES_TRIED: Final = 2048
WINDOW_BITS: Final = 16  # numbers below it are counted inside a window
WINDOWS_MAX: Final = 1 << (ROW_ID_BITS - WINDOW_BITS)

_CHUNK: Final = 1 << 14  # numbers whose digits and hashes stay in the second-level cache
_MULTIPLIERS: Final = (0x7FEB352D, 0x846CA68B)  # Wellons 2018, "Prospecting for hash functions"

_Digits = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Permutation:
    """A bijection of 0 .. n-1. Immutable; any thread. Made by :func:`permutation`."""

    n: int
    keys: tuple[int, ...] = ()  # one 32-bit key a round; none where there is a table
    bases: tuple[int, int] = (1, 1)
    table: Numbers | None = None
    inverse_table: Numbers | None = None

    def at(self, positions: Numbers) -> Numbers:
        """Return the numbers that stand at *positions*, int64 [n]; positions are below n."""
        return self._map(positions, self.table, forward=True)

    def place(self, numbers: Numbers) -> Numbers:
        """Return the positions at which *numbers* stand: the inverse of :meth:`at`."""
        return self._map(numbers, self.inverse_table, forward=False)

    def _map(self, given: Numbers, table: Numbers | None, *, forward: bool) -> Numbers:
        if table is not None:
            return table[given]
        out = np.empty(len(given), np.int64)
        for start in range(0, len(given), _CHUNK):
            part, into = given[start : start + _CHUNK], out[start : start + _CHUNK]
            if native.twin is None or not native.twin.permute(
                part, into, self.keys, self.bases, self.n, forward
            ):
                into[:] = self._walk(part, forward=forward)
        return out

    def _walk(self, given: Numbers, *, forward: bool) -> Numbers:
        out = self._rounds(given, forward=forward)
        outside = np.flatnonzero(out >= self.n)
        while len(outside):
            again = self._rounds(out[outside], forward=forward)
            out[outside] = again
            outside = outside[again >= self.n]
        return out

    def _rounds(self, given: Numbers, *, forward: bool) -> Numbers:
        high = given // self.bases[1]
        digits = [high.astype(np.uint32), (given - high * self.bases[1]).astype(np.uint32)]
        spare = _Spare(np.empty_like(digits[0]), np.empty_like(digits[0]), np.empty_like(given))
        for number in range(FEISTEL_ROUNDS) if forward else reversed(range(FEISTEL_ROUNDS)):
            changed = number % 2
            base = self.bases[changed]
            _hash(digits[1 - changed], self.keys[number], base, spare)
            _add(digits[changed], base, spare, forward=forward)
        return digits[0].astype(np.int64) * self.bases[1] + digits[1]


class _Spare(NamedTuple):
    """Memory of one call that the rounds write to; fresh memory would take half of their time."""

    hashed: _Digits
    other: _Digits
    wide: Numbers


def _hash(digit: _Digits, key: int, base: int, spare: _Spare) -> None:
    """Put a number below *base* into ``spare.hashed`` for each digit under a key."""
    mixed = spare.hashed
    np.add(digit, np.uint32(key), out=mixed)  # modulo 2^32, as what follows
    mixed *= np.uint32(_MULTIPLIERS[0])
    np.right_shift(mixed, np.uint32(15), out=spare.other)
    mixed ^= spare.other
    mixed *= np.uint32(_MULTIPLIERS[1])
    np.multiply(
        mixed, np.int64(base), out=spare.wide
    )  # below 2^57: the high word is below the base
    np.right_shift(spare.wide, 32, out=spare.wide)
    np.copyto(mixed, spare.wide, casting="unsafe")


def _add(digit: _Digits, base: int, spare: _Spare, *, forward: bool) -> None:
    """Add the hash to *digit* (or take it off) modulo *base*: the smaller of two wrapped sums."""
    if forward:
        digit += spare.hashed
        np.subtract(digit, np.uint32(base), out=spare.other)
    else:
        digit -= spare.hashed
        np.add(digit, np.uint32(base), out=spare.other)
    np.minimum(digit, spare.other, out=digit)


def _bases(n: int) -> tuple[int, int]:
    """Return bases a >= b near the root of n, with a b >= n as small as a search finds."""
    root = isqrt(n - 1) + 1
    b = np.arange(max(root // 2, root - _BASES_TRIED) + 1, root + 1)
    a = -(-n // b)
    best = int(np.argmin(a * b))
    return int(a[best]), int(b[best])


@lru_cache(maxsize=32)
def permutation(
    n: int, *, seed: int, pass_number: int, purpose: Purpose = Purpose.ROWS, window: int = 0
) -> Permutation:
    """Return the permutation of 0 .. n-1 of this seed, pass, purpose and window number.

    *purpose* is ROWS, STRATA, WINDOW, CHOSEN or LINE; those of other purposes have nothing in
    common. Raises InvalidValueError, LimitError.
    """
    if n < 0:
        raise InvalidValueError(f"n={n} is negative")
    if n >> ROW_ID_BITS or not 0 <= window < WINDOWS_MAX:
        raise LimitError(f"n={n} rows in window {window} are more than a counter can number")
    base = window << WINDOW_BITS
    if n <= SORTED_MAX:
        numbers = np.arange(base, base + n, dtype=np.uint64)
        raw = sampling_words(seed, pass_number, Purpose(purpose + 1), numbers)
        return _tabled(n, np.argsort(wide(raw), kind="stable"))
    numbers = np.arange(base, base + -(-FEISTEL_ROUNDS // 4), dtype=np.uint64)
    raw = sampling_words(seed, pass_number, purpose, numbers)
    keys = tuple(int(word) for word in raw.reshape(-1)[:FEISTEL_ROUNDS])
    return Permutation(n, keys, _bases(n))


def _tabled(n: int, table: Numbers) -> Permutation:
    inverse = np.empty(n, np.int64)
    inverse[table] = np.arange(n)
    return Permutation(n, table=table, inverse_table=inverse)
