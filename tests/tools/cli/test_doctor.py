"""mldb doctor: its status, its tables, its JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mldb
from mldb.compaction.status import WorkerStatus
from mldb.log.fs.posix import OsFileSystem
from mldb.tools.cli.main import PROBLEM, USAGE

Run = Callable[..., Any]


def test_a_store_that_is_well(ran: Run, store: str) -> None:
    found = ran("doctor", store)
    assert found.status == 0
    assert "no problem was found" in found.out
    every = ran("doctor", store, "--all").out
    subjects = ("store", "disk", "manifests", "locks", "processes", "segments", "retention")
    for subject in (*subjects, "native"):
        assert f"\nok\t{subject}\t" in every or f"\nnote\t{subject}\t" in every
    document = ran("doctor", store, "--json").json
    assert document["ok"] is True
    assert {item["name"]: item["state"] for item in document["locks"]}["LOCK"] == "free"
    assert document["folder"]["files"]["segments"] == 1


def test_a_problem_has_its_status_and_the_next_command_names_the_store(
    ran: Run, store: str
) -> None:
    WorkerStatus(7, 1, state="failed", error="boom \x1b[2J").save(OsFileSystem(store))
    found = ran("doctor", store)
    assert found.status == PROBLEM
    assert "boom \\x1b[2J" in found.out
    assert f"mldb compact {store}" in found.out
    assert "no problem" not in found.out
    assert ran("doctor", store, "--json").status == PROBLEM


def test_a_store_that_does_not_open_is_no_usage_error(ran: Run, store: str) -> None:
    for manifest in Path(store).glob("MANIFEST-*"):
        manifest.unlink()
    found = ran("doctor", store)
    assert found.status == PROBLEM
    assert "cannot be read as it is" in found.out
    assert ran("doctor", store + "-not").status == USAGE


def test_who_keeps_bytes_is_listed(ran: Run, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for epoch in range(1, 5):
            db.store_tensor("w", np.random.default_rng(epoch).random(10_000), epoch=epoch)
        db.tag("old\u202e", 2)
        db.retention.set(last=1)
    found = ran("doctor", path)
    assert "tag\told\\u202e\t1\t1\t78" in found.out
    (keeper,) = [
        item for item in ran("doctor", path, "--json").json["keepers"] if item["kind"] == "tag"
    ]
    assert keeper["bytes"] > 80_000
