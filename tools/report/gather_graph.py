"""The architecture: relationships that are shown, of those that there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mldb.errors import MldbError
from mldb.tools.report.facts import GraphFacts

if TYPE_CHECKING:
    from mldb.query.surface import Snapshot

NODES_SHOWN: Final = 160
EDGES_SHOWN: Final = 400


def gather_graph(at: Snapshot) -> GraphFacts:
    """Return the graph at *at*, within bounds: ends that are tensors are the first to be left out.

    What cannot be read is said in ``problems``.
    """
    try:
        found = at.relationships()
    except MldbError as error:
        return GraphFacts(
            edges=[],
            edges_in_all=0,
            names_in_all=0,
            tensors=frozenset(),
            problems=(f"relationships: {error}",),
        )
    edges = [(item.source, item.target, item.kind) for item in found]
    names = {end for source, target, _ in edges for end in (source, target)}
    if len(names) <= 50 * NODES_SHOWN:
        tensors = frozenset(name for name in names if name in at)
    else:
        tensors = frozenset(names.intersection(at.names()))
    return GraphFacts(
        edges=bounded_edges(edges, tensors),
        edges_in_all=len(edges),
        names_in_all=len(names),
        tensors=tensors,
    )


def bounded_edges(
    edges: list[tuple[str, str, str]], tensors: frozenset[str]
) -> list[tuple[str, str, str]]:
    """Return as many edges as a picture takes. Pure; those between layers come first."""
    if len({end for edge in edges for end in edge[:2]}) > NODES_SHOWN:
        between = [edge for edge in edges if not (edge[0] in tensors or edge[1] in tensors)]
        edges = between or edges
    kept: list[tuple[str, str, str]] = []
    nodes: set[str] = set()
    for edge in _walked(edges):
        more = {edge[0], edge[1]} - nodes
        if len(nodes) + len(more) <= NODES_SHOWN and len(kept) < EDGES_SHOWN:
            nodes |= more
            kept.append(edge)
    return kept


def _walked(edges: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield the edges from where nothing leads to on, so that those cut off hang together."""
    below: dict[str, list[tuple[str, str, str]]] = {}
    for edge in edges:
        below.setdefault(edge[0], []).append(edge)
    targets = {target for source, target, _ in edges if source != target}
    seen: set[str] = set()
    for root in [*(name for name in below if name not in targets), *below]:
        waiting = deque([] if root in seen else [root])
        seen.add(root)
        while waiting:
            for edge in below.get(waiting.popleft(), ()):
                yield edge
                if edge[1] not in seen:
                    seen.add(edge[1])
                    waiting.append(edge[1])
