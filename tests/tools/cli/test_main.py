"""The command line finds commands, opens stores, and turns errors into exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mldb
from mldb.errors import CorruptError, LockedError, QueryError, TensorNotFoundError
from mldb.tools.cli.main import BROKEN_PIPE, COMMAND_LINES, PROBLEM, USAGE, status_of


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_every_command_has_help_that_says_what_stands_behind_it(
    ran: Callable[..., Any], name: str
) -> None:
    found = ran(name, "--help")
    assert found.status == 0
    assert f"Usage: mldb {name}" in found.out
    assert "--json" in found.out


def test_help_and_version_import_neither_numpy_nor_torch() -> None:
    code = (
        "import sys; from mldb.tools.cli.main import main; main(['--help']); main(['--version'])\n"
        "print([name for name in ('numpy', 'torch', 'duckdb', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"mldb {mldb.__version__}" in done.stdout


def test_an_unknown_command_names_the_nearest_one(ran: Callable[..., Any]) -> None:
    found = ran("verfy", "x")
    assert found.status == USAGE
    assert "Did you mean 'verify'?" in found.err


def test_no_store_is_a_mistake_of_the_call_and_makes_no_folder(
    ran: Callable[..., Any], tmp_path: Path
) -> None:
    found = ran("ls", tmp_path / "typo")
    assert found.status == USAGE
    assert "typo" in found.err
    assert not (tmp_path / "typo").exists()


def test_a_command_that_writes_makes_no_store_of_a_folder_that_holds_something_else(
    ran: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    found = ran("tag", tmp_path, "--set", "best")
    assert found.status == USAGE
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_the_store_may_be_left_out(
    ran: Callable[..., Any], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ran("ls", store, "--json").json
    monkeypatch.setenv("MLDB_STORE", store)
    assert ran("ls", "--json").json == expected
    monkeypatch.delenv("MLDB_STORE")
    monkeypatch.chdir(Path(store).parent)
    os.rename(store, "ml_storage")
    assert ran("ls", "--json").json == expected


def test_words_are_counted_and_not_looked_up_on_the_disk(
    ran: Callable[..., Any], store: str
) -> None:
    found = ran("ls", store, "conv1_weights")
    assert found.status == USAGE
    assert "[STORE]" in found.err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TensorNotFoundError("w"), USAGE),
        (QueryError("no"), USAGE),
        (LockedError("held"), PROBLEM),
        (CorruptError("bad"), PROBLEM),
    ],
)
def test_errors_are_the_call_s_or_the_store_s(error: Any, status: int) -> None:
    assert status_of(error) == status


def test_a_closed_pipe_ends_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with mldb.open(path, durability="os") as db, db.transaction() as txn:
        for number in range(20_000):
            txn.store_tensor(f"tensor_with_a_long_name_{number}", 1.0)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mldb.tools", "ls", str(path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == BROKEN_PIPE
    assert done.stderr == ""
