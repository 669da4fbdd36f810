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
from typing import TYPE_CHECKING, Final

import numpy as np

from mldb import keys
from mldb.errors import MldbError, VersionGoneError
from mldb.log.index.address import Entry, Lsn
from mldb.tensors.codec import unpack_descriptor
from mldb.tools.cli.progress import Advance
from mldb.tools.report.facts import LayerFacts, NumberColumn, ParameterFacts, TensorFacts
from mldb.tools.report.layers import grouped_by_layer
from mldb.tools.report.measures import Measured, histogram_columns
from mldb.tools.report.states import MeasureCache, SeenTensors, entries_seen, handle_at, states_of

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.query.surface import Snapshot

EPOCHS_SHOWN: Final = 48
TENSORS_DRAWN: Final = 48
READ_BUDGET: Final = 6 << 30
"""Bytes after which fewer epochs are shown; two are always read."""
MEASURED_MOST: Final = 20_000
"""Tensors that are read, the largest first; the others are only counted."""
_MEASURES_MOST: Final = 80_000
_LAYERS_SHOWN: Final = 60
_BINS: Final = 40
_SAMPLE_MOST, _SAMPLE_LEAST = 4096, 256
_SAMPLE_OF_LAYER: Final = 65_536
_STEPS: Final = (1, 2, 5)


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
    now = at._scope()
    sizes = _sizes(entries_seen(now, keys.TENSORS))
    order = sorted(sizes, key=lambda name: -sizes[name][1])
    nbytes = sum(size[1] for size in sizes.values())
    count = max(min(len(order), MEASURED_MOST), 1)
    most = min(epochs_shown, _MEASURES_MOST // count, READ_BUDGET // max(nbytes, 1))
    wanted = chosen_epochs(epochs, max(most, 1))
    groups = grouped_by_layer(entries_seen(now, keys.METADATA), sizes, _LAYERS_SHOWN)
    chosen = frozenset(order[:tensors_drawn]), frozenset(order[:MEASURED_MOST])
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
        sight = SeenTensors(
            [epoch for epoch, _ in found],
            scopes,
            [entries_seen(scope, keys.TENSORS) for scope in scopes],
            cache or MeasureCache(),
            problems,
            advance,
        )
        layers = [_layer(sight, *group, sizes, *chosen) for group in groups]
    return ParameterFacts(
        epochs=sight.epochs,
        epochs_in_all=len(epochs),
        layers=layers,
        tensors=len(sizes),
        measured=min(len(sizes), MEASURED_MOST),
        size=sum(size[0] for size in sizes.values()),
        nbytes=nbytes,
        read_bytes=done[1],
        problems=tuple(problems),
        is_sampled=len(wanted) < len(epochs),
    )


def _sizes(entries: dict[str, Entry]) -> dict[str, tuple[int, int]]:
    """Elements and decoded bytes of each name; one whose description is damaged has none."""
    known: dict[bytes, tuple[int, int]] = {}
    for entry in entries.values():
        if entry.attr not in known:
            try:
                what = unpack_descriptor(entry.attr)
                known[entry.attr] = math.prod(what.shape), what.nbytes
            except MldbError:
                known[entry.attr] = 0, 0
    return {name: known[entry.attr] for name, entry in entries.items()}


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
    sight: SeenTensors,
    name: str,
    tensors: list[str],
    sizes: dict[str, tuple[int, int]],
    drawn: frozenset[str],
    measured: frozenset[str],
) -> LayerFacts:
    """Measure the tensors of a layer and put them together."""
    count = len(sight.epochs)
    sample_size = min(max(_SAMPLE_OF_LAYER // len(tensors), _SAMPLE_LEAST), _SAMPLE_MOST)
    samples: list[list[tuple[NumberColumn, float]]] = [[] for _ in range(count)]
    squares, moved, before = np.zeros(count), np.zeros(count), np.zeros(count)
    any_state = np.zeros(count, np.bool_)
    facts: list[TensorFacts] = []
    for tensor in filter(measured.__contains__, tensors):
        states, moves = states_of(sight, tensor, sample_size)
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


def _tensor_facts(
    sight: SeenTensors, name: str, states: list[Measured | None], moves: list[float]
) -> TensorFacts:
    last = max(place for place, state in enumerate(states) if state is not None)
    handle = handle_at(sight, last, name)
    assert handle is not None, "a state was read there"
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
