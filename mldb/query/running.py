"""StoppableWork that can be stopped: in a thread of its own, while the caller waits.

DuckDB looks for signals only between steps that may take minutes, and NumPy never. The thread that
waits is open to Ctrl-C at any time, and what works is told to stop; so no state of queries is ever
left half done by it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_Answer = TypeVar("_Answer")

_LOOK_SECONDS = 0.02


class StoppedError(Exception):
    """Raised inside work that was told to stop; who waits for it knows why."""


class StoppableWork(Generic[_Answer]):
    """One piece of work. ``is_stopped`` is set when it shall end; *interrupt* ends what blocks."""

    def __init__(
        self, what: Callable[[StoppableWork[_Answer]], _Answer], interrupt: Callable[[], Any]
    ) -> None:
        self._what = what
        self._interrupt = interrupt
        self._done = threading.Event()
        self._answer: list[_Answer] = []
        self._error: BaseException | None = None
        self.is_stopped = False

    def check(self) -> None:
        """Raise StoppedError when the work shall end; called now and then by the work itself."""
        if self.is_stopped:
            raise StoppedError

    def _run(self) -> None:
        try:
            self._answer.append(self._what(self))
        except BaseException as error:  # noqa: BLE001 - told to who waits
            self._error = error
        finally:
            self._done.set()

    def answer(self, timeout: float) -> _Answer:
        """Do the work and return what it returns, or raise what it raises.

        Raises TimeoutError after *timeout* seconds. Then, and when the wait is interrupted, the
        work is stopped and has ended before this returns.
        """
        threading.Thread(target=self._run, name="mldb query", daemon=True).start()
        try:
            if not self._done.wait(timeout):
                raise TimeoutError
        finally:
            self.stop()
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def stop(self) -> None:
        """Tell the work to end, and wait until it has."""
        self.is_stopped = True
        # What interrupts is forgotten where nothing runs yet, so it is said again.
        while not self._done.is_set():
            self._interrupt()
            self._done.wait(_LOOK_SECONDS)
