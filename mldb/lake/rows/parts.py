"""What stands behind the block of a merge: its sources and stress, read without the rows."""

from __future__ import annotations

import numpy as np

from mldb.arrays import Numbers
from mldb.history.merged import MergeInfo
from mldb.log.index.address import Entry
from mldb.tensors.scope import Scope


def merge_part(
    scope: Scope,
    key: bytes,
    entry: Entry,
    merge: MergeInfo,
    name: str,
    lake: str,
    span: tuple[int, int] | None = None,
) -> Numbers:
    """Return values *span* of a column behind the block, int64; all by default.

    *name* is that of the column, *lake* that of the lake for messages. Raises
    CorruptError.
    """
    place = merge.part(name)
    low, high = (0, place.shape[0]) if span is None else span
    width = np.dtype(place.dtype).itemsize
    start, stop = place.offset + low * width, place.offset + high * width
    if start == stop:
        return np.empty(0, np.int64)
    data = scope.source.door.part(scope.view, key, entry, entry.length, start, stop, lake)
    return np.frombuffer(data, place.dtype).astype(np.int64)
