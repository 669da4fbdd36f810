"""Lines fit the terminal, and what long work says is taken back."""

from __future__ import annotations

import io
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.tools.cli import progress
from mldb.tools.cli.wrapping import cell_width, print_fitted, wrapped


class Terminal(io.StringIO):
    """A stream that says a person looks at it."""

    def isatty(self) -> bool:
        return True


@given(
    st.text(st.sampled_from("ab  -层é\u0301x"), max_size=80), st.integers(4, 30), st.integers(0, 2)
)
def test_no_part_is_wider_and_no_character_is_lost(text: str, width: int, hang: int) -> None:
    parts = list(wrapped(text, width, hang=hang))
    for part in parts:
        assert sum(map(cell_width, part)) <= width
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert all(part.startswith(" " * hang) for part in parts[1:])


def test_lines_break_between_words_where_they_can() -> None:
    assert list(wrapped("one two three", 8)) == ["one two", "three"]
    assert list(wrapped("name  one two", 9, hang=6)) == ["name  one", "      two"]
    assert list(wrapped("x" * 10, 4)) == ["xxxx", "xxxx", "xx"]
    assert list(wrapped("层层层", 4)) == ["层层", "层"]
    assert list(wrapped("", 4)) == [""]


def test_a_line_for_a_program_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    file, terminal = io.StringIO(), Terminal()
    for stream in (file, terminal):
        print_fitted("word " * 10, stream)
    assert file.getvalue() == "word " * 10 + "\n"
    assert len(terminal.getvalue().splitlines()) == 3


def test_a_bar_comes_late_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress_bar("reading") as moved:
        moved(1, 2)
    assert terminal.getvalue() == "", "it took no half second"
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with progress.progress_bar("reading") as moved:
        moved(1, 2)
    assert "reading" in terminal.getvalue()
    with progress.progress_bar("hidden", quiet=True) as moved:
        moved(1, 2)
    assert "hidden" not in terminal.getvalue()


def test_a_wait_is_said_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.patience("asking"):
        pass
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with progress.patience("asking"):
        while not terminal.getvalue():
            time.sleep(0.001)
    said, blank, rest = terminal.getvalue().split("\r")
    assert said == "asking... Ctrl-C ends it"
    assert (blank, rest) == (" " * len(said), "")
