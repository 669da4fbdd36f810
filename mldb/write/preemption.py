"""Saving when a signal comes: noted at once, done where storing is safe.

Python runs a signal handler between any two steps of the main thread: inside a commit, or while it
holds a lock. Nothing can be stored there. So the handler of :func:`save_on_signal` only notes the
signal, and the user's function runs at the next *safe point*: the end of ``checkpoint`` or ``log``,
a loader's next batch, ``safe_point()``, the beginning of ``close()``, the end of the program. When
none comes within the grace, a thread sends the signal again and again, until the handler finds the
main thread in no call of mldb; then the function runs in the handler, and what it stores is marked
as interrupted.

Everything here belongs to the process, as signals do: one record for each signal that is listened
to, with the functions of all databases, in the order in which they were given. What all of mldb
asks of it stands in :mod:`mldb.write.safe_points`; this module is loaded when a signal is to be
heard.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from numbers import Integral
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, Literal

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.integers import seconds
from mldb.state import background, lost
from mldb.write.metric_log import finish_metrics
from mldb.write.safe_points import (
    Serving,
    is_inside_mldb,
    is_main_thread,
    noted,
    require_main_thread,
    safe_point,
    serving,
    turn,
)
from mldb.write.safe_points import heard as heard_signals

Then = Literal["default", "continue"]

_AGAIN_SECONDS: Final = 0.05  # how often the signal is sent again once the grace is over
_GRACE_MAX: Final = 1e6
_FAULTS: Final = frozenset({"SIGSEGV", "SIGFPE", "SIGILL", "SIGBUS", "SIGKILL", "SIGSTOP"})
_DEFAULTS: Final = (signal.SIG_DFL, signal.default_int_handler)


class SavedOnSignal:
    """What ``db.save_on_signal`` set up. A context manager; leaving the block cancels it.

    Leaving the block is a safe point, too: what waits there runs first.
    """

    def __init__(
        self, owner: object, signum: int, fn: Callable[[], object], grace: float, then: Then
    ) -> None:
        self.signum = signum
        self.fn = fn
        self.grace = grace
        self.then = then
        self.owner = owner

    @property
    def active(self) -> bool:
        """Whether the signal is still listened to for this one."""
        heard = _heard.get(self.signum)
        return heard is not None and self in heard.saves

    def cancel(self) -> None:
        """Let the signal do again what it did before. Any thread; a second call does nothing.

        A signal that was noted and not dealt with is handed on, as if it came now.
        """
        _remove(self)

    def __enter__(self) -> SavedOnSignal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            safe_point()
        finally:
            self.cancel()

    def __repr__(self) -> str:
        """One line: signal, grace, what comes then, and whether it is active."""
        name, state = signal.Signals(self.signum).name, "" if self.active else " cancelled"
        return f"<SavedOnSignal {name} grace={self.grace} then={self.then!r}{state}>"


class _Heard:
    """A signal that is listened to: for whom, and what was there before."""

    __slots__ = ("former", "pid", "saves", "signum")

    def __init__(self, signum: int, former: Any) -> None:
        self.signum = signum
        self.former = former
        self.pid = os.getpid()
        self.saves: tuple[SavedOnSignal, ...] = ()

    def act_as_before(self, frame: FrameType | None) -> None:
        """Do what the signal did before it was listened to."""
        former = self.former
        if former is signal.SIG_DFL:
            signal.signal(self.signum, signal.SIG_DFL)
            signal.raise_signal(self.signum)
            # Still here: it does no more than stop a process, or this is the first of a container.
            if self.saves:
                signal.signal(self.signum, _handle)
        elif callable(former):
            former(self.signum, frame)


class _Note:
    """A signal that came and was not dealt with yet. It comes again when the grace is over."""

    __slots__ = ("_ended", "_main", "_stop", "_thread", "deadline", "signum")

    def __init__(self, signum: int, grace: float) -> None:
        self.signum = signum
        self.deadline = time.monotonic() + grace
        self._main = threading.main_thread().ident
        self._thread: int | None = None
        self._stop: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    @property
    def is_late(self) -> bool:
        """Whether the grace is over."""
        return time.monotonic() >= self.deadline

    def start(self) -> None:
        """See that the signal comes again. Nothing here waits for a lock: we are in a handler."""
        if self._thread is None:
            with suppress(RuntimeError):  # no thread to be had: the next such signal tries again
                self._thread = _thread.start_new_thread(self._send_again, ())

    def _send_again(self) -> None:
        wait = max(0.0, self.deadline - time.monotonic())
        try:
            while True:
                with suppress(Empty):
                    self._stop.get(timeout=wait)
                    return
                if _noted.get(self.signum) is not self or self._main is None:
                    return
                signal.pthread_kill(self._main, self.signum)
                wait = _AGAIN_SECONDS
        finally:
            self._ended.put(None)

    def end(self) -> None:
        """Return when the signal is not sent again any more."""
        self._stop.put(None)
        if self._thread is not None:
            with suppress(Empty):
                self._ended.get(timeout=1.0)
            self._thread = None


_heard: Final[dict[int, _Heard]] = heard_signals
_noted: Final[dict[int, _Note]] = noted


# --- setting up -----------------------------------------------------------------------------------


def save_on_signal(
    owner: object, signum: int, fn: Callable[[], object], grace: float, then: Then
) -> SavedOnSignal:
    """See ``MLDatabase.save_on_signal``; *owner* is the database. Replaces its earlier one."""
    require_main_thread("save_on_signal")
    number = _check_signal(signum)
    if not callable(fn):
        raise InvalidTypeError(f"fn is a {type(fn).__name__}, not a function to call")
    grace = seconds("grace", grace, _GRACE_MAX)
    if then not in ("default", "continue"):
        raise InvalidValueError(f"then={then!r} is not one of 'default', 'continue'")
    save = SavedOnSignal(owner, number, fn, grace, then)
    _add(save)
    return save


def _check_signal(signum: object) -> int:
    if isinstance(signum, bool) or not isinstance(signum, Integral):
        raise InvalidTypeError(f"signum is a {type(signum).__name__}, not a signal number")
    try:
        found = signal.Signals(int(signum))
    except ValueError:
        raise InvalidValueError(f"signum={signum} is no signal of this system") from None
    if found.name in _FAULTS:
        raise InvalidValueError(f"{found.name} leaves no time to save, or cannot be handled at all")
    if signal.getsignal(found) is None:
        raise InvalidValueError(
            f"{found.name} is handled by something that is not Python and could not be called "
            "afterwards. Nothing was changed."
        )
    return int(found)


def _add(save: SavedOnSignal) -> None:
    signum = save.signum
    heard = _heard.get(signum)
    if heard is None:
        heard = _heard[signum] = _Heard(signum, signal.getsignal(signum))
    saves = heard.saves
    if any(other.owner is save.owner for other in saves):
        heard.saves = tuple(save if other.owner is save.owner else other for other in saves)
    else:
        heard.saves = (*saves, save)
    current = signal.getsignal(signum)
    if current is not _handle:  # the first one, or somebody put another one in the place of ours
        heard.former = current
        signal.signal(signum, _handle)


def cancel_all(owner: object) -> None:
    """Cancel what *owner* set up, for every signal. Any thread."""
    for heard in list(_heard.values()):
        for save in heard.saves:
            if save.owner is owner:
                _remove(save)


def _remove(save: SavedOnSignal) -> None:
    heard = _heard.get(save.signum)
    if heard is None or save not in heard.saves:
        return
    heard.saves = tuple(other for other in heard.saves if other is not save)
    if heard.saves or (turn.is_inside() and Serving.signum == heard.signum):
        return  # a run that goes on does what was done before, too
    if not is_main_thread():
        # Only the main thread may change handlers. Ours stays, and hands everything on.
        main = threading.main_thread().ident
        if heard.signum in _noted and main is not None:
            signal.pthread_kill(main, heard.signum)
        return
    _restore(heard)
    note = _noted.pop(heard.signum, None)
    if note is not None:
        note.end()
        heard.act_as_before(sys._getframe())


def _restore(heard: _Heard) -> None:
    if signal.getsignal(heard.signum) is _handle:  # else somebody may call ours from theirs
        signal.signal(heard.signum, heard.former)
        _heard.pop(heard.signum, None)


def _restore_in_child() -> None:
    """After a fork the child treats signals as before the installation."""
    _noted.clear()
    for heard in list(_heard.values()):
        heard.saves = ()
        _restore(heard)


os.register_at_fork(after_in_child=_restore_in_child)


# --- when a signal comes --------------------------------------------------------------------------


def _handle(signum: int, frame: FrameType | None) -> None:
    """The handler: notes the signal; saves when the grace is over and no call of mldb runs."""
    heard = _heard.get(signum)
    if heard is None:
        return
    if not heard.saves or heard.pid != os.getpid():
        _noted.pop(signum, None)
        heard.act_as_before(frame)
        return
    saving = turn.is_inside()
    if saving and Serving.signum == signum:
        return  # once is enough
    note = _noted.get(signum)
    if note is None:
        note = _noted[signum] = _Note(signum, min(save.grace for save in heard.saves))
    if saving or not note.is_late or is_inside_mldb(frame):
        note.start()
    else:
        _save(frame, late=note)


def _save(frame: FrameType | None, late: _Note | None = None) -> None:
    """Serve every signal that was noted, or the *late* one alone, in the middle of anything."""
    guard = turn.hold_unless_inside()
    if guard is None:
        return
    with guard:
        while _noted:
            signum = next(iter(_noted)) if late is None else late.signum
            heard = _heard.get(signum)
            if heard is None:
                _noted.pop(signum, None)
            else:
                _serve(heard, frame, forced=late is not None)
            if late is not None:
                return


def _serve(heard: _Heard, frame: FrameType | None, *, forced: bool) -> None:
    """Run the functions of one signal, all of them, and then do what the signal did before."""
    failed: list[BaseException] = []
    saves = heard.saves
    Serving.signum, Serving.forced = heard.signum, forced
    try:
        for save in saves:
            try:
                save.fn()
            except BaseException as failure:  # noqa: BLE001 - raised when all had their turn
                failed.append(failure)
    finally:
        Serving.forced = False
        note = _noted.get(heard.signum)
        if note is not None:
            note.end()  # what it sends until here is a repeat
            _noted.pop(heard.signum, None)
        Serving.signum = 0
    if not heard.saves:  # they were cancelled meanwhile
        _restore(heard)
    for error in failed[1:]:
        import logging

        logging.getLogger(__name__).error(
            "another function of save_on_signal failed as well", exc_info=error
        )
    if failed:
        raise failed[0]
    if heard.former in _DEFAULTS:
        if {save.then for save in saves} == {"continue"}:
            return
        if heard.former is signal.SIG_DFL:
            finish_metrics()
            lost.tell(background.finish_all())
    heard.act_as_before(frame)


def _end() -> None:
    """The end of the program is the last safe point."""
    import traceback

    try:
        safe_point()
    except SystemExit:
        return
    except BaseException:  # noqa: BLE001 - nobody is left who could handle it
        lost.end_process([f"saving on a signal failed at exit:\n{traceback.format_exc()}"])


serving[:] = [_save]
atexit.register(_end)
