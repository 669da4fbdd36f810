"""Processes that are started beside this one: exec'd, never forked.

A fork of a training process copies the tables of all its memory, and the threads of its libraries
do not live on in it. ``posix_spawn`` does neither.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from mldb.log.fs.descriptor import Fd
from mldb.log.fs.process import CURRENT

_SAID_BYTES: Final = 1 << 14
_LOOK_SECONDS: Final = 0.005
_OWN_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT)
_ENVIRONMENT: Final = frozenset(
    {
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "PYTHONHOME"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
        "MLDB_PURE",  # where Python runs alone, it does so in every process
    }
)


_left: Final[list[int]] = []
"""Those that nobody looks after any more, and that have not ended when they were given up."""


class Companion:
    """A process that works for this one, in a process group of its own.

    Ctrl-C at a terminal goes to the group of this process and thus not to it. It stays in the
    session: a new one would get a share of the cores of its own from a kernel that groups by
    sessions, whatever its priority. Its stdin and stdout lead nowhere; the last of what it writes
    to stderr is kept for :meth:`said`. One thread at a time; in a forked child nothing happens.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start *command*, which begins with the path of a program. Raises OSError."""
        _wait_for_left()
        self._process = CURRENT[0]
        self._status: int | None = None
        self._heard = b""
        reading, writing = os.pipe()
        self._stderr, told = Fd(reading), Fd(writing)
        os.set_blocking(reading, False)
        actions = [
            (os.POSIX_SPAWN_DUP2, told, 2),  # first: it may be one of the two below
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
        self.pid = os.posix_spawn(
            command[0],
            list(command),
            environment,
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=_OWN_SIGNALS,
        )

    def status(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it runs.

        Where somebody else waited for it (``os.wait()`` waits for anybody's) it is 0.
        """
        if self._status is None and self._process is CURRENT[0]:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._status = 0
            else:
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def said(self) -> str:
        """The last of what it wrote to stderr so far; does not wait."""
        with suppress(BlockingIOError):
            while self._process is CURRENT[0] and (data := os.read(self._stderr, _SAID_BYTES)):
                self._heard = (self._heard + data)[-_SAID_BYTES:]
        return self._heard.decode("utf-8", "replace")

    def send(self, signum: int) -> None:
        """Send a signal, if it still runs."""
        if self._process is CURRENT[0] and self.status() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def __del__(self) -> None:
        if hasattr(self, "pid") and self._process is CURRENT[0] and self.status() is None:
            self.send(signal.SIGTERM)
            _left.append(self.pid)

    def stop(self, patience: float) -> bool:
        """Ask it to end, wait so many seconds, kill it and wait once more; whether it has ended."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            self.send(signum)
            deadline = time.monotonic() + patience
            while self._process is CURRENT[0] and self.status() is None:
                if time.monotonic() >= deadline:
                    break
                self.said()  # one that has much to say must not wait for us
                time.sleep(_LOOK_SECONDS)
        return self.status() is not None


def _wait_for_left() -> None:
    """Let the system forget those that have ended meanwhile."""
    for pid in _left[:]:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _left.remove(pid)


def plain_environment() -> dict[str, str]:
    """What of the environment a program of Python needs to start, and which half of mldb runs."""
    return {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}


def absolute(folders: Sequence[str]) -> list[str]:
    """The folders of a search path as another process finds them."""
    return [os.path.abspath(folder) for folder in folders]


def detach() -> None:
    """For the first act of a started program: leave the folder, and close what was inherited."""
    with suppress(OSError):
        os.chdir("/")
    os.closerange(3, _descriptors())


def _descriptors() -> int:
    """One above the highest descriptor that may be open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError, ValueError):
            return max(map(int, os.listdir(folder))) + 1
    return os.sysconf("SC_OPEN_MAX")


def parent_pid() -> int:
    """The process that started this one, while it lives; another one afterwards."""
    return os.getppid()
