"""Parameters over epochs: layers first, each opens to its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from mldb.tools.cli.values import shown_bytes, shown_shape
from mldb.tools.report.charts import (
    TONES,
    Series,
    bar_rows,
    heat_chart,
    is_wide,
    line_chart,
)
from mldb.tools.report.facts import LayerFacts, NumberColumn, ParameterFacts, TensorFacts
from mldb.tools.report.markup import figure_text, folded, remark, safe, short_count, table
from mldb.tools.report.parts import Page, Section, figure, grid, nothing, unread

_LINES: Final = 6
RATIO_NAME: Final = "update-to-weight ratio"


def section_parameters(page: Page, facts: ParameterFacts) -> Section:
    """Draw the layers. A store without tensors gets one line."""
    title = "Parameters"
    if not facts.layers:
        return nothing(title, "parameters", "There are no tensors at this moment.")
    layers = [layer for layer in facts.layers if layer.size]
    heaviest = sorted(layers, key=lambda layer: -layer.size)[:_LINES]
    shown = [layer for layer in layers if layer in heaviest]
    body = [
        remark(_said(facts)),
        unread(facts.problems),
        grid(
            [
                *(_overview(page, facts, shown, key) for key in ("norm", "ratio")),
                _sizes(page, facts),
            ]
        ),
        "<h3>Layers</h3>",
        remark("A layer opens to its curves and tensors by a click or Enter."),
        '<div class="layers">',
        *(_layer(page, facts.epochs, layer) for layer in facts.layers),
        "</div>",
    ]
    page.figures["parameters"] = {
        "epochs": facts.epochs,
        "layers": {layer.name: layer.figures for layer in facts.layers},
    }
    return Section("parameters", title, "".join(body))


def _said(facts: ParameterFacts) -> str:
    drawn = sum(len(layer.tensors) for layer in facts.layers)
    text = (
        f"{short_count(facts.size)} values in {facts.tensors:,} tensors, "
        f"{shown_bytes(facts.nbytes)}. "
    )
    if facts.is_sampled:
        text += (
            f"{len(facts.epochs)} of {facts.epochs_in_all:,} epochs are shown, evenly, the first "
            "and the last among them; a ratio is that of the step from one shown epoch to the "
            "next (the last one may be shorter). "
        )
    else:
        text += f"All {len(facts.epochs):,} epochs are shown. "
    if drawn < facts.tensors:
        text += (
            f"The {drawn:,} largest tensors are drawn one by one; the others count in their layer. "
        )
    if facts.measured < facts.tensors:
        text += f"The {facts.measured:,} largest tensors are read; the others are counted. "
    return text + (
        f"The {RATIO_NAME} is the norm of a step by that of the values before it; histograms are "
        "of up to 4,096 values of each tensor at even distances."
    )


def _overview(page: Page, facts: ParameterFacts, shown: Sequence[LayerFacts], key: str) -> str:
    name = "Norm" if key == "norm" else RATIO_NAME.capitalize()
    series = [
        Series(layer.name, facts.epochs, layer.figures[key].tolist(), place % TONES)
        for place, layer in enumerate(shown)
    ]
    every = [value for line in series for value in line.y]
    is_log = is_wide(every)
    chart = line_chart(
        series,
        label=f"{name} of the {len(shown)} largest layers over epochs",
        x_label="epoch",
        y_label="log scale" if is_log else "",
        log_y=is_log,
        x_texts=[f"epoch {epoch}" for epoch in facts.epochs],
    )
    rows = [
        (epoch, *(figure_text(float(layer.figures[key][at])) for layer in shown))
        for at, epoch in enumerate(facts.epochs)
    ]
    columns = ["epoch", *(layer.name for layer in shown)]
    figures = table(columns, rows, caption=f"{name} by layer", text=0)
    return figure(page, chart, name, table=figures, about="Of the largest layers.")


def _sizes(page: Page, facts: ParameterFacts) -> str:
    layers = sorted(facts.layers, key=lambda layer: -layer.nbytes)
    bars = [
        (layer.name, layer.nbytes, layer.nbytes, f"{short_count(layer.size)} values")
        for layer in layers[:_LINES]
    ]
    rows = [
        (layer.name, f"{layer.count:,}", f"{layer.size:,}", shown_bytes(layer.nbytes))
        for layer in layers
    ]
    made = table(("layer", "tensors", "values", "bytes"), rows, caption="Layers")
    chart = bar_rows(bars, label=f"Bytes of the {len(bars)} largest layers")
    return figure(page, chart, "Size", table=made, about="Of the largest layers.")


def _layer(page: Page, epochs: list[int], layer: LayerFacts) -> str:
    last = _last_of(layer.figures["norm"]), _last_of(layer.figures["ratio"])
    tensors = "1 tensor" if layer.count == 1 else f"{layer.count:,} tensors"
    summary = (
        f'<span class="who">{safe(layer.name)}</span><span class="what">{tensors} · '
        f"{short_count(layer.size)} values · norm {figure_text(last[0], 3)} · ratio "
        f"{figure_text(last[1], 3)}</span>"
    )
    is_one = layer.count == 1 and len(layer.tensors) == 1
    charts = [] if is_one else _charts(page, epochs, layer.name, layer)
    inner = grid(charts) + "".join(
        _tensor(page, epochs, tensor, is_open=is_one) for tensor in layer.tensors
    )
    rest = layer.count - len(layer.tensors)
    if rest and layer.tensors:
        inner += remark(f"{rest:,} smaller tensors are in the curves of the layer alone.")
    return (
        f'<details class="layer" id="{page.new_id("layer")}" data-name="{safe(layer.name)}">'
        f"<summary>{summary}</summary>{inner}</details>"
    )


def _tensor(page: Page, epochs: list[int], tensor: TensorFacts, *, is_open: bool) -> str:
    facts = (
        f"{shown_shape(tensor.shape)} · {tensor.dtype} · {shown_bytes(tensor.nbytes)} · "
        f"norm {figure_text(_last_of(tensor.figures['norm']), 3)}"
    )
    keys = ("norm", "ratio", "mean", "std", "min", "max", "zeros", "not finite")
    rows = [
        (epoch, *(figure_text(float(tensor.figures[key][at])) for key in keys))
        for at, epoch in enumerate(epochs)
    ]
    made = table(("epoch", *keys), rows, caption=tensor.name, text=0)
    inner = grid(_charts(page, epochs, tensor.name, tensor))
    figures = folded("Extremes and figures", grid([_spread(page, epochs, tensor)]) + made)
    return (
        f'<details class="tensor" id="{page.new_id("tensor")}"{" open" if is_open else ""}>'
        f'<summary><span class="who">{safe(tensor.name)}</span>'
        f'<span class="what">{safe(facts)}</span></summary>{inner}{figures}</details>'
    )


def _charts(page: Page, epochs: list[int], name: str, facts: LayerFacts | TensorFacts) -> list[str]:
    """Norm, ratio and histograms of a layer or tensor."""
    texts = [f"epoch {epoch}" for epoch in epochs]
    found = []
    for key, title in (("norm", "Norm"), ("ratio", RATIO_NAME.capitalize())):
        values = facts.figures[key].tolist()
        is_log = key == "ratio" and is_wide(values)
        chart = line_chart(
            [Series(title, epochs, values, 0 if key == "norm" else 1)],
            label=f"{title} of {name} over epochs: {_ends(facts.figures[key])}",
            x_label="epoch",
            y_label="log scale" if is_log else "",
            log_y=is_log,
            x_texts=texts,
        )
        found.append(figure(page, chart, title))
    heat = heat_chart(
        facts.histogram,
        facts.edges,
        epochs,
        label=f"Histograms of the values of {name} over epochs, "
        f"{figure_text(float(facts.edges[0]), 3)} to {figure_text(float(facts.edges[-1]), 3)}",
        x_label="epoch",
    )
    found.append(figure(page, heat, "Histogram over epochs"))
    return found


def _spread(page: Page, epochs: list[int], tensor: TensorFacts) -> str:
    keys = ("max", "mean", "min")
    series = [
        Series(key, epochs, tensor.figures[key].tolist(), place)
        for key, place in zip(keys, (2, 0, 3), strict=True)
    ]
    chart = line_chart(
        series,
        label=f"Largest, mean and smallest value of {tensor.name} over epochs",
        x_label="epoch",
        x_texts=[f"epoch {epoch}" for epoch in epochs],
    )
    return figure(page, chart, "Extremes and mean")


def _last_of(values: NumberColumn) -> float | None:
    found = values[np.isfinite(values)]
    return float(found[-1]) if len(found) else None


def _ends(values: NumberColumn) -> str:
    found = [value for value in values.tolist() if math.isfinite(value)]
    if not found:
        return "nothing to show"
    return f"from {figure_text(found[0])} to {figure_text(found[-1])}"
