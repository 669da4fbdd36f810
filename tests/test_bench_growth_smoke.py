"""The harness of growth itself, at sizes that say nothing: does it measure, judge and report?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench_growth import names, runner
from tests.bench_growth.measure import at_most, unbounded
from tests.bench_growth.row import Row

TINY = names.Sizes((30, 60), (20,), (10,), (3,))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "QUICK", TINY)
    monkeypatch.setattr(runner, "SECTIONS", ("names", "not_written_yet"))


def test_the_command_line_prints_a_table_and_writes_json(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    assert runner.main(["--quick", "--only", "names", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    found = [Row(**row) for row in document["sections"]["names"]]
    assert {row.size for row in found if row.figure == "db.names()"} == {30, 60}
    assert all(row.value > 0 and row.met is None for row in found)
    printed = capsys.readouterr().out
    for row in found:
        assert row.figure in printed
    assert "slope" in printed
    assert list(tmp_path.iterdir()) == [path]


def test_a_section_that_is_not_there_yet_is_left_out(
    tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.present() == ["names"]
    assert runner.parse([]).only == ["names"]
    monkeypatch.setattr(names, "measured", lambda sizes: [unbounded("a", 1, 1.0, "ms")])
    assert runner.main(["--quick"]) == 0
    with pytest.raises(SystemExit):
        runner.main(["--only", "lakes"])
    assert "unknown sections: lakes" in capsys.readouterr().err


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_a_slope_is_the_exponent_of_cost_against_size(exponent: float) -> None:
    found = [unbounded("a", size, 3 * size**exponent, "ms") for size in (10, 100, 1000)]
    assert runner.slope_of(found) == pytest.approx(exponent)
    assert runner.slope_of(found[:1]) is None


def test_a_store_of_nothing_has_no_place_on_a_slope() -> None:
    """What it costs to add to an empty lake ended the whole table: the logarithm of no rows."""
    found = [unbounded("a", size, 2.0, "ms") for size in (0, 10, 100)]
    assert runner.slope_of(found) == pytest.approx(0)
    assert "2 at 0  2 at 10" in runner.render(found)


def test_a_bound_is_judged_at_the_size_that_it_names() -> None:
    found = [at_most("a", size, size / 10, "ms", 5, 100) for size in (10, 100)]
    assert [row.met for row in found] == [None, False]
    assert runner.verdict(found) == "no"
    assert runner.verdict([at_most("a", 100, 5, "ms", 5, 100)]) == "yes"
    assert runner.verdict(found[:1]) == runner.verdict([]) == ""
    [head, line] = runner.render(found).splitlines()
    assert head.split() == ["figure", "cost", "at", "size", "slope", "must", "met"]
    assert " ".join(line.split()) == "a [ms] 1 at 10 10 at 100 +1.00 <= 5 no"


def test_figures_keep_the_order_in_which_they_came() -> None:
    found = [Row(figure, size, 1, "s", "", None) for size in (2, 1) for figure in ("b", "a")]
    ordered = runner.by_figure(found)
    assert list(ordered) == ["b", "a"]
    assert [row.size for row in ordered["a"]] == [1, 2]


def test_the_bounds_are_those_of_the_largest_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "FULL", names.Sizes((30,), (20,), (10,), (3,)))
    found = names.rows(quick=False)
    assert {row.figure for row in found if row.met is not None} == {
        "len(db), first",
        "a put and len(db), then",
        "db.names()",
        "db.get of a missing name",
        "db.history of one name",
        "db.history, one version a segment",
    }
