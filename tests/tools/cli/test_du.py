"""mldb du: bytes by name and by prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mldb

Run = Callable[..., Any]


def _store(path: Path) -> Path:
    with mldb.open(path, durability="os") as db, db.transaction(epoch=1) as txn:
        for layer in range(3):
            for part in ("weight", "bias"):
                name = f"model/layer{layer}.{part}"
                txn.store_tensor(name, np.random.default_rng(layer).random(20_000 * (layer + 1)))
        txn.store_tensor("other", np.zeros(10))
    return path


def test_names_are_listed_the_largest_first(ran: Run, tmp_path: Path) -> None:
    path = _store(tmp_path / "run")
    found = ran("du", path)
    rows = [line.split("\t") for line in found.out.splitlines()[:-1]]
    assert rows[0] == ["kind", "name", "versions", "stored", "decoded", "saved"]
    assert rows[1][1] == "model/layer2.bias"
    assert [int(row[3]) for row in rows[1:]] == sorted(
        (int(row[3]) for row in rows[1:]), reverse=True
    )
    assert "Saved: " in found.out


def test_names_are_summed_by_what_they_begin_with(ran: Run, tmp_path: Path) -> None:
    path = _store(tmp_path / "run")
    one = ran("du", path, "--depth", 1, "--json").json
    assert {item["name"]: item["names"] for item in one["shares"]} == {"model/": 6, "other": 1}
    two = ran("du", path, "--depth", 2, "--prefix", "model/", "--json").json
    assert [item["name"] for item in two["shares"]] == [
        "model/layer2.", "model/layer1.", "model/layer0."
    ]  # fmt: skip
    assert two["total"]["stored"] == sum(item["stored"] for item in two["shares"])
    assert two["total"]["saved"] == two["total"]["deduplicated"] > 0
    limited = ran("du", path, "-n", 2)
    assert "5 more; --limit shows them" in limited.out


def test_names_that_are_hostile_are_escaped(ran: Run, tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db["evil\u202ename"] = np.ones(3)
    assert "evil\\u202ename" in ran("du", tmp_path / "run").out


def test_nothing_is_said_of_an_empty_store(ran: Run, tmp_path: Path) -> None:
    mldb.open(tmp_path / "run").close()
    found = ran("du", tmp_path / "run")
    assert (found.status, found.err) == (0, "nothing is stored\n")
    assert ran("du", tmp_path / "nowhere").status == 2
