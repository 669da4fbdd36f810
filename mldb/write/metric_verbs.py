"""Logging metrics: a few numbers for every step of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

from mldb.errors import ClosedError
from mldb.history.kinds import METRICS_LOGGED
from mldb.history.kinds.changes import attr_draft, records_of
from mldb.history.kinds.metrics import metrics_logged
from mldb.log.frame import Record
from mldb.log.index.address import Lsn
from mldb.write.handle import Handle
from mldb.write.safe_points import safe_point


class MetricVerbs(Handle):
    """Metrics of a database. Any thread."""

    @overload
    def log(
        self,
        values: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
        buffer: Literal[False] = False,
    ) -> Lsn: ...
    @overload
    def log(
        self,
        values: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
        buffer: bool,
    ) -> Lsn | None: ...

    def log(
        self,
        values: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
        buffer: bool = False,
    ) -> Lsn | None:
        """Log numbers by name, as ``db.log({"loss": 0.3, "lr": 1e-3}, step=7)``; return the commit.

        *values*: numbers of Python or NumPy, arrays without axes, torch scalars on any device. They
        become float64; NaN and infinities are values; an int that float64 does not have (above
        2**53) is refused. Names follow the rules of tensors and may hold ``/``. *epoch*: as for
        every commit, None takes the head's. *step*: an int from 0. ``db.metrics(name)`` is the
        curve.

        With ``buffer=True`` the call returns None at once. Such calls are stored together: within a
        second, before every other commit of this handle, on ``sync`` and ``close``, and at the end
        of the program. A killed process loses those of the last second. Of another epoch than the
        head's they wait for the checkpoints that are on their way (``wait=False``). What goes wrong
        behind is raised by the next call of ``log``, by ``sync`` or ``close``; the points wait on.
        A signal handler may log with ``buffer=True``, whatever it interrupts.

        A rewind cuts a curve as it cuts tensors. Retention does not: a curve is history, so a kept
        commit keeps all points in front of it on its lineage, and ``max_bytes`` counts them. Points
        of commits that a rewind left behind go with the last of these.

        Raises InvalidTypeError, InvalidValueError and InvalidNameError that name the metric,
        EpochOrderError, ReentryError (without *buffer*, inside a call of the same thread that
        stores), ReadOnlyError, ClosedError, and what storing raises; then nothing is logged.

        Cost: O(values), and a commit; with ``buffer=True`` one for many calls.
        """
        self._guard()
        if self.options.mode != "rw":
            self._log.sequencer  # noqa: B018 - raises ReadOnlyError
        waiting = self._metrics
        if waiting.failed is not None:
            waiting.raise_failed()
        if buffer:
            now = self._log.fs.time_ns()
            item = waiting.add(epoch, waiting.plans.rows(values, step, now))
            if self._closed and waiting.take_back(item):
                raise ClosedError(f"the store {self.path} was closed. Nothing was logged.")
            safe_point(outermost=True)
            return None
        self._settle_background()
        rows = self.metric_rows(values, step)
        if len(rows) == 1:
            records = [Record(METRICS_LOGGED, [attr_draft(*rows[0])])]
        else:
            records = records_of([metrics_logged(*row) for row in rows])
        row = self._commit(records, epoch)
        safe_point(outermost=True)
        return Lsn(row.lsn)
