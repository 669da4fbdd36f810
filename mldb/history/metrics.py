"""Metrics as curves: columns of NumPy out of the indexes, no point read one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb import keys
from mldb.arrays import Numbers
from mldb.deferred import dataclass
from mldb.errors import CorruptError
from mldb.history.kinds.metrics import HEAD_WORDS, NO_STEP, WORD, names_in, row_words
from mldb.log.index.bulk import AttrColumns
from mldb.log.view import View
from mldb.names import check_name
from mldb.tensors.scope import Scope

_Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class MetricColumns:
    """One curve: its points in the order of their commits, as read-only columns of equal length.

    ``step`` is int64, -1 where none was given; ``epoch`` (int64) is that of the commit; ``time`` is
    datetime64[ns] in UTC, when the point was logged; ``value`` is float64; ``lsn`` (int64) names
    the commit. The arrays are the caller's own: they live as long as they are held.
    """

    step: _Column
    epoch: _Column
    time: _Column
    value: _Column
    lsn: _Column

    def __len__(self) -> int:
        return len(self.value)


_DTYPES: Final = ("<i8", "<i8", "M8[ns]", "<f8", "<i8")


def metric_names(scope: Scope) -> list[str]:
    """Return the names of the metrics that have points in *scope*, in byte order: O(sets).

    Raises CorruptError for a key that nobody can have logged.
    """
    found = itertools.chain.from_iterable(scope.view.live_keys(keys.METRICS, scope.intervals))
    return sorted(set(itertools.chain.from_iterable(map(_names_in, found))))


def metric_columns(scope: Scope, name: str) -> MetricColumns:
    """Return the curve of *name* along the lineage of *scope*; one without points is empty.

    Retention does not thin it: see ``db.log``. Raises InvalidNameError, CorruptError.
    """
    view, wanted = scope.view, check_name(name)
    parts: list[tuple[_Column, ...]] = []
    several = 0
    for key in _keys_with(view, wanted):
        names = _names_in(key)
        before = len(parts)
        parts += [
            _points(view, names, found, names.index(name))
            for found in view.attrs(key, scope.intervals)
        ]
        several += len(parts) > before
    columns = [_joined([part[i] for part in parts], dtype) for i, dtype in enumerate(_DTYPES)]
    if several > 1:
        order = np.lexsort((columns[2], columns[4]))  # by commit, then by time
        columns = [column[order] for column in columns]
    for column in columns:
        column.flags.writeable = False
    return MetricColumns(*columns)


def _keys_with(view: View, name: bytes) -> Iterator[bytes]:
    """Yield the keys that have points of *name*: its own, and those of the sets with it.

    There are few sets, whatever is logged: see ``mldb.write.metric_plans``.
    """
    yield keys.METRICS + name
    inside = keys.NUL + name + keys.NUL
    for key in view.keys(keys.metric_sets_prefix()):
        if inside in key[1:] + keys.NUL:
            yield key


def _names_in(key: bytes) -> list[str]:
    """The names of a key. Raises CorruptError for one that nobody can have logged."""
    try:
        return names_in(key)
    except ValueError as error:
        raise CorruptError(f"metrics have a damaged key: {error}", key=keys.shown(key)) from None


def _points(view: View, names: list[str], found: AttrColumns, place: int) -> tuple[_Column, ...]:
    """Return the columns of the points in some attrs of the key of these names."""
    words = row_words(len(names))
    if (found.sizes % (words * WORD)).any() or not found.sizes.all():
        shown = ", ".join(names)
        raise CorruptError(
            f"points of the metrics {shown[:80]!r} do not have {words * WORD} bytes each", key=shown
        )
    counts = found.sizes // (words * WORD)
    table = np.frombuffer(found.data, "<i8").reshape(-1, words)
    if (table[:, 0] < NO_STEP).any():
        raise CorruptError(f"a point of the metric {names[place]!r} has step {table[:, 0].min()}")
    epochs = _epochs(view, found.lsns) if found.epochs is None else found.epochs
    return (
        table[:, 0],
        np.repeat(epochs, counts),
        table[:, 1].view("M8[ns]"),
        table[:, HEAD_WORDS + place].view("<f8"),
        np.repeat(found.lsns, counts),
    )


def _epochs(view: View, lsns: Numbers) -> Numbers:
    """The epochs of commits that lie in another part than what they stored."""
    rows = [view.commit_at(lsn) for lsn in lsns.tolist()]
    return np.array([0 if row is None else row.epoch for row in rows], np.int64)


def _joined(parts: list[_Column], dtype: str) -> _Column:
    """Return one column of its own memory."""
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
