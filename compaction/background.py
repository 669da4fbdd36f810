"""Background compaction as the process sees it that trains: when a worker starts, and how it ends.

What a pass would give back is for the worker to find out. Here is only asked whether enough came
since the last worker looked that one could be worth it: a comparison of two numbers at a seal and
after a checkpoint, and a look at a small file where they say so. Nothing here is an error of who
trains: what goes wrong is told by ``stats()``.
"""

from __future__ import annotations

import atexit
import math
import sys
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mldb.compaction.waiting import WaitingLakes
from mldb.errors import MldbError
from mldb.log.aside import Aside
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.process import CURRENT
from mldb.log.log import Log
from mldb.log.ownership import OwnedLock

if TYPE_CHECKING:
    from mldb.compaction.gate import StandingWish, Wish
    from mldb.compaction.status import WorkerStatus
    from mldb.compaction.waiting import IsDue
    from mldb.log.fs.child import Companion

CORES_MIN: Final = 2
EACH_SECONDS: Final = 60.0
"""From one start to the next it takes at least so long."""
AGAIN_SECONDS: Final = 600.0
"""After a worker that failed, none starts for so long."""
OUTDATED_NS: Final = 24 * 3600 * 10**9
"""What was found is believed for a day: versions become cold with time alone."""
STOP_SECONDS: Final = 2.0
"""How long a worker that is asked to end may take before it is killed."""
GIVE_WAY_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.02
_COMMAND: Final = ("-P", "-m", "mldb.worker")
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_all: Final[weakref.WeakSet[BackgroundCompaction]] = weakref.WeakSet()


def size_due(status: WorkerStatus | None, now: int, least: int, share: float) -> int:
    """Return from which size of the store on a pass may give back *least* bytes and the *share*.

    At best all that came since the last look comes back: of x bytes more, ``left + x`` of
    ``size + x``.
    """
    if status is None or not status.looked or abs(now - status.looked) >= OUTDATED_NS:
        return max(least, 1)
    if share >= 1:
        return sys.maxsize
    more = max(least - status.left, math.ceil((share * status.size - status.left) / (1 - share)))
    return status.size + max(more, 0)


class BackgroundCompaction:
    """The background compaction of one handle. Any thread; never raises to who trains.

    ``_turn`` guards the worker. A call that finds it taken leaves things to who has it.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._options = log.options
        self._process = CURRENT[0]
        self._turn = OwnedLock("the background compaction of this handle")
        self._worker: Companion | None = None
        self._pause: StandingWish | None = None
        self._due_at = self._options.compaction_gain_bytes
        self._due_since = 0  # the manifest that was current then
        self._not_before = 0.0
        self._outdated_at = float("inf")
        self._waiting = WaitingLakes()
        self._error = ""
        self._why_not: str | None = None
        self._closed = False
        is_on = bool(self._options.background_compaction) and self._options.mode == "rw"
        self._is_on = is_on and isinstance(log.fs, OsFileSystem)
        if self._is_on:
            _all.add(self)
            log.state.directory.on_seal = _weakly(self)

    # --- starting ---------------------------------------------------------------------------------

    def note_seal(self) -> None:
        """A segment was sealed; the commit lock is held, so that the look is taken aside."""
        if self._is_due():
            Aside(self._try)
        elif self._may_ask():
            Aside(self._try_waiting)

    def look(self) -> None:
        """Start a worker where one may be worth it. Call it behind a checkpoint, with no lock held.

        Costs a comparison where nothing was sealed since, else some microseconds; some milliseconds
        where a worker starts.
        """
        if self._is_due():
            self._try()
        if self._may_ask():
            Aside(self._try_waiting)

    def look_for(self, lake: str, is_due: IsDue) -> None:
        """Start a worker for the policies of lakes where *is_due* says so.

        That is asked in a thread aside, once, when a worker may start. Costs a comparison where it
        is too early.
        """
        if self._is_on and not self._closed and not self.why_not():
            self._waiting.add(lake, is_due)
            if self._may_ask():
                Aside(self._try_waiting)

    def _may_ask(self) -> bool:
        is_own = not self._closed and self._process is CURRENT[0]
        return is_own and self._waiting.may_ask(self._not_before)

    def _try_waiting(self) -> None:
        from mldb.compaction.worker import CONSOLIDATION

        guard = self._turn.try_hold()
        if guard is None:
            return
        with guard:
            try:
                if self._is_running() or not self._may_start():
                    self._waiting.note_refusal()
                elif self._waiting.take_due():
                    self._worker = self._started(CONSOLIDATION)
                    self._not_before = time.monotonic() + EACH_SECONDS
            except (MldbError, OSError) as error:
                self._note_failure(f"{type(error).__name__}: {error}")

    def _may_start(self) -> bool:
        """Whether there is no worker of any process, and nobody who wants none to go on."""
        from mldb.compaction.gate import wishes
        from mldb.compaction.status import has_worker

        fs = self._log.fs
        return not self._closed and not has_worker(fs) and not wishes(fs)

    def _try(self) -> None:
        guard = self._turn.try_hold()
        if guard is None:
            return
        with guard:
            try:
                self._look()
            except (MldbError, OSError) as error:
                self._note_failure(f"{type(error).__name__}: {error}")

    def look_anew(self) -> None:
        """Forget what was found before, as when the retention was changed, and look."""
        if self._options.compaction_drops:
            self._due_at, self._due_since, self._not_before = 0, 0, 0.0
            self.look()

    def _is_due(self) -> bool:
        """Whether a look is worth while. The size is asked for once in a manifest."""
        if not self._is_on or self._closed or self._process is not CURRENT[0]:
            return False
        if self._worker is not None:
            return True  # it may have ended
        now = time.monotonic()
        manifest = self._log.state.manifest
        if now < self._not_before:
            return False
        if now < self._outdated_at and manifest.number == self._due_since:
            return False
        self._due_since = manifest.number
        return now >= self._outdated_at or self._size() >= self._due_at

    def _size(self) -> int:
        state = self._log.state
        return sum(info.length for info in state.manifest.segments) + state.active.cursor.offset

    def _look(self) -> None:
        from mldb.compaction.status import has_worker, load_status

        fs, options = self._log.fs, self._options
        if self._is_running() or self._closed or self.why_not():
            return
        least = options.compaction_gain_bytes
        if self._due_at:  # else it is to be found anew
            self._due_at = self._size_due(load_status(fs))
        self._outdated_at = time.monotonic() + OUTDATED_NS / 1e9
        if self._size() < max(self._due_at, least) or has_worker(fs):
            return
        self._worker = self._started()
        self._not_before = time.monotonic() + EACH_SECONDS
        self._due_at = self._size_due(None)
        self._due_since = 0

    def _size_due(self, status: WorkerStatus | None) -> int:
        options = self._options
        least, share = options.compaction_gain_bytes, options.compaction_gain_share
        return size_due(status, self._log.fs.time_ns(), least, share)

    def _started(self, job: str = "") -> Companion:
        from mldb.compaction.worker import WorkerOrder
        from mldb.log.fs.child import Companion, absolute, plain_environment

        log, options = self._log, self._options
        order = WorkerOrder(
            store=log.fs.root,
            store_id=log.store_id.hex(),
            parent=self._process.pid,
            rate=options.compaction_rate,
            gain_bytes=options.compaction_gain_bytes,
            gain_share=float(options.compaction_gain_share),
            drops=bool(options.compaction_drops),
            segment_bytes=options.segment_bytes,
            segment_entries=options.segment_entries,
            job=job,
        )
        environment = plain_environment() | dict.fromkeys(_ONE_THREAD, "1")
        environment["PYTHONPATH"] = ":".join(absolute(sys.path))
        return Companion([sys.executable, *_COMMAND, order.text()], environment)

    def why_not(self) -> str:
        """Why no worker may start here; nothing where one may."""
        if self._why_not is None:
            self._why_not = self._obstacle()
        return self._why_not

    def _obstacle(self) -> str:
        from mldb.log.fs.machine import allowed_cores, is_local

        options, fs = self._options, self._log.fs
        if not options.background_compaction:
            return "background_compaction=False"
        if options.mode == "r":
            return "the store is open for reading"
        if not isinstance(fs, OsFileSystem):
            return "the store does not lie in a folder"
        if not sys.executable or getattr(sys, "frozen", False):
            return "this program has no interpreter that could be started"
        if options.background_compaction == "auto":
            cores = allowed_cores()
            if cores < CORES_MIN:
                return f"{cores:g} cores are allowed, not {CORES_MIN}"
            if not is_local(fs.root):
                return "the disk is not known to be local"
        return ""

    # --- looking after it -------------------------------------------------------------------------

    def _is_running(self) -> bool:
        """Whether the worker of this handle runs; what became of one that ended is noted once."""
        from mldb.compaction.status import load_status, outcome_of

        worker = self._worker
        if worker is None:
            return False
        status = worker.status()
        if status is None:
            worker.said()
            return True
        self._worker = None
        if status:
            self._note_failure(outcome_of(worker.pid, status, worker.said()))
        else:
            self._error = ""
            self._due_since = 0
            self._due_at = self._size_due(load_status(self._log.fs))
        return False

    def _note_failure(self, text: str) -> None:
        self._error = text
        self._not_before = time.monotonic() + AGAIN_SECONDS

    def stats(self) -> dict[str, Any]:
        """What ``db.stats()["compaction"]`` says. Sizes in bytes; None is what cannot be told."""
        from mldb.compaction.gate import wishes
        from mldb.compaction.status import WorkerStatus, load_status

        guard = self._turn.try_hold()
        if guard is not None:
            with guard:
                self._is_running()
        fs, own = self._log.fs, self._worker
        is_at_work = self._is_at_work()
        status = load_status(fs) or WorkerStatus(0, 0)
        error = self._error or status.error
        if is_at_work is False and not error and status.is_unfinished and not self._is_at_work():
            error = f"process {status.pid} ended in the middle of its work"
        wished: set[Wish] = set()
        with suppress(MldbError):
            wished = set() if is_at_work is None else wishes(fs)
        return {
            "setting": self._options.background_compaction,
            "not_started_because": self.why_not(),
            "running": is_at_work,
            "paused": "pause" in wished,
            "pid": own.pid if own is not None else status.pid if is_at_work else None,
            "job": status.job if is_at_work else "",
            "lakes_waiting": len(self._waiting),
            "bytes_written": status.done if is_at_work else 0,
            "bytes_to_write": status.total if is_at_work else 0,
            "expected_bytes": status.left,
            "returned_bytes": status.returned,
            "last_reports": {name: dict(found) for name, found in status.reports.items()},
            "last_error": error,
        }

    def _is_at_work(self) -> bool | None:
        """Whether a worker of any process is; a reader takes no lock, and does not know."""
        from mldb.compaction.status import WORKER_LOCK, has_worker

        if self._options.mode == "r" or not isinstance(self._log.fs, OsFileSystem):
            return None if self._options.mode == "r" else False
        try:
            # Where none ever was there is no lock, and none is made.
            known = self._log.fs.exists(WORKER_LOCK)
            return self._worker is not None or (known and has_worker(self._log.fs))
        except MldbError:
            return None

    # --- pausing and ending -----------------------------------------------------------------------

    def pause(self) -> None:
        """Let no worker of any process go on with this store. Raises StorageIOError."""
        from mldb.compaction.gate import StandingWish

        if self._pause is None:
            self._pause = StandingWish(self._log.fs, "pause")

    def resume(self) -> None:
        """Take this handle's pause back."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.withdraw()

    def giving_way(self) -> StandingWish | None:
        """Have the worker of any process end, and wait for that some seconds, for who compacts.

        No other does until the request is withdrawn. None where there is none, or none can be made.
        """
        from mldb.compaction.gate import StandingWish
        from mldb.compaction.status import has_worker

        fs = self._log.fs
        request = None
        with suppress(MldbError):
            if isinstance(fs, OsFileSystem) and has_worker(fs):
                request = StandingWish(fs, "stop")
                deadline = time.monotonic() + GIVE_WAY_SECONDS
                while has_worker(fs) and time.monotonic() < deadline:
                    fs.pause(_LOOK_SECONDS)
        return request

    def close(self) -> None:
        """End the worker of this handle; waits for it, and kills it where that takes too long."""
        self._closed = True
        if self._process is not CURRENT[0]:
            return
        _all.discard(self)
        self.resume()
        guard = self._turn.hold_unless_inside()
        if guard is None:
            return
        with guard:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.stop(STOP_SECONDS)


def _weakly(compaction: BackgroundCompaction) -> Any:
    """Its ``note_seal``, without keeping it alive."""
    found = weakref.ref(compaction)

    def note() -> None:
        own = found()
        if own is not None:
            own.note_seal()

    return note


def _end() -> None:
    """At the end of the program, where stores were left open."""
    for compaction in list(_all):
        compaction.close()


atexit.register(_end)
