"""How far long work is: a bar on stderr, only where a person looks at it, and waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int, int], None]

_PATIENCE: Final = 0.5
"""Seconds before anything is said: what ends sooner needs no bar, and pays for none."""


@contextmanager
def progress_bar(what: str, *, unit: str = "bytes", quiet: bool = False) -> Iterator[Advance]:
    """Yield a function of (done, in all) that moves a bar; does nothing without a terminal.

    *unit* "bytes" shows sizes and a rate, any other word counts. The bar comes after half a second
    and is gone when the block ends, also by an error or Ctrl-C. Any one thread at a time.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    started = time.monotonic()
    shown: list[tuple[Progress, Any]] = []

    def move(done: int, total: int) -> None:
        if not shown:
            if time.monotonic() - started < _PATIENCE:
                return
            bars = _bars(unit)
            shown.append((bars, bars.add_task(what, total=None)))
            bars.start()
        bars, task = shown[0]
        bars.update(task, completed=done, total=total or None)

    try:
        yield move
    finally:
        for bars, _ in shown:
            bars.stop()


def _bars(unit: str) -> Progress:
    from rich import progress
    from rich.console import Console

    sizes = (
        (progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn())
        if unit == "bytes"
        else (progress.MofNCompleteColumn(), progress.TextColumn(unit))
    )
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *sizes,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def patience(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Say *what* goes on after a while, for what cannot tell how far it is; then take it back.

    Costs next to nothing where it ends before, or nobody looks.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    line = f"{what}... Ctrl-C ends it"
    said = threading.Event()

    def say() -> None:
        said.set()
        print(line, end="\r", file=sys.stderr, flush=True)

    timer = threading.Timer(_PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if said.is_set():
            print(" " * len(line), end="\r", file=sys.stderr, flush=True)
