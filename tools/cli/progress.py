"""How far long work is: a bar on stderr, only where a person looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]


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
