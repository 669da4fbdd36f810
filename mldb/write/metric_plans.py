"""From what a caller logs to rows of points: names and values checked, and which keys they go to.

The metrics of one call that were logged together before share a key, so that a call is one entry.
A store has few such sets: what comes behind SETS_MAX of them is stored under a key for each name.
So a curve is found under its own name and among few sets, however many names there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import numpy as np

from mldb import keys
from mldb.arrays import refuse_masks
from mldb.deferred import NamedTuple
from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.history.kinds.changes import KeyChange
from mldb.history.kinds.metrics import NO_STEP, metrics_logged, row_struct
from mldb.log import format as fmt
from mldb.log.view import View
from mldb.names import check_name

SETS_MAX: Final = 256
_PLANS_MAX: Final = 4096
_STEP_MAX: Final = (1 << 63) - 1
_REALS: Final = (bool, int, float, np.bool_, np.integer, np.floating)

PackedRows = tuple[tuple[bytes, bytes], ...]
"""Keys, each with one row."""


class _Part(NamedTuple):
    """What of a call goes to one key: how its row is packed, and which values, None for all."""

    key: bytes
    pack: Callable[..., bytes]
    taken: Callable[[list[float]], Iterable[float]] | None


class MetricPlans:
    """Where the metrics of calls go, by the names of each call. Any thread; takes no lock.

    ``head`` gives the newest view. What is remembered is bounded, and two threads that learn the
    same at once do so twice.
    """

    def __init__(self, head: Callable[[], View]) -> None:
        self._head = head
        self._plans: dict[tuple[str, ...], tuple[_Part, ...]] = {}
        self._sets: set[bytes] | None = None

    @property
    def sets(self) -> int:
        """How many sets of names are known to have a key of their own."""
        return len(self._sets or ())

    def rows(self, values: Mapping[str, Any], step: int | None, time: int) -> PackedRows:
        """Return the rows of one call, made at *time*.

        Raises InvalidTypeError, InvalidNameError, InvalidValueError, LimitError that name the
        metric.
        """
        if type(values) is not dict:
            values = _as_dict(values)
        numbers = [
            value if type(value) is float else _as_float(name, value)
            for name, value in values.items()
        ]
        if step is None:
            step = NO_STEP
        elif type(step) is not int or not 0 <= step <= _STEP_MAX:
            step = _checked_step(step)
        try:
            parts = self._plans[tuple(values)]
        except KeyError:
            parts = self._plan(tuple(values))
        if len(parts) == 1:
            key, pack, taken = parts[0]
            return ((key, pack(step, time, *(taken(numbers) if taken else numbers))),)
        return tuple(
            (key, pack(step, time, *(taken(numbers) if taken else numbers)))
            for key, pack, taken in parts
        )

    def _plan(self, names: tuple[str, ...]) -> tuple[_Part, ...]:
        if not names:
            raise InvalidValueError("no metrics were given, as in db.log({'loss': 0.3})")
        places = {check_name(name): place for place, name in enumerate(names)}
        parts = []
        for group in _groups(sorted(places)):
            if len(group) > 1 and not self._is_set(keys.metrics_key(group)):
                parts += [_part([name], places) for name in group]
            else:
                parts.append(_part(group, places))
        if len(self._plans) >= _PLANS_MAX:
            self._plans = {}
        plan = self._plans[names] = tuple(parts)
        return plan

    def _is_set(self, key: bytes) -> bool:
        """Whether a set of names has a key of its own, or is one of the first to come."""
        if self._sets is None:
            self._sets = set(islice(self._head().keys(keys.metric_sets_prefix()), SETS_MAX))
        if key not in self._sets and len(self._sets) < SETS_MAX:
            self._sets.add(key)
        return key in self._sets


def _groups(names: list[bytes]) -> list[list[bytes]]:
    """Cut names, which ascend, into groups that one key can hold; the same for the same names."""
    groups: list[list[bytes]] = [[]]
    room = fmt.KEY_BYTES_MAX - len(keys.metric_sets_prefix())
    for name in names:
        if room < len(name):
            groups.append([])
            room = fmt.KEY_BYTES_MAX - len(keys.metric_sets_prefix())
        groups[-1].append(name)
        room -= len(name) + 1
    return groups


def _part(names: list[bytes], places: Mapping[bytes, int]) -> _Part:
    order = [places[name] for name in names]
    taken: Callable[[list[float]], Any] | None = None
    if order == list(range(len(places))):
        pass
    elif len(order) == 1:
        taken = itemgetter(slice(order[0], order[0] + 1))
    else:
        taken = itemgetter(*order)
    return _Part(keys.metrics_key(names), row_struct(len(names)).pack, taken)


class MetricRows:
    """Rows that are committed together, by key, in the order in which they came. For one thread."""

    def __init__(self) -> None:
        self._rows: dict[bytes, list[bytes]] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._rows)

    def add(self, rows: PackedRows) -> bool:
        """Take the rows of one call; False, and nothing is taken, when a key has no room left."""
        table = self._rows
        if len(rows) == 1:  # nearly always
            key, row = rows[0]
            found = table.get(key)
            if found is None:
                table[key] = [row]
            elif (len(found) + 1) * len(row) > fmt.ATTR_BYTES_MAX:
                return False
            else:
                found.append(row)
            return True
        for key, row in rows:
            had = table.get(key)
            if had is not None and (len(had) + 1) * len(row) > fmt.ATTR_BYTES_MAX:
                return False
        for key, row in rows:
            table.setdefault(key, []).append(row)
        return True

    def changes(self) -> list[KeyChange]:
        """Return what is to be stored: one entry for each key."""
        return [metrics_logged(key, b"".join(rows)) for key, rows in self._rows.items()]


# --- what users give ------------------------------------------------------------------------------


def _as_dict(values: object) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InvalidTypeError(
            f"metrics are a {type(values).__name__}; give a dict of numbers by name, as in "
            "{'loss': 0.3}. Nothing was logged."
        )
    return dict(values)


def _as_float(name: str, value: Any) -> float:
    """Return a value as float64; NaN and infinities are values. Raises InvalidTypeError and others.

    Taken are numbers of Python and NumPy, and what has one number as an array has it: no axes, and
    ``item()``. That is how torch, JAX and others give theirs, from any device.
    """
    check_name(name)
    if not isinstance(value, _REALS):
        value = _item(name, value)
    if isinstance(value, np.integer):
        value = int(value)
    try:
        found = float(value)
    except OverflowError:
        found = float("inf")
    if isinstance(value, int) and found != value:
        raise InvalidValueError(
            f"metric {name!r} is the integer {value!r:.40}, which float64 does not have: integers "
            "are exact up to 2**53. Give float(value) to have it rounded. Nothing was logged."
        )
    return found


def _item(name: str, value: Any) -> Any:
    shape = getattr(value, "shape", None)
    item = getattr(value, "item", None)
    if shape is None or item is None:
        raise InvalidTypeError(
            f"metric {name!r} is a {type(value).__name__}, not a number. Nothing was logged."
        )
    if len(shape):
        raise InvalidTypeError(
            f"metric {name!r} is a {type(value).__name__} of shape {tuple(shape)}; log one number, "
            "as value.mean() or value.item(). Nothing was logged."
        )
    refuse_masks(value, f"metric {name!r}", "Log a number. Nothing was logged.")
    try:
        found = item()
    except Exception as error:
        raise InvalidValueError(
            f"metric {name!r}, a {type(value).__name__}, does not tell its number: {error!s:.200} "
            "Nothing was logged."
        ) from error
    is_time = getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")
    if isinstance(found, _REALS) and not is_time:
        return found
    raise InvalidTypeError(
        f"metric {name!r} is a {type(value).__name__} of {type(found).__name__}, not a real "
        "number. Nothing was logged."
    )


def _checked_step(step: object) -> int:
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise InvalidTypeError(f"step is a {type(step).__name__}, not an int. Nothing was logged.")
    found = int(step)
    if not 0 <= found <= _STEP_MAX:
        raise LimitError(f"step {found} is outside 0 .. 2**63 - 1. Nothing was logged.")
    return found
