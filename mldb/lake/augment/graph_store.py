"""The neighbour graph of a lake, and the labels around its rows: kept, grown, saved as hints.

A graph is made once for a state of a lake. It is kept in the handle's bounded cache and saved by a
handle that may write; another commit's is made of the nearest earlier one, by what came and went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from mldb.arrays import Float32s, Numbers
from mldb.lake.rows.chain import Size
from mldb.lake.rows.live import Rows
from mldb.log.hints import load_hint_bytes, save_hint
from mldb.log.index.lineage import is_visible
from mldb.sphere.graph import BANDWIDTH_NEIGHBOURS, Graph, build_graph, extend_graph, reduce_graph
from mldb.sphere.neighbours import Firsts

GRAPH_NEIGHBOURS: Final = BANDWIDTH_NEIGHBOURS  # walks and chains take the nearest of them
_VERSION: Final = 2
_SAVE_SHARE: Final = 16  # a graph is saved again once one in so many of its rows came or went
GRAPH: Final = "graph"
"""What the graph of a state is kept as, with the state that it is of."""
_SAVED: Final = "graph saved"
_MARK_BYTES: Final = 64


class _Kept(NamedTuple):
    """A graph and the state that it is of: the commit that made it, and its size."""

    version: int
    size: Size
    graph: Graph


def lake_graph(rows: Rows, mu: Float32s, *, save: bool = False) -> Graph:
    """Return the graph of all rows; *mu* [N, d] are they.

    That of the nearest earlier state is reduced by what was removed since and extended by what was
    added. *save*: write the hint now, for other processes, and not only when much has changed.
    """
    version = rows.state.version
    known = rows.known(GRAPH, version)
    if known is not None and not (save and rows.known(_SAVED, version) is None):
        if save:
            rows.pinned[GRAPH] = known
        return known.graph  # type: ignore[no-any-return]
    saved = _load(rows)
    if known is None:
        known = _nearest(rows, saved)
    graph = build_graph(mu, GRAPH_NEIGHBOURS) if known is None else _moved(rows, mu, known)
    made = _Kept(version, rows.state.size, graph)
    rows.keep(GRAPH, made, _nbytes(graph))
    if save:
        rows.pinned[GRAPH] = made  # whatever the cache has room for
    if _is_due(rows, saved, save=save):
        _save(rows, made)
    if save:
        rows.keep(_SAVED, True, _MARK_BYTES)
    return graph


def lake_firsts(rows: Rows, what: str, table: Float32s) -> Firsts:
    """Which rows of *table*, named *what* among those of a state, may be nearest to a query.

    Where many rows are identical they are looked for once for a state, and not by every search.
    """

    def kept(make: Callable[[], Numbers]) -> Numbers:
        return rows.derived(("firsts", what), make, lambda numbers: numbers.nbytes)

    return Firsts(table, 1, kept)


def _nearest(rows: Rows, saved: _Kept | None) -> _Kept | None:
    """The graph of the newest earlier state that is still in memory, or was saved."""
    intervals = rows.scope.intervals
    best = saved if saved is not None and _is_before(rows, saved.size) else None
    for version in rows.versions(GRAPH):
        if version > rows.state.version or not is_visible(version, intervals):
            continue
        if best is None or version > best.version:
            found: _Kept | None = rows.known(GRAPH, version)
            best = best if found is None else found
    return best


def _is_before(rows: Rows, size: Size) -> bool:
    return size.blocks <= rows.state.size.blocks and size.removals <= rows.state.size.removals


def _moved(rows: Rows, mu: Float32s, known: _Kept) -> Graph:
    """The graph of *rows*, made of that of an earlier state."""
    graph, chain = known.graph, rows.chain
    if known.size == rows.state.size:
        return graph
    if chain.ends.has_restored(known.size.removals, rows.state.size.removals):
        return build_graph(mu, GRAPH_NEIGHBOURS)  # rows came in between, not behind
    old = chain.live(known.size)
    if old is None:
        old = np.arange(chain.stored(known.size))
    kept = chain.are_live(old, rows.state.size)
    count = int(kept.sum())
    if count < 2 or len(mu) > 2 * count:
        return build_graph(mu, GRAPH_NEIGHBOURS)
    if count < len(old):
        graph = reduce_graph(graph, kept, mu[:count])
    return extend_graph(graph, mu) if len(mu) > count else graph


def _nbytes(graph: Graph) -> int:
    return graph.neighbours.nbytes + graph.cosines.nbytes


def _is_due(rows: Rows, saved: _Kept | None, *, save: bool) -> bool:
    if rows.log.options.mode != "rw":
        return False
    if saved is None:
        return True
    if saved.size == rows.state.size or not _is_before(rows, saved.size):
        return False  # what is saved is this, or of a later commit
    chain, now = rows.chain, rows.state.size
    added = chain.stored(now) - chain.stored(saved.size)
    gone = added - chain.live_count(now) + chain.live_count(saved.size)
    return save or (added + gone) * _SAVE_SHARE >= len(rows)


# --- hints ----------------------------------------------------------------------------------------


def _token(rows: Rows, version: int) -> list[Any] | None:
    """What names a state for another process: its commit, which no other store has."""
    row = rows.scope.view.commit_at(version)
    return None if row is None else [row.lsn, row.time, row.clock, row.id]


def _hint(rows: Rows, kind: str) -> str:
    return f"lake-{rows.state.info.lake_id.hex()}.{kind}"


def _save(rows: Rows, kept: _Kept) -> None:
    graph = kept.graph
    count, width = graph.neighbours.shape
    token = _token(rows, kept.version)
    value = [_VERSION, graph.k, count, width, graph.recall, *kept.size, token]
    payload = graph.neighbours.tobytes() + graph.cosines.tobytes()
    save_hint(rows.log.fs, _hint(rows, "graph"), value, payload)


def _load(rows: Rows) -> _Kept | None:
    """Decode the hint; anything odd, or of another store or lineage, means that there is none."""
    found = load_hint_bytes(rows.log.fs, _hint(rows, "graph"))
    if found is None:
        return None
    value, payload = found
    if not isinstance(value, list) or len(value) != 8 or value[0] != _VERSION:
        return None
    _, k, count, width, recall, blocks, removals, token = value
    if k != GRAPH_NEIGHBOURS or len(payload) != 8 * count * width or type(recall) is not float:
        return None
    size = _state_of(rows, token)
    if size is None or [*size] != [blocks, removals] or rows.chain.live_count(size) != count:
        return None
    half = 4 * count * width
    neighbours = np.frombuffer(payload[:half], np.int32).reshape(count, width)
    cosines = np.frombuffer(payload[half:], np.float32).reshape(count, width)
    if neighbours.size and not (neighbours.min() >= 0 and neighbours.max() < count):
        return None
    return _Kept(token[0], size, Graph(k, neighbours, cosines, recall))


def _state_of(rows: Rows, token: Any) -> Size | None:
    """The size of the state of a commit of this lineage; None where it is another's."""
    if not isinstance(token, list) or len(token) != 4 or type(token[0]) is not int:
        return None
    if not 0 < token[0] < 1 << 62 or _token(rows, token[0]) != token:
        return None
    size = rows.chain.at(token[0])
    return size if rows.chain.last_commit(size) == token[0] else None


def lake_labels(rows: Rows, count: int, make: Callable[[], Numbers]) -> Numbers:
    """Return what *make* computes, int64 [*count*]: once for a state, saved for other processes."""
    name = _hint(rows, "labels")
    found = load_hint_bytes(rows.log.fs, name)
    token = _token(rows, rows.state.version)
    value = [_VERSION, count, token]
    if found is not None and token is not None and found[0] == value and len(found[1]) == 8 * count:
        return np.frombuffer(found[1], np.int64)
    labels = make()
    if rows.log.options.mode == "rw" and token is not None:
        save_hint(rows.log.fs, name, value, labels.tobytes())
    return labels
