"""What changed between two snapshots, tensor by tensor."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import groupby
from math import nan, sqrt
from operator import itemgetter
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from mldb.deferred import dataclass
from mldb.log.index.address import Entry
from mldb.tensors.codec import Descriptor, unpack_descriptor
from mldb.tensors.dtypes import dtype_of
from mldb.tensors.scope import Scope, names_prefix, read_array

DiffKind: TypeAlias = Literal["added", "removed", "changed", "same"]

_AT_ONCE: Final = 1 << 18
"""Elements that are compared at once: two blocks of float64 stay in the cache of a core."""


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor at two moments; what it had not at one of them is None there.

    ``norm`` is the Euclidean norm of the difference, ``relative`` that norm over the norm before,
    ``largest`` the largest absolute difference of an element, ``cosine`` that of the angle between
    the two. They are NaN where either tensor is sparse, holds no numbers of which differences are
    taken, or has another shape. Of a NaN or infinity in the values ``norm`` is NaN.
    """

    name: str
    change: DiffKind
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    lsns: tuple[int | None, int | None]
    norm: float = nan
    relative: float = nan
    cosine: float = nan
    largest: float = nan


def diff_of(
    before: Scope, after: Scope, prefix: str, *, values: bool, same: bool
) -> Iterator[TensorDiff]:
    """Yield the tensors that differ, in the order of their names; with *same* the others, too.

    A tensor is the same when its version is, or its bytes are, by their digest; only what may
    differ is read, one pair of tensors at a time, and only with *values*. Bounded by the two
    largest tensors, of which what is stored raw is mapped, not copied. Raises CorruptError.
    """
    for name, entries in _pairs(before, after, prefix):
        one, two = entries
        kinds = tuple(None if entry is None else unpack_descriptor(entry.attr) for entry in entries)
        change = _change_of(one, two)
        if change == "same" and not same:
            continue
        numbers = (nan, nan, nan, nan)
        if one is not None and two is not None:
            if change == "same":
                numbers = (0.0, 0.0, 1.0, 0.0)
            elif values and _comparable(*kinds):
                arrays = read_array(before, one, name), read_array(after, two, name)
                numbers, equal = _compared(*arrays)
                if equal and kinds[0] == kinds[1]:
                    change = "same"
                    if not same:
                        continue
        yield TensorDiff(
            name,
            change,
            _both(None if kind is None else kind.dtype for kind in kinds),
            _both(None if kind is None else kind.shape for kind in kinds),
            _both(None if entry is None else entry.commit_lsn for entry in entries),
            *numbers,
        )


def _both(items: Iterator[Any]) -> tuple[Any, Any]:
    one, two = items
    return one, two


def _pairs(
    before: Scope, after: Scope, prefix: str
) -> Iterator[tuple[str, tuple[Entry | None, Entry | None]]]:
    """Yield each name of either snapshot with its version in both."""
    space = names_prefix(prefix)

    def side_of(scope: Scope, side: int) -> Iterator[tuple[bytes, int, Entry]]:
        for key, entry in scope.view.live(space, scope.intervals):
            yield key, side, entry

    found = side_of(before, 0), side_of(after, 1)
    for key, group in groupby(heapq.merge(*found, key=itemgetter(0)), key=itemgetter(0)):
        entries: list[Entry | None] = [None, None]
        for _, side, entry in group:
            entries[side] = entry
        yield key[1:].decode(), (entries[0], entries[1])


def _change_of(one: Entry | None, two: Entry | None) -> DiffKind:
    if one is None:
        return "added"
    if two is None:
        return "removed"
    if one.commit_lsn == two.commit_lsn:
        return "same"
    known = any(one.digest)
    return "same" if known and (one.digest, one.attr) == (two.digest, two.attr) else "changed"


def _comparable(one: Descriptor | None, two: Descriptor | None) -> bool:
    return (
        one is not None
        and two is not None
        and one.layout == two.layout == "dense"
        and one.shape == two.shape
        and np.dtype(dtype_of(one.dtype)) != np.bool_
        and np.dtype(dtype_of(two.dtype)) != np.bool_
    )


def _compared(one: Any, two: Any) -> tuple[tuple[float, float, float, float], bool]:
    """Norm, relative norm, cosine and largest difference; and whether all bytes are equal.

    Sums are taken in float64, block by block.
    """
    flat_one, flat_two = np.ravel(one), np.ravel(two)
    wide = np.complex128 if "c" in (flat_one.dtype.kind, flat_two.dtype.kind) else np.float64
    equal = flat_one.dtype == flat_two.dtype
    square = square_one = square_two = inner = largest = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, len(flat_one), _AT_ONCE):
            block_one, block_two = (flat[start : start + _AT_ONCE] for flat in (flat_one, flat_two))
            equal = equal and np.array_equal(block_one.view(np.uint8), block_two.view(np.uint8))
            left, right = block_one.astype(wide), block_two.astype(wide)
            square_one += float(np.vdot(left, left).real)
            square_two += float(np.vdot(right, right).real)
            inner += float(np.vdot(left, right).real)
            step = right - left
            square += float(np.vdot(step, step).real)
            largest = float(np.maximum(largest, np.abs(step).max()))
    norm, before, lengths = sqrt(square), sqrt(square_one), sqrt(square_one) * sqrt(square_two)
    relative = norm / before if before else (nan if norm else 0.0)
    cosine = min(max(inner / lengths, -1.0), 1.0) if lengths else nan
    return (norm, relative, cosine, largest), equal
