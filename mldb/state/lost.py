"""Checkpoints that were accepted and then not stored: told to who asks, or at the process's end.

The call that handed such a checkpoint over returned long ago. The next write, ``result()`` and
``close()`` raise the error. When none of them came, the end of the process tells it, and is no
success.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NoReturn

EXIT_LOST: Final = 70
"""The exit status of a process that lost a checkpoint; EX_SOFTWARE of sysexits.h."""

numbers: Final = itertools.count(1)
"""The numbers of the checkpoints that are taken behind, in this process."""

_unseen: Final[dict[int, str]] = {}


def _forget_in_child() -> None:
    _unseen.clear()  # they are the parent's, who tells them


os.register_at_fork(after_in_child=_forget_in_child)


def note(number: int, text: str) -> None:
    """Remember that checkpoint *number* was lost, until somebody has seen it. Any thread."""
    _unseen[number] = text


def mark_seen(number: int) -> None:
    """Forget checkpoint *number*: its error was given to somebody. Any thread; harmless twice."""
    _unseen.pop(number, None)


def unseen() -> list[str]:
    """What nobody has seen so far, one line for each lost checkpoint."""
    return list(_unseen.values())


def tell(lines: Iterable[str]) -> None:
    """Write *lines* to stderr, and to the log if anybody listens to it; never raises."""
    import logging

    logger = logging.getLogger(__name__)
    for line in lines:
        with suppress(Exception):
            print(f"mldb: {line}", file=sys.stderr, flush=True)
        with suppress(Exception):
            if logger.hasHandlers():  # without any, logging would write to stderr once more
                logger.error("%s", line)


def end_process(lines: Iterable[str]) -> NoReturn:
    """Tell *lines* and end the process at once, with EXIT_LOST. Any thread.

    Nothing else can change the exit status at this point. What ``atexit`` would have called after
    this does not come any more, but for what the log does.
    """
    tell(lines)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(Exception):
        import logging

        logging.shutdown()
    os._exit(EXIT_LOST)
