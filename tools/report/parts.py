"""Pieces that sections are made of: a chart with its legend and table, a card, a section. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mldb.tools.report.charts import Chart
from mldb.tools.report.markup import folded, remark, safe, slug


@dataclass
class Page:
    """A page in the making: numbers for ids, and what the script is told of charts. One thread."""

    hovers: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def new_id(self, kind: str) -> str:
        """An id that the page does not have yet."""
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        return slug(kind, number)


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its id, the words that the navigation has for it, and its inner HTML."""

    id: str
    title: str
    body: str


def figure(
    page: Page, chart: Chart, title: str, *, table: str = "", about: str = "", wide: bool = False
) -> str:
    """Return a chart with its title, what its colours mean, and its figures behind a fold."""
    chart_id = page.new_id("chart")
    is_hovered = bool(chart.hover.get("x"))
    if is_hovered:
        page.hovers[chart_id] = chart.hover
    legend = "".join(
        f'<li><svg viewBox="0 0 14 8" aria-hidden="true"><path class="line t{tone}" d="M1 4H13"/>'
        f"</svg>{safe(name, 48)}</li>"
        for name, tone in chart.legend
    )
    focus = ' tabindex="0" data-hover' if is_hovered else ""
    scroll = ' class="plot wide"' if wide else ' class="plot"'
    return (
        f'<figure class="{"card span" if wide else "card"}"><figcaption>{safe(title)}</figcaption>'
        + (f'<p class="about">{safe(about, 400)}</p>' if about else "")
        + (f'<ul class="legend">{legend}</ul>' if len(chart.legend) > 1 else "")
        + f'<div id="{chart_id}"{scroll}{focus}>{chart.svg}</div>'
        + (folded("Figures", table) if table else "")
        + "</figure>"
    )


def grid(figures: Sequence[str]) -> str:
    """Return figures beside each other, as many as there is room for."""
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def tiles(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a row of figures with what they are."""
    found = "".join(
        f"<div><dt>{safe(name, 60)}</dt><dd>{safe(value, 60)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="tiles">{found}</dl>'


def unread(problems: Sequence[str], most: int = 20) -> str:
    """Return what could not be read, named; nothing where all could be."""
    if not problems:
        return ""
    lines = "".join(f"<li>{safe(text, 400)}</li>" for text in problems[:most])
    rest = f"<li>and {len(problems) - most} more</li>" if len(problems) > most else ""
    return (
        f'<div class="problem" role="note"><strong>Not shown:</strong><ul>{lines}{rest}</ul></div>'
    )


def nothing(title: str, section_id: str, text: str) -> Section:
    """Return a section that says in one line that there is nothing to show."""
    return Section(section_id, title, remark(text))
