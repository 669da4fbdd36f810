"""Parameters over epochs: which epochs and tensors are looked at, and how they group to layers.

Every state that is shown is read once, tensor after tensor, so that no more than two states of one
tensor are held. States with the same bytes are measured once. Where there are more epochs than fit,
every second, fifth, tenth ... is shown, and the last; a store that grows keeps its epochs, so that
what was measured before is known (:class:`MeasureCache`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.errors import MldbError, VersionGoneError
from mldb.log.index.address import Lsn
from mldb.tools.cli.progress import Advance
from mldb.tools.report.facts import LayerFacts, NumberColumn, ParameterFacts, TensorFacts
from mldb.tools.report.layers import grouped_by_layer
from mldb.tools.report.measures import Measured, distance, histogram_columns, measure

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.query.surface import Snapshot
    from mldb.tensors.handle import TensorHandle
    from mldb.tensors.scope import Scope

EPOCHS_SHOWN: Final = 48
TENSORS_DRAWN: Final = 48
READ_BUDGET: Final = 6 << 30
"""Bytes after which fewer epochs are shown; two are always read."""
_MEASURES_MOST: Final = 60_000
_LAYERS_SHOWN: Final = 60
_BINS: Final = 40
_SAMPLE_MOST, _SAMPLE_LEAST = 4096, 256
_SAMPLE_OF_LAYER: Final = 65_536
_SAMPLES_HELD: Final = 64 << 20
_STEPS: Final = (1, 2, 5)


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
class _Sight:
    """The epochs shown, each with a snapshot of its last commit, and what reading them notes."""

    epochs: list[int]
    scopes: list[Scope]
    cache: MeasureCache
    problems: list[str]
    advance: Callable[[int], None]


def chosen_epochs(epochs: NumberColumn, most: int) -> list[int]:
    """Return at most *most* + 1 of the ascending *epochs*: evenly, the first and last among them.

    Of a list that grows, those chosen before stay until every second of them goes.
    """
    if len(epochs) <= most:
        return [int(epoch) for epoch in epochs]
    stride = next(
        step * 10**power
        for power in range(19)
        for step in _STEPS
        if -(-len(epochs) // (step * 10**power)) <= most
    )
    found = epochs[::stride]
    return [int(epoch) for epoch in (*found, *epochs[-1:][int(found[-1] == epochs[-1]) :])]


def gather_parameters(
    db: MLDatabase,
    at: Snapshot,
    epochs: NumberColumn,
    *,
    tensors_drawn: int = TENSORS_DRAWN,
    epochs_shown: int = EPOCHS_SHOWN,
    cache: MeasureCache | None = None,
    progress: Advance | None = None,
) -> ParameterFacts:
    """Measure the tensors that exist at *at*, over the *epochs* (ascending) that lead to it.

    What cannot be read is named in ``problems``, and missing in the curves. Raises CorruptError
    where the index itself is damaged.
    """
    names = at.names()
    sizes = _sizes(at, names)
    nbytes = sum(size[1] for size in sizes.values())
    most = min(epochs_shown, _MEASURES_MOST // max(len(names), 1), READ_BUDGET // max(nbytes, 1))
    wanted = chosen_epochs(epochs, max(most, 1))
    drawn = sorted(names, key=lambda name: -sizes[name][1])[:tensors_drawn]
    problems: list[str] = []
    done = [0, 0]
    with ExitStack() as stack:
        found = list(_snapshots(db, at, wanted, stack, problems))
        total = nbytes * len(found)

        def advance(count: int) -> None:
            done[0] += count
            done[1] += count
            if progress is not None:
                progress(min(done[0], total), total)

        scopes = [snapshot._scope() for _, snapshot in found]
        sight = _Sight(
            [epoch for epoch, _ in found], scopes, cache or MeasureCache(), problems, advance
        )
        groups = grouped_by_layer(at, names, sizes, _LAYERS_SHOWN)
        layers = [_layer(sight, *group, sizes, frozenset(drawn)) for group in groups]
    return ParameterFacts(
        epochs=sight.epochs,
        epochs_in_all=len(epochs),
        layers=layers,
        tensors=len(names),
        size=sum(size[0] for size in sizes.values()),
        nbytes=nbytes,
        read_bytes=done[1],
        problems=tuple(problems),
        is_sampled=len(wanted) < len(epochs),
    )


def _sizes(at: Snapshot, names: list[str]) -> dict[str, tuple[int, int]]:
    """Elements and decoded bytes of each name; one that is damaged has none."""
    found = {}
    for name in names:
        try:
            handle = at.tensor(name)
            found[name] = math.prod(handle.shape), handle.nbytes
        except MldbError:
            found[name] = 0, 0
    return found


def _snapshots(
    db: MLDatabase, at: Snapshot, epochs: list[int], stack: ExitStack, problems: list[str]
) -> Iterator[tuple[int, Snapshot]]:
    """Yield the snapshots of epochs, as the lineage of *at* leads through them, held open."""
    gone = 0
    for epoch in epochs:
        try:
            commit = at._scope(epoch).commit.lsn
            yield epoch, stack.enter_context(db.at(lsn=Lsn(commit)))
        except VersionGoneError:
            gone += 1
    if gone:
        problems.append(f"{gone} of the epochs chosen were pruned by retention and are left out")


def _layer(
    sight: _Sight,
    name: str,
    tensors: list[str],
    sizes: dict[str, tuple[int, int]],
    drawn: frozenset[str],
) -> LayerFacts:
    """Measure the tensors of a layer and put them together."""
    count = len(sight.epochs)
    sample_size = min(max(_SAMPLE_OF_LAYER // len(tensors), _SAMPLE_LEAST), _SAMPLE_MOST)
    samples: list[list[tuple[NumberColumn, float]]] = [[] for _ in range(count)]
    squares, moved, before = np.zeros(count), np.zeros(count), np.zeros(count)
    any_state = np.zeros(count, np.bool_)
    facts: list[TensorFacts] = []
    for tensor in tensors:
        states, moves = _states(sight, tensor, sample_size)
        for place, state in enumerate(states):
            if state is None:
                continue
            any_state[place] = True
            squares[place] += state.norm**2
            earlier = states[place - 1] if place else None
            if earlier is not None and not math.isnan(moves[place]):
                moved[place] += moves[place] ** 2
                before[place] += earlier.norm**2
            weight = (state.size - state.not_finite) / max(len(state.sample), 1)
            samples[place].append((state.sample, weight))
        if tensor in drawn and any(states):
            facts.append(_tensor_facts(sight, tensor, states, moves))
    edges, histogram = histogram_columns(samples, _BINS)
    norm = np.where(any_state, np.sqrt(squares), np.nan)
    return LayerFacts(
        name=name,
        tensors=facts,
        count=len(tensors),
        size=sum(sizes[tensor][0] for tensor in tensors),
        nbytes=sum(sizes[tensor][1] for tensor in tensors),
        figures={"norm": norm, "ratio": _ratio(moved, before)},
        edges=edges,
        histogram=histogram,
    )


def _ratio(moved: NumberColumn, before: NumberColumn) -> NumberColumn:
    """Norm of the step by that of what it left, from sums of squares; NaN where there was none."""
    there = before > 0
    squares: NumberColumn = np.full(len(moved), np.nan)
    np.divide(moved, before, out=squares, where=there)
    return np.asarray(np.sqrt(squares))


def _states(
    sight: _Sight, name: str, sample_size: int
) -> tuple[list[Measured | None], list[float]]:
    """Each state of a tensor, None where there is none, and how far it is from the one before."""
    states: list[Measured | None] = []
    moves: list[float] = []
    last: tuple[bytes, Any] | None = None
    for scope in sight.scopes:
        state, move, array = None, math.nan, None
        try:
            handle = _handle(scope, name)
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


def _handle(scope: Scope, name: str) -> TensorHandle | None:
    from mldb.errors import TensorNotFoundError
    from mldb.tensors.handle import TensorHandle

    try:
        return TensorHandle(scope, name, scope.tensor_entry(name))
    except TensorNotFoundError:
        return None


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
    sight: _Sight, handle: TensorHandle, last: tuple[bytes, Any] | None, sample_size: int
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


def _tensor_facts(
    sight: _Sight, name: str, states: list[Measured | None], moves: list[float]
) -> TensorFacts:
    handle = next(
        found for scope in reversed(sight.scopes) if (found := _handle(scope, name)) is not None
    )
    figures = {
        key: np.array([math.nan if state is None else read(state) for state in states])
        for key, read in _FIGURES.items()
    }
    norms = np.concatenate(([0.0], figures["norm"][:-1]))
    figures["ratio"] = _ratio(np.square(moves), np.square(norms))
    samples = [[] if state is None else [(state.sample, 1.0)] for state in states]
    edges, histogram = histogram_columns(samples, _BINS)
    return TensorFacts(
        name=name,
        shape=handle.shape,
        dtype=handle.dtype.name,
        size=math.prod(handle.shape),
        nbytes=handle.nbytes,
        figures=figures,
        edges=edges,
        histogram=histogram,
    )


_FIGURES: Final[dict[str, Callable[[Measured], float]]] = {
    "norm": lambda state: state.norm,
    "mean": lambda state: state.mean,
    "std": lambda state: state.std,
    "min": lambda state: state.minimum,
    "max": lambda state: state.maximum,
    "zeros": lambda state: state.zeros / max(state.size, 1),
    "not finite": lambda state: state.not_finite / max(state.size, 1),
}
