"""``mldb replay`` and ``mldb repair``: output, statuses, what they leave alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import mldb
from tests.support.golden_text import check_golden


def shown(text: str, *paths: object) -> str:
    """What is printed, without what is another one each time."""
    for path in paths:
        text = text.replace(str(path), "PATH")
    return re.sub(r"[0-9a-f]{32}", "ID", text)


def test_replay(ran: Any, store: str, tmp_path: Path) -> None:
    new = tmp_path / "new"
    found = ran("replay", store, new, "--until", 3, "--name", "conv1_weights", "--verify")
    assert (found.status, found.err) == (0, "")
    check_golden("output_replay", shown(found.out, new))
    with mldb.open(new, mode="r") as db:
        assert db.names() == ["conv1_weights"]
        assert db.epoch == 3
    again = ran("replay", store, new)
    assert again.status == 2
    assert "is not empty" in again.err
    found = ran("replay", store, tmp_path / "all", "--json", "--verify").json
    assert found["ok"]
    assert found["verified"]["differences"] == []
    assert found["commits"] == 5
    assert ran("replay", store, tmp_path / "x", "--until", "no such tag").status == 2
    assert ran("replay", store).status == 2


def test_a_comparison_that_finds_something_is_a_problem(
    ran: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mldb.tools.replay.report import Comparison

    differs = Comparison(1, 1, ("commit 3: \x1b[2J",) * 30)
    monkeypatch.setattr("mldb.tools.replay.comparing.compare_stores", lambda *a, **k: differs)
    found = ran("replay", store, tmp_path / "new", "--verify")
    assert found.status == 1
    assert found.out.splitlines()[-1] == "and 10 more"
    assert "\x1b" not in found.out
    assert not ran("replay", store, tmp_path / "more", "--verify", "--json").json["ok"]


def test_repair(ran: Any, store: str, tmp_path: Path) -> None:
    whole = ran("repair", store, tmp_path / "whole")
    assert whole.status == 0
    (segment,) = Path(store, "segments").glob("*.seg")
    data = bytearray(segment.read_bytes())
    with mldb.open(store, mode="r") as db:
        entry = db._scope(2).tensor_entry("conv1_weights")
    data[entry.offset] ^= 1
    segment.write_bytes(bytes(data))
    (Path(store) / "evil\x1b.txt").write_text("x")
    found = ran("repair", store, tmp_path / "new")
    assert found.status == 1
    check_golden("output_repair", shown(found.out, tmp_path / "new"))
    told = ran("repair", store, tmp_path / "json", "--json").json
    assert not told["ok"]
    assert {item["name"] for item in told["lost"]} == {"conv1_weights"}
    assert ran("repair", tmp_path / "nothing", tmp_path / "n").status == 2
    assert ran("repair", store, store).status == 2
