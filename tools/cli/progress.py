"""How far long work is: a bar on stderr, only where a person looks at it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Advance = Callable[[int, int], None]

_PATIENCE: Final = 1.0
"""Seconds before something is said of what cannot tell how far it is."""


@contextmanager
def progress_bar(what: str, *, unit: str = "bytes", quiet: bool = False) -> Iterator[Advance]:
    """Yield a function of (done, in all) that moves a bar; does nothing without a terminal.

    *unit* "bytes" shows sizes and a rate, any other word counts. The bar is gone when the block
    ends, also by an error or Ctrl-C. Any one thread at a time.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    sizes = (
        (DownloadColumn(binary_units=True), TransferSpeedColumn())
        if unit == "bytes"
        else (MofNCompleteColumn(), TextColumn(unit))
    )
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        *sizes,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)


@contextmanager
def patience(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Say *what* goes on after a second, for what cannot tell how far it is; then take it back.

    Costs nothing where it ends before, or nobody looks.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    said = threading.Event()

    def say() -> None:
        said.set()
        print(f"{what}... Ctrl-C ends it", end="\r", file=sys.stderr, flush=True)

    timer = threading.Timer(_PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if said.is_set():
            blank = " " * len(f"{what}... Ctrl-C ends it")
            print(blank, end="\r", file=sys.stderr, flush=True)
