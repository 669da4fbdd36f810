"""What --help prints, word for word; ``tests.support.golden_text`` says how it is made anew."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from mldb.tools.cli.main import COMMAND_LINES
from tests.support.golden_text import GOLDEN_TEXTS, check_golden

COMMANDS = [name for name in COMMAND_LINES if find_spec(f"mldb.tools.cli.commands.{name}_command")]
WIDTH = 80


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
    assert {path.stem for path in GOLDEN_TEXTS.glob("help*.txt")} <= known
