"""Batches of a pass, and how ranks and workers share them.

A pass is cut into **global batches** 0, 1, 2, ... of ``batch_size`` positions. The cursor of a pass
counts those that are done, and is its whole state: no rank, worker or generator is in it. From a
cursor c on, batches are dealt in turn to the ranks, and those of a rank in turn to its workers, as
a DataLoader asks its workers: step j of rank r of ``world`` is batch c + j * world + r, and worker
j mod ``workers`` makes it. After j steps of all ranks the cursor is c + j * world, and any number
of ranks and workers can go on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import sqrt
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float64s, Numbers
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import settle_numbers
from mldb.lake.order.pass_order import PassOrder, occurrences_at

_AHEAD_ROWS: Final = 1 << 14  # positions computed at once: array operations cost as much for 256


class BatchRows(NamedTuple):
    """One global batch: its number, rows int64 [B], and weights float64 [B] or None.

    ``occurrences`` int64 [B] tell the draws of a row apart where a pass may hold it many times, and
    are None where it cannot: see :func:`occurrences_at`.
    """

    number: int
    rows: Numbers
    weights: Float64s | None
    occurrences: Numbers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One consumer: worker ``worker`` of ``workers`` of rank ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        """Refuse places that do not exist. Raises InvalidTypeError, InvalidValueError."""
        settle_numbers(self)
        for name, of in (("rank", "world"), ("worker", "workers")):
            place, count = getattr(self, name), getattr(self, of)
            if type(place) is int and type(count) is int and 0 <= place < count:
                continue
            for label, value in ((name, place), (of, count)):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise InvalidTypeError(f"{label} is a {type(value).__name__}, not an int")
            if not 0 <= place < count:
                raise InvalidValueError(f"{name}={place} is not one of {of}={count}")

    def deal(self, cursor: int, batches: int, *, even: bool = False) -> range:
        """Return the numbers of this consumer's batches, of those from *cursor* up to *batches*.

        All shards together get each exactly once. With *even* the last ``(batches - cursor) mod
        world`` are left out, so that all ranks make equally many steps and none waits for ever.
        """
        if even:
            batches -= (batches - cursor) % self.world
        return range(
            cursor + self.rank + self.world * self.worker, batches, self.world * self.workers
        )

    def cursor_after(self, cursor: int, steps: int, batches: int) -> int:
        """Return the cursor once every rank has made *steps* steps from *cursor* on."""
        return min(cursor + steps * self.world, batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The batches of one pass. Immutable; any thread; pickles to workers.

    ``drop_last`` leaves out a last batch that is not full.
    """

    order: PassOrder
    batch_size: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        """Refuse a batch size that is none. Raises InvalidTypeError, InvalidValueError."""
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise InvalidTypeError(f"batch_size is a {type(self.batch_size).__name__}, not an int")
        if self.batch_size < 1:
            raise InvalidValueError(f"batch_size={self.batch_size} is below 1")

    def __len__(self) -> int:
        """The number of global batches of the pass."""
        whole, rest = divmod(self.order.length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def rows(self, number: int) -> Numbers:
        """Return the row numbers of a global batch, int64 [B]. Raises InvalidValueError."""
        return self.batch(number).rows

    def weights(self, number: int) -> Float64s | None:
        """Return the weights of a global batch, float64 [B]; None when the order has none."""
        return self.batch(number).weights

    def batch(self, number: int) -> BatchRows:
        """Return one global batch, whatever was read before.

        Raises InvalidTypeError, InvalidValueError.
        """
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise InvalidTypeError(f"the number of a batch is a {type(number).__name__}")
        if not 0 <= number < len(self):
            raise InvalidValueError(f"batch {number} is not one of the {len(self)} of this pass")
        return self._compute([number])[0]

    def read(
        self, cursor: int = 0, shard: Shard | None = None, *, even: bool = False
    ) -> Iterator[BatchRows]:
        """Iterate over the batches of *shard* (default: all) from *cursor* on, in their order.

        The first is computed alone, at any cursor and size, and then several at once. Raises
        InvalidValueError for a cursor outside the pass.
        """
        if not 0 <= cursor <= len(self):
            raise InvalidValueError(f"cursor={cursor} is not in a pass of {len(self)} batches")
        return self._read((shard or Shard()).deal(cursor, len(self), even=even))

    def _read(self, numbers: range) -> Iterator[BatchRows]:
        start, ahead, most = 0, 1, max(1, _AHEAD_ROWS // self.batch_size)
        while start < len(numbers):
            yield from self._compute(numbers[start : start + ahead])
            start, ahead = start + ahead, min(4 * ahead, most)  # the first one comes at once

    def _compute(self, numbers: Sequence[int]) -> list[BatchRows]:
        starts = np.asarray(numbers, np.int64) * self.batch_size
        positions = (starts[:, None] + np.arange(self.batch_size)).reshape(-1)
        # Only the last batch of a pass is short, and it comes last.
        positions = positions[positions < self.order.length]
        rows, weights = self.order.at(positions)
        occurrences = occurrences_at(self.order, positions)
        # All at once, not as they are asked for: between two batches no code of this is in a cache.
        columns = (self._parts(values, len(numbers)) for values in (rows, weights, occurrences))
        return list(map(BatchRows, numbers, *columns))

    def _parts(self, values: npt.NDArray[Any] | None, count: int) -> Iterable[Any]:
        """What each of *count* batches has of the values of all; None where there are none."""
        if values is None:
            return repeat(None)
        return [
            values[start : start + self.batch_size]
            for start in range(0, count * self.batch_size, self.batch_size)
        ]


class Quality(NamedTuple):
    """How well batches are shuffled; 1 and 1 is a perfect permutation.

    ``mix`` is the number of distinct blocks of rows in a batch over that of a uniform shuffle;
    ``spread`` the standard deviation of row numbers in a batch over the uniform one.
    """

    mix: float
    spread: float


def shuffle_quality(batches: Sequence[Numbers], rows: int, *, block_rows: int = 256) -> Quality:
    """Measure *batches* of one size >= 2 out of *rows* rows, in blocks of *block_rows* rows."""
    table = np.stack(batches)
    size = table.shape[1]
    blocks = np.sort(table // block_rows, axis=1)
    distinct = 1 + (np.diff(blocks, axis=1) > 0).sum(axis=1).mean()
    variance = table.var(axis=1, ddof=1).mean()
    uniform = sqrt(rows * (rows + 1) / 12)
    return Quality(
        float(distinct / _distinct_blocks(rows, block_rows, size)), sqrt(variance) / uniform
    )


def _distinct_blocks(rows: int, block_rows: int, size: int) -> float:
    """Return how many blocks a uniform sample without replacement of *size* rows touches."""
    whole, rest = divmod(rows, block_rows)

    def touched(block: int) -> float:
        if rows - block < size:
            return 1.0
        missed = np.log1p(-block / (rows - np.arange(size))).sum()
        return -float(np.expm1(missed))

    return whole * touched(block_rows) + (touched(rest) if rest else 0.0)
