"""Safe points: where what ``save_on_signal`` has waiting may run, and whether it runs.

Every commit, checkpoint and step asks here, at next to no cost. What hears the signals is
:mod:`mldb.write.preemption`; a program that saves on none never loads it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from mldb.errors import UsageError
from mldb.log.ownership import OwnedLock

heard: Final[dict[int, Any]] = {}
"""The signals that are listened to, as preemption keeps them."""
noted: Final[dict[int, Any]] = {}
"""Those that came and were not dealt with yet. Changed by the main thread, in single steps."""
serving: Final[list[Callable[[FrameType | None], None]]] = []
"""What runs all that waits, given where the main thread is; there once preemption is loaded."""
turn: Final = OwnedLock("the saving on a signal")


class Serving:
    """The run in progress. Of meaning only while the main thread is inside ``turn``."""

    signum = 0
    forced = False


def safe_point(*, outermost: bool = False) -> None:
    """Serving what waits for a safe point, in the main thread; elsewhere, and mostly, do nothing.

    With *outermost* nothing is done, either, where the caller was called inside another of mldb.
    Raises what a user's function raises, and what the former handler raises.
    """
    if noted and is_main_thread() and not (outermost and is_inside_mldb(sys._getframe(2))):
        serving[0](sys._getframe(1))


def is_forced() -> bool:
    """Whether what this thread stores now is to be marked as interrupted: it runs in a handler."""
    return Serving.forced and turn.is_inside()


def require_main_thread(what: str) -> None:
    """Raise UsageError unless this is the main thread, where Python handles signals."""
    if not is_main_thread():
        raise UsageError(
            f"db.{what} was called in thread {threading.current_thread().name!r}. Python handles "
            "signals in the main thread: there the function would run, and there this call belongs."
        )


def is_main_thread() -> bool:
    """Whether this is the main thread."""
    return threading.get_ident() == threading.main_thread().ident


def is_inside_mldb(frame: FrameType | None) -> bool:
    """Whether *frame* or one of its callers is code of mldb."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and (name == "mldb" or name.startswith("mldb.")):
            return True
        frame = frame.f_back
    return False
