"""What --help prints, word for word.

MLDB_GOLDEN=write makes the files anew: read the difference before it is committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mldb.tools.cli.main import COMMAND_LINES

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = [name for name in COMMAND_LINES if find_spec(f"mldb.tools.cli.commands.{name}_command")]
WIDTH = 80


def check_golden(name: str, text: str) -> None:
    """Compare *text* with the file of that name, or write it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("MLDB_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing; MLDB_GOLDEN=write makes it"
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def helped(ran: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``helped("ls")``: what it prints at a width that is the same everywhere."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def run(*words: str) -> str:
        found = ran(*words, "--help")
        assert (found.status, found.err) == (0, "")
        out: str = found.out
        return out

    return run


def test_help_lists_every_command(helped: Callable[..., str]) -> None:
    check_golden("help", helped())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(helped: Callable[..., str], name: str) -> None:
    text = helped(name)
    check_golden(f"help_{name}", text)
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_no_help_is_left_of_a_command_that_is_gone() -> None:
    known = {"help", *(f"help_{name}" for name in COMMAND_LINES)}
    assert {path.stem for path in GOLDEN.glob("help*.txt")} <= known
