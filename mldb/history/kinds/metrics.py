"""Metrics: MetricsLogged. An attr is points, row by row, of the names that its key has.

A row is ``<qq`` and one ``<d`` for each name: step (NO_STEP for none), time in nanoseconds since
1970, values in the order of the names. All rows of a key are equally long, so that the attrs of a
curve, one after another, are one array.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from mldb import keys
from mldb.history.kinds import METRICS_LOGGED
from mldb.history.kinds.changes import KeyChange
from mldb.log import format as fmt
from mldb.log.frame import Draft
from mldb.log.index.address import to_time
from mldb.names import check_name

NO_STEP: Final = -1
"""In place of a step that was not given; steps count from 0."""
WORD: Final = 8
HEAD_WORDS: Final = 2
"""Words of a row in front of its values."""


def row_struct(names: int) -> struct.Struct:
    """The layout of a row of so many names."""
    return struct.Struct(f"<qq{names}d")


def row_words(names: int) -> int:
    """How many words of 8 bytes a row of so many names has."""
    return HEAD_WORDS + names


def names_in(key: bytes) -> list[str]:
    """The names of a key that was read. Raises ValueError for one that nobody can have logged."""
    names = keys.metrics_of(key)
    encoded = [check_name(name) for name in names]
    if encoded != sorted(set(encoded)) or key != keys.metrics_key(encoded):
        raise ValueError(f"a key of the metrics {keys.shown(key)[:80]!r}, not in order")
    return names


def metrics_logged(key: bytes, rows: bytes) -> KeyChange:
    """Points of the metrics of *key*: rows one after another, ATTR_BYTES_MAX bytes at most."""
    assert len(rows) <= fmt.ATTR_BYTES_MAX
    return KeyChange(METRICS_LOGGED, key, rows)


def read_metrics_logged(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield values by name, step and moment of each call that logged, in the order of moments.

    What one call logged may lie in several keys; its rows have the same step and moment.
    """
    calls: dict[tuple[int, int, int], dict[str, float]] = {}
    twins: dict[tuple[int, int, str], int] = {}  # where the next twin is looked for
    for draft in drafts:
        names = names_in(draft.key)
        layout = row_struct(len(names))
        if not draft.attr or len(draft.attr) % layout.size:
            raise ValueError(f"{len(draft.attr)} bytes of points of {len(names)} metrics")
        for step, time, *values in layout.iter_unpack(draft.attr):
            if step < NO_STEP:
                raise ValueError(f"a point of step {step}")
            twin = twins.get((time, step, names[0]), 0)  # further calls of the same nanosecond
            while names[0] in calls.get((time, step, twin), ()):
                twin += 1
            twins[time, step, names[0]] = twin + 1
            calls.setdefault((time, step, twin), {}).update(zip(names, values, strict=True))
    for (time, step, _), found in sorted(calls.items(), key=lambda item: item[0][0]):
        yield found, None if step == NO_STEP else step, _moment(time)


def _moment(time: int) -> datetime:
    """Raises ValueError for what no clock says."""
    try:
        return to_time(time)
    except OverflowError:
        raise ValueError(f"a point at {time} ns") from None
