"""States of a tensor over the epochs shown, each read and measured once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb import keys
from mldb.errors import MldbError
from mldb.log.index.address import Entry
from mldb.tools.report.facts import NumberColumn
from mldb.tools.report.measures import Measured, distance, measure

if TYPE_CHECKING:
    from mldb.tensors.handle import TensorHandle
    from mldb.tensors.scope import Scope

_SAMPLES_HELD: Final = 64 << 20


@dataclass
class MeasureCache:
    """What was measured before, by the digest of the bytes: for --watch. One thread."""

    states: dict[tuple[bytes, bytes, int], Measured] = field(default_factory=dict)
    moves: dict[tuple[bytes, bytes], float] = field(default_factory=dict)
    held: int = 0

    def keep(self, key: tuple[bytes, bytes, int], found: Measured) -> None:
        """Remember a state; all is forgotten when it becomes too much."""
        self.held += found.sample.nbytes + 400
        if self.held > _SAMPLES_HELD:
            self.states.clear()
            self.moves.clear()
            self.held = found.sample.nbytes + 400
        self.states[key] = found


@dataclass(frozen=True, slots=True)
class SeenTensors:
    """The epochs shown, each with a snapshot of its last commit and the versions that it sees.

    ``advance`` is called with the bytes that were read.
    """

    epochs: list[int]
    scopes: list[Scope]
    entries: list[dict[str, Entry]]
    cache: MeasureCache
    problems: list[str]
    advance: Callable[[int], None]


def entries_seen(scope: Scope, space: bytes) -> dict[str, Entry]:
    """Return the newest entry of every key of a space that exists in *scope*, by its name.

    All at once: a tenth of what a look-up of each costs.
    """
    return {keys.name_of(key): entry for key, entry in scope.view.live(space, scope.intervals)}


def states_of(
    sight: SeenTensors, name: str, sample_size: int
) -> tuple[list[Measured | None], list[float]]:
    """Each state of a tensor, None where there is none, and how far it is from the one before."""
    states: list[Measured | None] = []
    moves: list[float] = []
    last: tuple[bytes, Any] | None = None
    for place in range(len(sight.scopes)):
        state, move, array = None, math.nan, None
        try:
            handle = handle_at(sight, place, name)
            if handle is not None and has_numbers(handle.dtype):
                state, move, array = _state(sight, handle, last, sample_size)
        except MldbError as error:
            text = f"{name}: {error}"
            if text not in sight.problems:
                sight.problems.append(text)
        states.append(state)
        moves.append(move)
        last = array
    return states, moves


def handle_at(sight: SeenTensors, place: int, name: str) -> TensorHandle | None:
    """The version that the epoch at *place* sees; None where the tensor does not exist.

    Raises CorruptError.
    """
    from mldb.tensors.handle import TensorHandle

    entry = sight.entries[place].get(name)
    return None if entry is None else TensorHandle(sight.scopes[place], name, entry)


class _Lazy:
    """The values of one state, read when they are first needed. One thread."""

    def __init__(self, handle: TensorHandle, note: Callable[[int], None]) -> None:
        self._handle = handle
        self._note = note
        self._found: NumberColumn | None = None

    def values(self) -> NumberColumn:
        if self._found is None:
            self._found = plain_values(self._handle)
            self._note(self._handle.nbytes)
        return self._found


def has_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type are numbers: texts, bytes and times have no norm."""
    return dtype.kind not in "SUmMO" and dtype.names is None


def plain_values(handle: TensorHandle) -> NumberColumn:
    """The values of a tensor: all of a dense one, those that are stored of a sparse one."""
    found = handle.numpy()
    if isinstance(found, np.ndarray):
        return found
    values: Any = found.values() if callable(getattr(found, "values", None)) else found.data
    return values if isinstance(values, np.ndarray) else np.asarray(values)


def _state(
    sight: SeenTensors, handle: TensorHandle, last: tuple[bytes, Any] | None, sample_size: int
) -> tuple[Measured, float, tuple[bytes, Any]]:
    """Measure one state, and its distance from the one before."""
    entry, cache = handle._entry, sight.cache
    lazy = _Lazy(handle, sight.advance)
    # A version without a digest is what its name and commit say, as nothing else may be equal.
    own = entry.digest or f"{entry.commit_lsn} {handle.name}".encode("utf-8", "surrogatepass")
    key = own, entry.attr, sample_size
    found = cache.states.get(key)
    if found is None:
        found = measure(lazy.values(), sample_size)
        cache.keep(key, found)
    identity = own + entry.attr
    if last is None:
        return found, math.nan, (identity, lazy)
    pair = last[0], identity
    if last[0] == identity:
        return found, 0.0, last  # the same bytes: what was read of them serves on
    move = cache.moves.get(pair)
    if move is None:
        one, two = last[1].values(), lazy.values()
        move = cache.moves[pair] = distance(one, two) if one.shape == two.shape else math.nan
    return found, move, (identity, lazy)
