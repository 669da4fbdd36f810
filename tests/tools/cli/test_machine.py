"""mldb bench and mldb selftest: what they print, and that nothing of them stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mldb.errors import LimitError
from mldb.tools.cli.main import INTERRUPTED, PROBLEM, USAGE
from mldb.tools.measure.sections import BenchSizes, Workbench
from mldb.tools.selftest import checks
from mldb.tools.selftest.outcomes import NotHere, require

Run = Callable[..., Any]


def test_a_bench_has_figures_with_their_spread_and_leaves_nothing(ran: Run, tmp_path: Path) -> None:
    found = ran("bench", "--path", tmp_path, "--state", "1M", "--budget", "0", "--json")
    assert found.status == 0
    assert os.listdir(tmp_path) == []
    document = found.json
    names = [item["name"] for item in document["figures"]]
    assert "save a state, durable" in names
    assert "small commit, durable" in names
    for item in document["figures"]:
        assert 0 < item["low"] <= item["median"] <= item["high"], item["name"]
        assert (item["ratio"] is None) == (item["against"] == "")
        assert item["against"] in ("", *names)
        assert item["rounds"] >= 3
    assert document["state_bytes"] == pytest.approx(1 << 20, rel=0.01)


def test_a_bench_prints_a_table(ran: Run, tmp_path: Path) -> None:
    found = ran("bench", "--path", tmp_path, "--state", "100k", "--budget", "0").out.splitlines()
    assert found[0].startswith(f"in {tmp_path} (")
    assert found[1].split("\t") == [
        *("what", "median", "unit", "lowest", "highest", "rounds", "against")
    ]
    assert any(line.endswith(" x append and fsync") for line in found)


def test_ctrl_c_leaves_nothing_of_a_bench(
    ran: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workbench, "past", interrupted)
    found = ran("bench", "--path", tmp_path, "--state", "100k", "--budget", "0")
    assert (found.status, os.listdir(tmp_path)) == (INTERRUPTED, [])


def test_no_bench_without_room_or_a_folder(ran: Run, tmp_path: Path) -> None:
    assert ran("bench", "--path", tmp_path / "none").status == USAGE
    with pytest.raises(LimitError, match="--path"):
        Workbench(str(tmp_path), BenchSizes(state_bytes=1 << 50))
    assert os.listdir(tmp_path) == []


def test_a_selftest_says_what_held_and_what_did_not(
    ran: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fine(_: str) -> str:
        """Holds."""
        return "seen"

    def absent(_: str) -> str:
        """Needs more."""
        raise NotHere("not installed")

    def broken(_: str) -> str:
        """The sky is blue."""
        require(False, "it is \x1b[2J grey")
        return ""

    monkeypatch.setattr(checks, "CHECKS", (fine, absent))
    found = ran("selftest", "--path", tmp_path)
    assert found.status == 0
    assert "of 2 promises 1 held, 0 were broken, 1 not tried" in found.out
    monkeypatch.setattr(checks, "CHECKS", (fine, absent, broken))
    found = ran("selftest", "--path", tmp_path)
    assert found.status == PROBLEM
    assert "The sky is blue. But it is \\x1b[2J grey." in found.out
    document = ran("selftest", "--path", tmp_path, "--json").json
    assert document["ok"] is False
    assert [item["state"] for item in document["checks"]] == ["held", "skipped", "broken"]
    assert os.listdir(tmp_path) == []
    assert ran("selftest", "--path", tmp_path / "none").status == USAGE


def test_the_device_is_tried_only_when_asked_for(
    ran: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def gpu(folder: str) -> str:
        tried.append(folder)
        return "a device"

    monkeypatch.setattr(checks, "CHECKS", ())
    monkeypatch.setattr(checks, "gpu", gpu)
    assert ran("selftest", "--path", tmp_path).status == 0
    assert tried == []
    assert "a device" in ran("selftest", "--path", tmp_path, "--gpu").out
    assert len(tried) == 1


@pytest.mark.parametrize("name", ["doctor", "export", "import", "bench", "selftest", "du"])
def test_help_needs_no_numpy(name: str) -> None:
    program = (
        "import sys\nfrom mldb.tools.cli.main import main\n"
        f"assert main([{name!r}, '--help']) == 0\n"
        "assert 'numpy' not in sys.modules and 'rich' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"mldb {name}" in done.stdout
