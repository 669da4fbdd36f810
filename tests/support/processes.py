"""Forked children that talk with the test over pipes: quick to start, and killed when a test ends.

A child is forked from the running test, so it starts warm, with everything imported. It ends with
``os._exit``: what the parent has open is neither flushed nor closed in it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator

from mldb.closing import Closing

PATIENCE_SECONDS = 60


class Line:
    """One end of a conversation in lines of words."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._heard = b""

    def say(self, *words: object) -> None:
        """Send a line; shorter than PIPE_BUF, so that it arrives whole or not at all."""
        os.write(self._writing, " ".join(map(str, words)).encode() + b"\n")

    def hear(self) -> list[str]:
        """Return the words of the next line; nothing at the end. An endless silence is an error."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._heard:
            if not select.select([self._reading], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(f"nothing was heard for {PATIENCE_SECONDS} s")
            data = os.read(self._reading, 1 << 16)
            if not data:
                return []
            self._heard += data
        line, self._heard = self._heard.split(b"\n", 1)
        return line.decode().split()

    def rest(self) -> Iterator[list[str]]:
        """Yield the lines that are left, until the other end is closed."""
        while words := self.hear():
            yield words

    def hang_up(self) -> None:
        """Close this end."""
        os.close(self._reading)
        os.close(self._writing)


class Child(Line, Closing):
    """A forked process that runs *action* with its end of the line. A context manager."""

    def __init__(self, action: Callable[[Line], None]) -> None:
        down, up = os.pipe(), os.pipe()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Other tests may have left threads; the child touches nothing that they hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(down[1])
            os.close(up[0])
            _run(action, Line(down[0], up[1]))
        os.close(down[0])
        os.close(up[1])
        super().__init__(up[0], down[1])
        self._status: int | None = None

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, signal_number)

    def wait(self) -> int:
        """Wait for the end; return the exit status, negative for the signal that ended it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._status is None:
            self.kill()
            self.wait()
        self.hang_up()


def _run(action: Callable[[Line], None], line: Line) -> None:
    status = 1
    try:
        signal.alarm(2 * PATIENCE_SECONDS)  # ends a child whose parent is gone
        action(line)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it was, the child must not return from here
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
