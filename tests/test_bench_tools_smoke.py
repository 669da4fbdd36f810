"""The harness of the tools, at sizes that say nothing: does it measure, judge and report?"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.bench_compaction.row import Row
from tests.bench_tools import command_line, metrics, runner, verify

TINY = metrics.Sizes(2, 20, 100, 50, 20, asked=False)


def test_the_command_line_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "QUICK", TINY)
    path = tmp_path / "rows.json"
    assert runner.main(["--quick", "--only", "metrics", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    found = [Row(**row) for row in document["sections"]["metrics"]]
    assert len(found) == 6 + 6 + 3
    assert all(row.value > 0 and row.met is None for row in found)
    assert [row.must for row in found if row.must] == ["<= 60", "<= 3"]
    printed = capsys.readouterr().out
    assert all(row.figure in printed for row in found)


def test_the_fastest_round_is_judged_where_it_is_asked() -> None:
    sizes = metrics.Sizes(3, 5, 1, 1, 1)
    measured = metrics.timed(sizes, lambda step: step)
    assert 0 < measured.fastest <= measured.median
    assert [row.met for row in metrics.logging(sizes) if row.must].count(None) == 0


def test_the_command_line_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "QUICK", command_line.CallSizes(3, 2, 1, asked=False))
    found = command_line.rows(quick=True)
    assert [row.must for row in found if row.must] == ["<= 100", "<= 250"]
    assert all(row.met is None for row in found)


def test_what_is_verified_is_what_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = verify.Amounts(1, 1 << 10, 40, 1, asked=False)
    monkeypatch.setattr(verify, "QUICK", tiny)
    found = verify.rows(quick=True)
    assert len(found) == 2 * 3 + 2 * 2
    assert all(row.value > 0 and row.met is None for row in found)
    assert [row.must for row in found if row.must] == [">= 0.6", ">= 0.6"]
    verify.record_small(tmp_path / "store", tiny)
    files = (tmp_path / "store" / "segments").iterdir()
    assert verify.read_and_hash(tmp_path / "store") == sum(item.stat().st_size for item in files)


def test_every_section_that_is_named_is_run() -> None:
    assert runner.parse([]).only == [*runner.SECTIONS]
    for name in runner.SECTIONS:
        assert callable(importlib.import_module(f"tests.bench_tools.{name}").rows)
