"""Whole outputs of the commands that show a run, word for word but for times."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mldb
from tests.support.golden_text import check_golden

TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?Z")
NOW = "2026-01-02 03:04:05Z"


@pytest.fixture
def run_of_values(store: str) -> str:
    """The small run with a tensor of many values and a sparkline worth looking at."""
    rng = np.random.default_rng(12)
    with mldb.open(store, durability="os") as db:
        for epoch in range(5, 17):
            values = rng.standard_normal(3_000) * (1 + epoch % 5)
            db.store_tensor("encoder.bias", values, {"note": "per channel"}, epoch=epoch)
    return store


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ls", ["ls"]),
        ("show", ["show", "encoder.bias", "--values"]),
        ("show_ascii", ["show", "encoder.bias", "--ascii", "--curve", "max"]),
        ("show_brief", ["show", "conv1_weights", "--brief", "--as-of", "2"]),
        ("show_json", ["show", "conv1_weights", "--json", "--points", "2"]),
        ("query", ["query", "SELECT name, shape, norm, versions, time FROM tensors"]),
        ("query_csv", ["query", "SELECT tensors WHERE type=weights", "--csv", "--as-of", "2"]),
        ("query_json", ["query", "SELECT relationships", "--json"]),
    ],
)
def test_output(ran: Callable[..., Any], run_of_values: str, name: str, words: list[str]) -> None:
    command, *rest = words
    found = ran(command, run_of_values, *rest)
    assert (found.status, found.err) == (0, "")
    check_golden(f"output_{name}", TIME.sub(NOW, found.out))
