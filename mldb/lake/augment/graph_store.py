"""The neighbour graph of a lake, kept as a hint: loaded, grown by what was added, or built."""

from __future__ import annotations

from typing import Final

import numpy as np

from mldb.lake.rows.live import Rows
from mldb.log.hints import load_hint_bytes, save_hint
from mldb.sphere.graph import Graph, build_graph, extend_graph

GRAPH_NEIGHBOURS: Final = 30  # what the bandwidth needs; walks and chains take the nearest of them
_VERSION: Final = 1


def lake_graph(rows: Rows, mu: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Graph:
    """Return the graph of all rows; *mu* [N, d] are they.

    A graph of fewer rows is extended when rows were only added since; after a removal it is built
    anew once. The hint is written by a handle that may write, and may be deleted at any time.
    """
    name = f"lake-{rows.state.info.lake_id.hex()}.graph"
    blocks = [block.entry.commit_lsn for block in rows.state.blocks]
    removals = [removal.entry.commit_lsn for removal in rows.state.removals]
    log = rows.log
    known = _load(load_hint_bytes(log.fs, name))
    if known is not None:
        meta, graph = known
        if meta == (blocks, removals) and len(graph) == len(rows):
            return graph
        old_blocks, old_removals = meta
        prefix = old_blocks == blocks[: len(old_blocks)] and old_removals == removals
        if prefix and len(graph) < len(rows):  # a removal concerns rows before it only
            graph = extend_graph(graph, mu)
            _save(rows, name, blocks, removals, graph)
            return graph
    graph = build_graph(mu, GRAPH_NEIGHBOURS)
    _save(rows, name, blocks, removals, graph)
    return graph


def _save(rows: Rows, name: str, blocks: list[int], removals: list[int], graph: Graph) -> None:
    if rows.log.options.mode != "rw":
        return
    count, width = graph.neighbours.shape
    value = [_VERSION, graph.k, count, width, graph.recall, blocks, removals]
    payload = graph.neighbours.tobytes() + graph.cosines.tobytes()
    save_hint(rows.log.fs, name, value, payload)


def _load(
    found: tuple[object, memoryview] | None,
) -> tuple[tuple[list[int], list[int]], Graph] | None:
    """Decode a hint; anything odd means that there is none."""
    if found is None:
        return None
    value, payload = found
    if not isinstance(value, list) or len(value) != 7 or value[0] != _VERSION:
        return None
    _, k, count, width, recall, blocks, removals = value
    if k != GRAPH_NEIGHBOURS or len(payload) != 8 * count * width:
        return None
    half = 4 * count * width
    neighbours = np.frombuffer(payload[:half], np.int32).reshape(count, width)
    cosines = np.frombuffer(payload[half:], np.float32).reshape(count, width)
    if neighbours.size and not (neighbours.min() >= 0 and neighbours.max() < count):
        return None
    return (blocks, removals), Graph(k, neighbours, cosines, recall)
