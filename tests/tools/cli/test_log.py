"""``mldb log``: what is printed of commits, filters, hostile names, a closed pipe, following."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from tests.support.compacting import compact_all
from tests.support.golden_text import check_golden

_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ")


def plain(text: str) -> str:
    """What is printed, without the times."""
    return _TIME.sub("TIME", text)


def test_the_output_is_that_of_the_golden_files(ran: Any, store: str) -> None:
    check_golden("output_log", plain(ran("log", store).out))
    check_golden("output_log_oneline", plain(ran("log", store, "--oneline").out))


def lsns(found: Any) -> list[int]:
    assert found.status == 0
    return [item["lsn"] for item in found.json["commits"]]


def test_filters(ran: Any, store: str) -> None:
    with mldb.open(store) as db:
        time = db.at(3).time
        every = [int(item.lsn) for item in db.commits()]
    assert lsns(ran("log", store, "--json")) == every
    assert lsns(ran("log", store, "--json", "-n", 2)) == every[:2]
    assert lsns(ran("log", store, "--json", "-n", 0)) == every
    assert lsns(ran("log", store, "--json", "--epoch", "2..3")) == every[2:4]
    assert lsns(ran("log", store, "--json", "--epoch", "..2")) == every[3:]
    assert lsns(ran("log", store, "--json", "--epoch", "4..")) == every[:2]
    assert lsns(ran("log", store, "--json", "--epoch", "3")) == every[2:3]
    assert lsns(ran("log", store, "--json", "--event", "tagset")) == every[:1]
    assert lsns(ran("log", store, "--json", "--name", "conv2")) == every[4:]
    assert lsns(ran("log", store, "--json", "--since", time.isoformat())) == every[:3]
    found = ran("log", store, "--json", "--name", "*_biases", "--event", "TensorStored", "-n", 1)
    (commit,) = found.json["commits"]
    assert [event["name"] for event in commit["events"]] == ["conv1_biases"]
    assert ran("log", store, "--name", "nothing").err == "no such commit\n"


def test_of_a_rewind_and_of_retention(ran: Any, store: str) -> None:
    with mldb.open(store, durability="os", background_compaction=False) as db:
        db.rewind(2)
        db.retention.set(every=4)
        compact_all(db)
    commits = ran("log", store, "--json").json["commits"]
    assert [item["head"] for item in commits] == [True] + [False] * (len(commits) - 1)
    assert any(item["abandoned"] for item in commits)
    assert any(item["pruned"] for item in commits)
    assert "(abandoned)" in ran("log", store).out
    assert commits[0]["events"][0]["policy"]["every"] == 4


@pytest.mark.parametrize(
    "words", [["--epoch", "x"], ["--epoch", ".."], ["--since", "3"], ["--event", "Nothing"]]
)
def test_what_cannot_be_meant_is_usage(ran: Any, store: str, words: list[str]) -> None:
    found = ran("log", store, *words)
    assert (found.status, found.out) == (2, "")
    assert "Error:" in found.err


def test_hostile_names_obey_nobody(ran: Any, tmp_path: Path) -> None:
    with mldb.open(tmp_path / "s", durability="os") as db:
        db.store_tensor("\u202eevil", 1)
    for words in ([], ["--oneline"]):
        found = ran("log", tmp_path / "s", *words).out
        assert "\u202e" not in found
    assert "\\u202eevil" in ran("log", tmp_path / "s").out


def test_a_reader_that_goes_away_ends_it(
    ran: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    monkeypatch.setattr("mldb.tools.cli.main._forget_output", lambda: None)
    assert ran("log", store).status == 141


def test_following_prints_what_another_handle_commits(ran: Any, store: str) -> None:
    with mldb.open(store, durability="os") as db:
        started = threading.Event()
        writer = threading.Thread(target=lambda: (started.wait(20), db.store_tensor("new", 1)))
        writer.start()
        follow: Callable[..., Any] = mldb.MLDatabase.follow

        def told(self: mldb.MLDatabase, **options: Any) -> Any:
            found = follow(self, poll=0.001, **options)
            started.set()
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mldb.MLDatabase, "follow", told)
            found = ran("log", store, "--follow", "--timeout", "0.5", "--json", "--name", "new")
        writer.join()
    (line,) = found.out.splitlines()
    assert json.loads(line)["event"] == "TensorStored"
    assert json.loads(line)["name"] == "new"


def test_the_newest_of_a_long_log_are_read_from_its_end(
    ran: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three commits of four thousand: no more than a stretch of batches is looked at."""
    from mldb.log import batches

    with mldb.open(tmp_path / "s", durability="os", segment_entries=1000) as db:
        for number in range(4000):
            db[f"x{number % 5}"] = number
    read = [0]
    of = batches._batch_of

    def count(*given: Any) -> Any:
        read[0] += 1
        return of(*given)

    monkeypatch.setattr(batches, "_batch_of", count)
    assert len(lsns(ran("log", tmp_path / "s", "-n", 3, "--json"))) == 3
    assert read[0] <= 16
    assert len(lsns(ran("log", tmp_path / "s", "-n", 0, "--json"))) == 4000
    with mldb.open(tmp_path / "s", mode="r") as db:
        every = [event.lsn for event in db.events()]
        assert [item.lsn for item in db.commits()] == every[::-1]
        with pytest.raises(mldb.InvalidValueError, match="are none"):
            db.commits(epochs=(3, 2))
        with pytest.raises(mldb.InvalidTypeError, match="zone"):
            db.commits(since=np.datetime64(0, "s").astype(object))
