"""The architecture: relationships as boxes and arrows, from left to right."""

from __future__ import annotations

from collections import Counter
from typing import Final

from mldb.tools.report.charts import TONES, Chart
from mldb.tools.report.facts import GraphFacts
from mldb.tools.report.graph_layout import GraphLayout, placed_nodes
from mldb.tools.report.markup import remark, safe, table
from mldb.tools.report.parts import Page, Section, figure, nothing, unread

_BOX, _TALL = 128, 28
_ACROSS, _DOWN = 172, 42
_EDGE, _OVER = 30, 34
_LETTERS: Final = 18
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
    low = _OVER + _TALL + (layout.rows - 1) * _DOWN
    height = low + (_OVER if layout.backward else _EDGE // 2)
    corner = {
        name: (_EDGE + column * _ACROSS, _OVER + row * _DOWN)
        for name, (column, row) in layout.places.items()
    }
    parts = [
        f'<svg class="own" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{safe(label, 400)}">'
    ]
    for source, target, kind in facts.edges:
        tone = kinds.index(kind) % TONES
        is_back = source == target or (source, target) in layout.backward
        draw = _arrow_back if is_back else _arrow
        parts.append(draw(corner[source], corner[target], tone, low))
    for name, (x, y) in corner.items():
        form = "node leaf" if name in facts.tensors else "node"
        shown = (
            name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2]}…{name[-_LETTERS // 2 :]}"
        )
        parts.append(
            f'<g><title>{safe(name)}</title><rect class="{form}" x="{x}" y="{y}" '
            f'width="{_BOX}" height="{_TALL}" rx="6"/><text class="tick m" x="{x + _BOX // 2}" '
            f'y="{y + 18}">{safe(shown, 60)}</text></g>'
        )
    return "".join(parts) + "</svg>"


def _arrow(source: tuple[int, int], target: tuple[int, int], tone: int, low: int) -> str:
    """An arrow to the right; over a node that stands between in the same row it makes an arc."""
    x, y = source[0] + _BOX, source[1] + _TALL // 2
    to_x, to_y = target[0], target[1] + _TALL // 2
    lift = _DOWN if y == to_y and target[0] - source[0] > _ACROSS else 0
    reach = max((to_x - x) // 2, 20)
    return (
        f'<path class="edge t{tone}" d="M{x} {y}C{x + reach} {y - lift} {to_x - reach} '
        f'{to_y - lift} {to_x - 5} {to_y}"/>{_tip(to_x, to_y, tone)}'
    )


def _arrow_back(source: tuple[int, int], target: tuple[int, int], tone: int, low: int) -> str:
    """An arrow to the left, which runs below all nodes."""
    x, y = source[0] + _BOX, source[1] + _TALL // 2
    to_x, to_y = target[0], target[1] + _TALL // 2
    under = low + _OVER // 2
    return (
        f'<path class="edge dashed t{tone}" d="M{x} {y}C{x + 26} {y} {x + 26} {under} {x} {under}'
        f'H{to_x}C{to_x - 24} {under} {to_x - 24} {to_y} {to_x - 5} {to_y}"/>'
        f"{_tip(to_x, to_y, tone)}"
    )


def _tip(x: int, y: int, tone: int) -> str:
    return f'<path class="tip t{tone}" d="M{x} {y}l-7 -3.5v7z"/>'
