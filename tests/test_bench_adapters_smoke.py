"""The harness of the adapters, at sizes that say nothing: does it measure, judge and report?"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.bench_adapters import runner
from tests.bench_compaction.row import Row


@pytest.mark.slow
def test_the_command_line_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    dcp = importlib.import_module("tests.bench_adapters.dcp")
    monkeypatch.setattr(dcp, "QUICK", dcp.Size(0.5, 2, 1, asked=False))
    path = tmp_path / "rows.json"
    assert runner.main(["--quick", "--only", "dcp", "--json", str(path)]) == 0
    found = [Row(**row) for row in json.loads(path.read_text())["sections"]["dcp"]]
    assert len(found) == 11
    assert all(row.value > 0 and row.met is None for row in found)
    assert [row.must for row in found if row.must] == [">= 1.2", ">= 1.5"]
    printed = capsys.readouterr().out
    assert all(row.figure in printed for row in found)


def test_every_section_that_is_named_is_run() -> None:
    assert runner.parse([]).only == [*runner.SECTIONS]
    for name in runner.SECTIONS:
        assert callable(importlib.import_module(f"tests.bench_adapters.{name}").rows)
