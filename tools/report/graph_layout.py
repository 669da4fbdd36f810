"""A directed graph in columns from left to right; cycles are allowed. Pure.

Edges that close a cycle are set aside (those that a depth-first walk finds leading back), every
node stands one column behind the last that leads to it, and the order within columns follows the
means of their neighbours' places in some sweeps, as Sugiyama, Tagawa and Toda (1981) do. Nothing
recurses; the cost is O(edges) a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SWEEPS: Final = 6


@dataclass(frozen=True, slots=True)
class GraphLayout:
    """NumberColumn and row of each node, and the edges that lead backwards."""

    places: dict[str, tuple[int, int]]
    backward: frozenset[tuple[str, str]]

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return 1 + max((column for column, _ in self.places.values()), default=-1)

    @property
    def rows(self) -> int:
        """The height of the highest column."""
        return 1 + max((row for _, row in self.places.values()), default=-1)


def placed_nodes(edges: list[tuple[str, str]], main: int | None = None) -> GraphLayout:
    """Place the ends of *edges*; loops of a node to itself take no place.

    The first *main* edges (all, by default) say where the graph starts: at what none of them leads
    to. So an edge of another kind, feedback say, closes a cycle rather than breaks one.
    """
    below: dict[str, dict[str, None]] = {}
    for source, target in edges:
        below.setdefault(source, {})
        below.setdefault(target, {})
        if source != target:
            below[source][target] = None
    first = edges if main is None else edges[:main]
    reached = {target for source, target in first if source != target}
    starts = [source for source, _ in first if source not in reached]
    backward = _leading_back(below, [*starts, *below])
    forward = {
        node: [target for target in targets if (node, target) not in backward]
        for node, targets in below.items()
    }
    leading = frozenset(end for edge in first for end in edge)
    return GraphLayout(_ordered(forward, _columns(forward), leading), backward)


def _leading_back(
    below: dict[str, dict[str, None]], roots: list[str]
) -> frozenset[tuple[str, str]]:
    """Edges to a node that is still being walked from: without them no cycle is left."""
    back: set[tuple[str, str]] = set()
    is_left: dict[str, bool] = {}
    for root in roots:
        if root in is_left:
            continue
        is_left[root] = False
        stack = [(root, iter(below[root]))]
        while stack:
            node, rest = stack[-1]
            target = next(rest, None)
            if target is None:
                is_left[node] = True
                stack.pop()
            elif target not in is_left:
                is_left[target] = False
                stack.append((target, iter(below[target])))
            elif not is_left[target]:
                back.add((node, target))
    return frozenset(back)


def _columns(forward: dict[str, list[str]]) -> dict[str, int]:
    """One behind the last that leads to it; a root stands just before what it leads to first."""
    waiting = dict.fromkeys(forward, 0)
    for targets in forward.values():
        for target in targets:
            waiting[target] += 1
    roots = [node for node, count in waiting.items() if not count]
    column = dict.fromkeys(forward, 0)
    order: list[str] = list(roots)
    for node in order:  # it grows while it is walked
        for target in forward[node]:
            column[target] = max(column[target], column[node] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                order.append(target)
    for root in roots:
        nearest = min((column[target] for target in forward[root]), default=1)
        column[root] = max(nearest - 1, 0)
    return column


def _ordered(
    forward: dict[str, list[str]], column: dict[str, int], leading: frozenset[str]
) -> dict[str, tuple[int, int]]:
    """Rows in each column: *leading* nodes on top, then each near the mean of what it is tied to.

    Sweeps look at what is before and at what comes after in turn.
    """
    levels: list[list[str]] = [[] for _ in range(1 + max(column.values(), default=-1))]
    for node in forward:
        levels[column[node]].append(node)
    above: dict[str, list[str]] = {node: [] for node in forward}
    for node, targets in forward.items():
        for target in targets:
            above[target].append(node)
    row = {node: place for level in levels for place, node in enumerate(level)}
    for sweep in range(_SWEEPS):
        near = forward if sweep % 2 else above
        for level in levels[::-1] if sweep % 2 else levels:
            level.sort(
                key=lambda node: (
                    node not in leading,
                    _mean(row, near[node], row[node]),
                    row[node],
                )
            )
            row.update((node, place) for place, node in enumerate(level))
    return {node: (column[node], row[node]) for node in forward}


def _mean(row: dict[str, int], near: list[str], own: int) -> float:
    return sum(row[node] for node in near) / len(near) if near else float(own)
