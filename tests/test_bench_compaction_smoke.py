"""The harness of compaction, at sizes that say nothing: does it measure, judge and report?"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.bench_compaction import dedupe, patches, retention, runner
from tests.bench_compaction.row import Row, at_least, at_most

TINY = dedupe.Sizes(16, 2, 3, 3, 1 << 20, 1, 80, asked=False)


def test_the_command_line_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dedupe, "QUICK", TINY)
    path = tmp_path / "rows.json"
    assert runner.main(["--quick", "--only", "dedupe", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    found = [Row(**row) for row in document["sections"]["dedupe"]]
    assert len(found) == 3 + 8 + 3
    assert all(row.value > 0 and row.met is None for row in found)
    printed = capsys.readouterr().out
    for row in found:
        assert row.figure in printed
        assert row.must in printed


def test_a_section_that_is_not_there_yet_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "SECTIONS", ("dedupe", "not_written_yet"))
    assert runner.present() == ["dedupe"]
    assert runner.parse([]).only == ["dedupe"]
    with pytest.raises(SystemExit):
        runner.main(["--only", "not_written_yet"])
    assert "unknown sections: not_written_yet" in capsys.readouterr().err


def test_every_section_that_is_named_is_run() -> None:
    """One was named after no module: it was left out, and never measured by ``make``."""
    assert runner.parse([]).only == [*runner.SECTIONS]
    for name in runner.SECTIONS:
        assert callable(importlib.import_module(f"tests.bench_compaction.{name}").rows)


def test_the_disk_with_what_stays_is_measured_with_a_pin_and_without() -> None:
    bound, of_all, pinned, of_all_pinned = retention.returned(
        retention.Amounts(TINY, 12, asked=False)
    )
    assert "with the 4 that stay" in bound.figure  # 0, and 9 to 11
    assert "with the 5 that stay" in pinned.figure
    assert (bound.must, bound.met) == ("<= 1.1", None)
    assert bound.value > 0.9 < pinned.value
    assert 0 < of_all.value < of_all_pinned.value < 1


def test_a_bound_is_judged_where_it_is_asked() -> None:
    assert [at_most("a", value, "x", 2, asked=True).met for value in (1, 2, 3)] == [
        True,
        True,
        False,
    ]
    assert [at_least("a", value, "x", 2, asked=True).met for value in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    row = at_most("a", 3, "x", 2, 1.5, asked=False)
    assert (row.met, row.must, row.aim) == (None, "<= 2", "<= 1.5")
    head, line = runner.render([row, Row("b", 12345, "s")]).splitlines()[:2]
    assert head.split() == ["figure", "value", "must", "aim", "met"]
    assert " ".join(line.split()) == "a 3 x <= 2 <= 1.5"


def test_the_model_is_as_large_and_as_frozen_as_it_is_called() -> None:
    state = dedupe.model(dedupe.FULL)
    assert 49e6 < dedupe.size_of(state) < 51e6
    frozen = dedupe.frozen_names(state, 0.7)
    share = sum(state[name].nbytes for name in frozen) / dedupe.size_of(state)
    assert 0.69 < share <= 0.7


def test_patches_are_measured_before_and_after_they_are_folded() -> None:
    sizes = patches.Sizes(10_000, 70, asked=False)
    rows = patches.steps(sizes, "random")
    found = {row.figure: row for row in rows[4:]}  # what is measured twice has the same name
    assert rows[4].value == 70
    assert found["  patches below a version, at most"].value == 64
    assert "  compaction: 1 of them folded" in found
    assert rows[1].value < found["  bytes"].value < 2.2
    assert all(row.value > 0 and row.met is None for row in rows)
