"""Commands that change or check a store: each does what the verb of its name does, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.tools.cli.main import PROBLEM, USAGE

Run = Callable[..., Any]


def test_verify_says_that_every_byte_is_there(ran: Run, store: str) -> None:
    found = ran("verify", store)
    assert found.status == 0
    assert "every byte is as it was written" in found.out
    report = ran("verify", store, "--json").json
    assert report["ok"] is True
    assert report["commits"] == 5
    assert report["problems"] == []


def test_verify_names_damage_by_file_and_offset(ran: Run, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with mldb.open(path) as db:
        db.store_tensor("w", np.arange(100_000.0))
    (segment,) = (path / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[200_000] ^= 1
    segment.write_bytes(data)
    found = ran("verify", path)
    assert found.status == PROBLEM
    assert segment.name in found.out
    assert "mldb repair STORE TARGET" in found.out
    assert ran("verify", path, "--json").json["problems"][0]["file"] == f"segments/{segment.name}"


def test_a_plan_changes_nothing_and_compaction_gives_back_what_it_says(
    ran: Run, store: str
) -> None:
    assert ran("retention", store, "--last", 1).status == 0
    before = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(store))
    plan = ran("compact", store, "--plan", "--json").json
    after = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(store))
    assert [name for name, _ in before] == [name for name, _ in after]
    assert plan["planned_only"] is True
    assert plan["versions_dropped"] > 0
    done = ran("compact", store, "--json").json
    assert done["versions_dropped"] == plan["versions_dropped"]
    with mldb.open(store, mode="r") as db, pytest.raises(mldb.VersionGoneError):
        db.query_tensor("conv1_weights", as_of=2)
    assert "0 dropped" in ran("compact", store).out
    assert ran("verify", store).status == 0


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        (["--last", "3", "--every", "10"], mldb.Retention(last=3, every=10)),
        (["--max-bytes", "2k"], mldb.Retention(max_bytes=2048)),
    ],
)
def test_retention_is_set_by_rules_that_take_the_place_of_those_before(
    ran: Run, store: str, arguments: list[str], policy: mldb.Retention
) -> None:
    assert "everything is kept" in ran("retention", store).out
    ran("retention", store, "--within", "7d")
    found = ran("retention", store, *arguments)
    assert found.status == 0
    assert "compact --plan" in found.out
    with mldb.open(store, mode="r") as db:
        assert db.retention.get() == policy
    assert "everything is kept" in ran("retention", store, "--keep-all").out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--last", "0"], "0"),
        (["--within", "soon"], "soon"),
        (["--last", "2", "--keep-all"], "contradict"),
        (["--checkpoints", "2"], "limits nothing"),
        (["--max-bytes", "big"], "big"),
    ],
)
def test_rules_that_cannot_be_meant_set_nothing(
    ran: Run, store: str, arguments: list[str], word: str
) -> None:
    found = ran("retention", store, *arguments)
    assert found.status == USAGE
    assert word in found.err
    assert ran("retention", store, "--json").json["keeps_all"] is True


def test_tags_and_pins_are_set_listed_and_taken_away(ran: Run, store: str) -> None:
    assert ran("tag", store, "--set", "last", "--json").json["tags"][1]["name"] == "last"
    pinned = ran("tag", store, "--pin", "--as-of", "2", "--json").json["tags"]
    assert [(item["kind"], item["name"], item["epoch"]) for item in pinned] == [
        *(("tag", "best", 3), ("tag", "last", 4), ("pin", "", 2)),
    ]
    ran("tag", store, "--unpin", "--as-of", "2")
    ran("tag", store, "--delete", "best")
    assert ran("tag", store).out.splitlines()[1].startswith("tag\tlast\t")
    assert ran("tag", store, "--delete", "best").status == USAGE
    assert ran("tag", store, "--set", "a", "--delete", "b").status == USAGE
    assert ran("tag", store, "--as-of", "2").status == USAGE


def test_rewind_says_how_to_come_back(ran: Run, store: str) -> None:
    with mldb.open(store, mode="r") as db:
        head = db.lsn
    found = ran("rewind", store, "2", "--json").json
    assert (found["epoch"], found["left"], found["epoch_left"]) == (2, head, 4)
    with mldb.open(store, mode="r") as db:
        assert db["conv1_weights"][0, 0] == 2
    assert f"left lsn:{found['lsn']}" in ran("rewind", store, f"lsn:{head}").out
    with mldb.open(store, mode="r") as db:
        assert db["conv1_weights"][0, 0] == 4


@pytest.mark.parametrize("moment", ["head", "lsn:x", "nonesuch", "lsn:999999"])
def test_rewind_to_nowhere_changes_nothing(ran: Run, store: str, moment: str) -> None:
    with mldb.open(store, mode="r") as db:
        head = db.lsn
    assert ran("rewind", store, moment).status == USAGE
    with mldb.open(store, mode="r") as db:
        assert db.lsn == head


def test_a_backup_has_everything_and_is_never_laid_over_something(
    ran: Run, store: str, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    assert "up to epoch 4" in ran("backup", store, target).out
    with mldb.open(target, mode="r") as db:
        assert db.query_tensor("conv1_weights", as_of=2)[0, 0] == 2
    assert ran("backup", store, target).status == USAGE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_mldb(ran: Run, shell: str) -> None:
    assert "_MLDB_COMPLETE" in ran("completion", shell).out


def test_a_shell_gets_the_commands_that_fit() -> None:
    asked = {**os.environ, "_MLDB_COMPLETE": "bash_complete"}
    asked |= {"COMP_WORDS": "mldb ver", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "mldb.tools"]
    done = subprocess.run(command, env=asked, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,verify\n"


def test_demo_refuses_a_folder_that_is_not_empty(ran: Run, store: str) -> None:
    found = ran("demo", "--path", store)
    assert found.status == USAGE
