"""Charts: marks at round values, gaps where there is no value, nothing that is not escaped."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from mldb.tools.report.charts import (
    Chart,
    Series,
    bar_rows,
    column_chart,
    heat_chart,
    line_chart,
    thinned,
)
from mldb.tools.report.markup import (
    counted,
    figure_text,
    safe,
    script_json,
    short_count,
    table,
)
from mldb.tools.report.pixels import heat_image
from mldb.tools.report.ticks import axis_of

HOSTILE = "</svg><script>alert(1)</script>\"'&\u202e"


def parsed(chart: Chart) -> ElementTree.Element:
    """The picture as XML: it raises where something is not escaped or closed."""
    return ElementTree.fromstring(chart.svg)


VALUES: tuple[list[float], ...] = (
    *([], [5.0], [0.0], [math.nan], [math.inf, 1.0], [-3.0, -3.0], [1e-300, 1e300]),
    *([1e307, -1e307], [-1e308, 1e308], [1e15, 1e15 + 1], [0.1, 0.2, 0.3], [5e-324, 1e-323]),
)


@pytest.mark.parametrize("values", VALUES, ids=str)
@pytest.mark.parametrize("is_log", (False, True))
def test_axes_hold_any_values(values: list[float], is_log: bool) -> None:
    axis = axis_of(values, 10, 200, is_log=is_log)
    ticks = axis.ticks(4)
    assert 1 <= len(ticks) <= 60
    for value in [*ticks, *values]:
        if axis.holds(value) and (axis.low <= value <= axis.high):
            assert 9 <= axis.place(value) <= 201
    chart = line_chart([Series("x", range(len(values)), values)], label="x", x_label="x",
                       log_y=is_log)  # fmt: skip
    assert "nan" not in chart.svg
    assert parsed(chart).tag == "svg"


def test_marks_are_round() -> None:
    assert axis_of([0, 97], 0, 100).ticks(4) == [0, 25, 50, 75]
    assert axis_of([1, 1e4], 0, 100, is_log=True).ticks(5) == [1, 10, 100, 1000, 10000]
    assert axis_of([1, 8], 0, 100, is_log=True).ticks(4) == [1, 2, 5]


def test_a_line_is_broken_where_there_is_no_value() -> None:
    chart = line_chart(
        [Series("a", range(6), [1, 2, math.nan, 4, math.inf, 6])], label="a", x_label="x"
    )
    root = parsed(chart)
    (line,) = [part for part in root if part.get("class") == "line t0"]
    assert line.get("d", "").count("M") == 3
    assert sum(part.tag == "circle" for part in root) == 2  # those that stand alone


def test_a_log_axis_leaves_out_what_is_not_above_zero() -> None:
    chart = line_chart([Series("a", range(4), [0, 1, 10, -1])], label="a", x_label="x", log_y=True)
    assert "M" in chart.svg
    assert chart.hover["rows"][0]["py"][0] is None
    assert chart.hover["rows"][0]["y"] == ["0", "1", "10", "-1"]


def test_names_in_charts_are_escaped() -> None:
    line = Series(HOSTILE, [0, 1], [0, 1])
    edges = np.array([0.0, 1, 2])
    for chart in (
        line_chart([line], label=HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
        bar_rows([(HOSTILE, 1, 2, HOSTILE)], label=HOSTILE),
        column_chart([0, 1], [3], label=HOSTILE, x_label=HOSTILE),
        heat_chart(np.ones((1, 2)), edges, [3], label=HOSTILE, x_label=HOSTILE),
    ):
        root = parsed(chart)
        assert root.get("role") == "img"
        assert "alert(1)" in str(root.get("aria-label"))
        assert not [part for part in root.iter() if part.tag.endswith("script")]
        assert "\u202e" not in chart.svg


def test_columns_stand_for_their_counts() -> None:
    chart = column_chart([0, 1, 2, 4], [1, 0, 2], label="x", x_label="x")
    bars = [part for part in parsed(chart) if part.tag == "rect"]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.02)


def test_thinned_curves_keep_their_peaks(rng: np.random.Generator) -> None:
    y = rng.standard_normal(50_000)
    y[31_234], y[7] = 99, np.nan
    x, found = thinned(np.arange(50_000.0), y, 200)
    assert len(found) <= 203
    assert 99 in found
    assert (np.diff(x) > 0).all()
    assert np.isfinite(found).all()
    assert len(thinned(np.arange(3.0), np.full(3, np.nan))[0]) == 0


def test_the_picture_of_shares_is_a_png_with_these_cells() -> None:
    shares = np.array([[0, 0.25, 1], [1, 0, 0]])
    data = base64.b64decode(heat_image(shares).partition(",")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack_from(">I", data, place + 8 + size)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        place += size + 12
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 3, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 128, 255, 0, 255, 0, 0])


def test_nothing_ends_a_script_element() -> None:
    text = script_json({HOSTILE: [float("nan"), "</ScRiPt><!--", "\u2028"]})
    assert "<" not in text
    assert ">" not in text
    assert text.isascii()


def test_text_is_escaped_and_cut() -> None:
    assert safe("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert safe("a\u202eb\x00") == "a\\u202eb\\x00"
    assert len(safe("x" * 10_000)) == 100
    assert "<i>" not in table(["<i>"], [["<i>"]], caption="<i>")


@pytest.mark.parametrize(
    ("value", "text"),
    ((None, "-"), (math.nan, "NaN"), (-math.inf, "-∞"), (1234.0, "1,234"), (0.123456, "0.1235")),
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert figure_text(value) == text


def test_counts_are_short() -> None:
    assert [short_count(n) for n in (7, 1500, 9_883_648)] == ["7", "1.5 k", "9.88 M"]
    assert [counted(n, "tag") for n in (0, 1, 2000)] == ["0 tags", "1 tag", "2,000 tags"]
