"""Merge a few sorted lists of keys by records of equal width, which NumPy can sort.

A record is the bytes of a key behind what all of them begin with, padded by NULs, and its length.
Where two padded keys are equal, one is the other with NULs behind it, and the shorter one stands
first: so records are in the order of keys as bytes. The width is bounded, since few keys may be
much longer than the others; those that are longer have the same length in their record, and where
they agree in all of it they are settled by Python, as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Final, NamedTuple

import numpy as np

from mldb.deferred import dataclass
from mldb.log.directory.places import run_places
from mldb.log.index.merge_parts import sums_of
from mldb.log.index.steps import Column

_WIDTH_MAX: Final = 254
"""Bytes of a key in its record: its length, or one more than this, is to be a byte too."""
_FEW: Final = 1 << 9
"""So many keys, or more, are merged faster by NumPy than by Python."""
_WIDTH_SPARE: Final = 16
"""A record is as wide as two keys of the mean length and this, at most."""


@dataclass(frozen=True, slots=True)
class KeyList:
    """Keys in ascending order, each once, one after another. Immutable, any thread.

    ``offsets`` are where they start in ``heap`` and where the last one ends, uint64 (keys + 1,);
    ``heap`` is uint8. The first one need not start at 0.
    """

    offsets: Column
    heap: Column

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        """The key of this number, from 0 on."""
        low, high = self.offsets[number : number + 2].tolist()
        return self.heap[low:high].tobytes()

    def part(self, low: int, high: int) -> KeyList:
        """These of its keys, at least one; no copy."""
        return KeyList(self.offsets[low : high + 1], self.heap)

    def items(self) -> list[bytes]:
        """All of them."""
        heap = self.heap.data
        return [bytes(heap[low:high]) for low, high in pairwise(self.offsets.tolist())]

    def sizes(self) -> Column:
        """How many bytes each has, int64."""
        return (self.offsets[1:] - self.offsets[:-1]).astype("<i8")

    def data(self) -> Column:
        """The bytes of its keys, at least one; no copy."""
        return self.heap[int(self.offsets[0]) : int(self.offsets[-1])]


class MergedList(NamedTuple):
    """The keys of several lists, each once, by their sizes, int64, and their bytes, uint8.

    ``numbers`` are those of all keys of the first list, then of the second one and so on, int64.
    """

    sizes: Column
    heap: Column
    numbers: Column


def merge_lists(lists: Sequence[KeyList]) -> MergedList:
    """Merge at least one list, none of them empty.

    Takes some ten times the memory of the keys and of a number for each.
    """
    if sum(map(len, lists)) < _FEW:
        return _merge_few(lists)
    sizes = np.concatenate([each.sizes() for each in lists])
    if len(lists) == 1:
        return MergedList(sizes, lists[0].data(), np.arange(len(sizes)))
    heap = np.concatenate([each.data() for each in lists])
    starts = sums_of(sizes)[:-1]
    records = _records(sizes, starts, heap, _common(lists))
    order = np.argsort(records, kind="stable")
    ordered = records[order]
    is_new = np.ones(len(order), "?")
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    _settle_long(ordered, order, is_new, sizes, starts, heap)
    numbers = np.empty(len(order), "<i8")
    numbers[order] = np.cumsum(is_new) - 1
    chosen = order[is_new]
    places = run_places(starts[chosen], sizes[chosen])
    return MergedList(sizes[chosen], heap[places], numbers)


def _merge_few(lists: Sequence[KeyList]) -> MergedList:
    """The same by Python, which is done before NumPy has begun."""
    items = list(chain.from_iterable(each.items() for each in lists))
    keys = sorted(set(items))
    number = dict(zip(keys, range(len(keys)), strict=True))
    sizes = np.array([len(key) for key in keys], "<i8")
    heap = np.frombuffer(b"".join(keys), "u1")
    return MergedList(sizes, heap, np.array([number[item] for item in items], "<i8"))


def _common(lists: Sequence[KeyList]) -> int:
    """How many bytes all keys begin with: as many as the least one and the greatest one share."""
    ends = [each[place] for each in lists for place in (0, len(each) - 1)]
    least, greatest = min(ends), max(ends)
    differing = (at for at, byte in enumerate(least) if greatest[at] != byte)
    return next(differing, len(least))


def _records(sizes: Column, starts: Column, heap: Column, skipped: int) -> Column:
    """The record of every key without its first bytes: fixed bytes, which compare as they stand."""
    rest = sizes - skipped
    width = min(int(rest.max()), _WIDTH_MAX, 2 * int(rest.mean()) + _WIDTH_SPARE)
    lengths = np.minimum(rest, width + 1)
    kept = np.tri(width + 2, width + 1, -1, "u1") * np.uint8(255)
    padded = np.concatenate((heap, np.zeros(width + 1, "u1")))
    # The bytes from each key on, whatever they are; then those that are not of the key go.
    windows = np.ndarray(len(heap) + 1, f"S{width + 1}", padded.data, strides=(1,))
    records: Column = windows[starts + skipped]
    table = records.view("u1").reshape(len(sizes), width + 1)
    table &= kept[lengths]
    table[:, width] = lengths
    return records


def _settle_long(
    ordered: Column, order: Column, is_new: Column, sizes: Column, starts: Column, heap: Column
) -> None:
    """Order keys that are longer than their records and agree in these, and find equal ones."""
    width = ordered.dtype.itemsize - 1
    long = ordered.view("u1").reshape(-1, width + 1)[:, width] > width
    tied = np.flatnonzero(long & ~is_new)
    if not len(tied):
        return
    breaks = np.flatnonzero(np.diff(tied) != 1)
    firsts = tied[np.concatenate(([0], breaks + 1))] - 1
    lasts = tied[np.concatenate((breaks, [len(tied) - 1]))]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        places = order[first : last + 1]
        spans = np.stack((starts[places], starts[places] + sizes[places]), axis=1).tolist()
        keys = [heap[low:high].tobytes() for low, high in spans]
        by_key = sorted(range(len(keys)), key=keys.__getitem__)
        order[first : last + 1] = places[by_key]
        for at, (before, key) in enumerate(pairwise(by_key), first + 1):
            is_new[at] = keys[before] != keys[key]
