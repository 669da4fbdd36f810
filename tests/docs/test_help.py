"""What ``help`` says: the module in one screen and a half, and what each public call costs."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import mldb

LINES_MAX = 45
COSTLY = ("MLDatabase", "Snapshot", "Transaction", "Lake", "LakeSnapshot")

# Calls whose cost does not grow with the store: a lookup, a small commit, a value in memory.
CONSTANT = {
    "MLDatabase": {
        *("at", "begin", "commit_staging", "create_relationship", "delete_relationship"),
        *("delete_tensor", "epoch", "lake", "last_commit", "lsn", "metadata", "metric_rows"),
        *("new_staging", "on", "ops", "pause_compaction", "pin", "query", "recovery"),
        *("resume_compaction", "retention", "rewind", "safe_point", "save_on_signal"),
        *("set_metadata", "storage", "tag", "tensor_version", "transact"),
    },
    "Snapshot": {"close", "epoch", "lsn", "metadata", "query", "tensor_version", "time"},
    "Transaction": {
        *("create_relationship", "delete_relationship", "delete_tensor", "log", "metadata"),
        "set_metadata",
    },
    # A stream and a run of the policy cost what `dataset` and `consolidate` say.
    "Lake": {"at", "policy", "rows_at", "run_policy", "export_to_dataloader"},
    "LakeSnapshot": {"close", "epoch", "lsn", "rows_at"},
}


def public(name: str) -> dict[str, Any]:
    """What a class of mldb has by name and mldb itself defines."""
    kind = getattr(mldb, name)
    return {
        attribute: inspect.getattr_static(kind, attribute)
        for base in kind.__mro__
        if base.__module__.startswith("mldb")
        for attribute in vars(base)
        if not attribute.startswith("_")
    }


@pytest.mark.parametrize("name", COSTLY)
def test_what_grows_says_how(name: str) -> None:
    """Whoever adds a method says what it costs, or that it does not grow."""
    found = public(name)
    silent = {
        attribute
        for attribute, value in found.items()
        if callable(value) or isinstance(value, property | staticmethod | classmethod)
        if not re.search(r"^ *Cost: \S", inspect.getdoc(value) or "", re.MULTILINE)
    }
    assert sorted(silent - CONSTANT[name]) == []


def test_help_of_the_module_is_short_and_names_what_is_there() -> None:
    text = mldb.__doc__
    assert text is not None
    assert text.count("\n") <= LINES_MAX
    table = text[text.index("Ten names to know:") : text.index("Read on:")]
    calls = [line.split("  ")[0] for line in table.splitlines()[1:] if line]
    assert len(calls) == 10
    named = re.findall(r"\b(mldb|db)\.(\w+)", text)
    there = {"mldb": {*mldb.__all__, "errors"}, "db": set(public("MLDatabase"))}
    assert [f"{of}.{name}" for of, name in named if name not in there[of]] == []
