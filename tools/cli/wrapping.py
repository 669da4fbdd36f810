"""Lines that fit a terminal, counted in the cells that characters take there."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator
from typing import Final, TextIO

_LEAST: Final = 20
"""Columns of a terminal below which lines are left to it."""


def print_fitted(text: str, stream: TextIO, *, hang: int = 0) -> None:
    """Print a line; where *stream* is a terminal, broken to its width, *hang* blanks before more.

    Elsewhere it stays one line, for programs that read lines.
    """
    if not stream.isatty():
        print(text, file=stream)
        return
    width = max(shutil.get_terminal_size().columns, _LEAST)
    for line in wrapped(text, width, hang=min(hang, width // 2)):
        print(line, file=stream)


def wrapped(text: str, width: int, *, hang: int = 0) -> Iterator[str]:
    """Yield the parts of a line, each at most *width* cells, broken between words where it can be.

    *width* is at least two, more than *hang*.
    """
    if text.isascii() and len(text) <= width:
        yield text
        return
    before = ""
    while text:
        room = width - len(before)
        stop = _fits(text, room)
        if stop < len(text):
            blank = text.rfind(" ", 1, stop + 1)
            if text[:blank].strip() and blank > 0:
                stop = blank
        yield before + text[:stop].rstrip()
        text = text[stop:].lstrip(" ")
        before = " " * hang


def _fits(text: str, width: int) -> int:
    """How many characters from the start fit into *width* cells; at least one."""
    cells = 0
    for place, char in enumerate(text):
        cells += cell_width(char)
        if cells > width:
            return max(place, 1)
    return len(text)


def cell_width(char: str) -> int:
    """Cells that a character takes: two for wide ones, none for marks on the one before."""
    if char.isascii():
        return 1
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
