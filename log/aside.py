"""One call in a second thread, beside what the caller does: hashing beside writing, say.

An executor, and even ``threading.Thread``, takes locks that do not know their owner: a signal
handler that starts a thread while its own thread is starting one would wait for itself. What is
used here takes none.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Generic, TypeAlias, TypeVar

_T = TypeVar("_T")

OVERLAP_BYTES: Final = 4 << 20
"""From this payload size on, hashing and writing overlap."""
BESIDE_BYTES: Final = 16 << 20
"""What of a pending segment is hashed while it is written: less is hashed before a thread runs."""

Promptly: TypeAlias = "Callable[[Callable[[], None]], None]"
"""Makes a call that others wait for, and returns when it has ended; raises what it raises.

Where a thread runs behind everybody else, another one makes the call.
"""


def at_once(call: Callable[[], None]) -> None:
    """Make the call here."""
    call()


class Aside(Generic[_T]):
    """A call that is under way in a thread of its own. Made and asked by one thread.

    Where the system or the end of the interpreter allows no thread, the call is made at once.
    """

    __slots__ = ("_call", "_ended")

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._ended: SimpleQueue[tuple[_T | None, BaseException | None]] = SimpleQueue()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self._ended.put((self._call(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised to who asks for the result
            self._ended.put((None, error))

    def result(self) -> _T:
        """Wait for the end of the call; return what it returned, raise what it raised."""
        found, error = outcome = self._ended.get()
        self._ended.put(outcome)  # for who asks again
        if error is not None:
            raise error
        return found  # type: ignore[return-value]  # None only where the call returned it
