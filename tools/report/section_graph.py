"""The architecture: relationships as boxes and arrows, from left to right."""

from __future__ import annotations

from collections import Counter
from typing import Final

from mldb.tools.report.charts import TONES, Chart
from mldb.tools.report.facts import GraphFacts
from mldb.tools.report.graph_layout import GraphLayout, placed_nodes
from mldb.tools.report.markup import remark, safe, table
from mldb.tools.report.parts import Page, Section, figure, nothing, unread

_BOX, _TALL = 138, 28
_ACROSS, _DOWN = 200, 42
_EDGE = 14
_LETTERS: Final = 19
FLOW: Final = "feeds_into"
"""The kind of relationships along which data flows through a model."""


def section_graph(page: Page, facts: GraphFacts) -> Section:
    """Draw the graph. Without relationships there is one line."""
    title = "Architecture"
    if not facts.edges:
        if facts.problems:
            return Section("architecture", title, unread(facts.problems))
        return nothing(
            title,
            "architecture",
            "No relationships: db.create_relationship(source, target, kind) would be drawn here.",
        )
    edges, main = _main_first(facts.edges)
    layout = placed_nodes([(source, target) for source, target, _ in edges], main)
    kinds = sorted({kind for _, _, kind in facts.edges})
    label = (
        f"Graph of {len(layout.places)} names and {len(facts.edges)} relationships in "
        f"{layout.columns} columns; {len(layout.backward)} lead backwards"
    )
    legend = tuple((kind, place % TONES) for place, kind in enumerate(kinds[:TONES]))
    chart = Chart(_drawn(facts, layout, kinds, label), legend)
    rows = [(source, kind, target) for source, target, kind in facts.edges]
    figures = table(("source", "kind", "target"), rows, caption="Relationships", text=3)
    about = f"{facts.names_in_all:,} names, {facts.edges_in_all:,} relationships."
    if len(facts.edges) < facts.edges_in_all:
        about += (
            f" {len(facts.edges):,} relationships between {len(layout.places):,} names are shown; "
            "mldb graph prints all."
        )
    shown = figure(page, chart, "Relationships", table=figures, about=about, wide=True)
    hint = remark("Dashed arrows close a cycle.") if layout.backward else ""
    return Section("architecture", title, shown + hint)


def _main_first(
    edges: list[tuple[str, str, str]],
) -> tuple[list[tuple[str, str, str]], int]:
    """Return the edges, those along which data flows first, and how many these are.

    They are of the kind ``feeds_into``, or where there is none of the kind that is most frequent.
    """
    counts = Counter(kind for _, _, kind in edges)
    main = FLOW if FLOW in counts else counts.most_common(1)[0][0]
    return sorted(edges, key=lambda edge: edge[2] != main), counts[main]


def _drawn(facts: GraphFacts, layout: GraphLayout, kinds: list[str], label: str) -> str:
    width = 2 * _EDGE + _BOX + (layout.columns - 1) * _ACROSS
    height = 2 * _EDGE + _TALL + (layout.rows - 1) * _DOWN
    tall: dict[int, int] = {}
    for column, row in layout.places.values():
        tall[column] = max(tall.get(column, 0), row)
    corner = {
        name: (
            _EDGE + column * _ACROSS,
            _EDGE + row * _DOWN + (layout.rows - 1 - tall[column]) * _DOWN / 2,
        )
        for name, (column, row) in layout.places.items()
    }
    parts = [
        f'<svg class="own" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        f'height="{height:.0f}" role="img" aria-label="{safe(label, 400)}">'
    ]
    for source, target, kind in facts.edges:
        tone = kinds.index(kind) % TONES
        is_back = source == target or (source, target) in layout.backward
        parts.append(_arrow(corner[source], corner[target], tone, is_back=is_back))
    for name, (x, y) in corner.items():
        form = "node leaf" if name in facts.tensors else "node"
        shown = (
            name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2]}…{name[-_LETTERS // 2 :]}"
        )
        parts.append(
            f'<g><title>{safe(name)}</title><rect class="{form}" x="{x}" y="{y:.1f}" '
            f'width="{_BOX}" height="{_TALL}" rx="6"/><text class="tick m" x="{x + _BOX / 2:.0f}" '
            f'y="{y + 18:.1f}">{safe(shown, 60)}</text></g>'
        )
    return "".join(parts) + "</svg>"


def _arrow(
    source: tuple[float, float], target: tuple[float, float], tone: int, *, is_back: bool
) -> str:
    x, y = source[0] + _BOX, source[1] + _TALL / 2
    to_x, to_y = target[0], target[1] + _TALL / 2
    form = f"edge t{tone}{' dashed' if is_back else ''}"
    reach = max((to_x - x) / 2, 24.0) if not is_back else 34.0
    lift = -30 if is_back and abs(y - to_y) < 1 else 0
    return (
        f'<path class="{form}" d="M{x} {y:.1f}C{x + reach:.1f} {y + lift:.1f} {to_x - reach:.1f} '
        f'{to_y + lift:.1f} {to_x - 5} {to_y:.1f}"/>'
        f'<path class="tip t{tone}" d="M{to_x} {to_y:.1f}l-7 -3.5v7z"/>'
    )
