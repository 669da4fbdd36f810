"""What a checkpoint does that hangs on the head: the name it gets, and what it clears away.

Both are decided on a view before the commit lock is taken, and looked at again under it. When the
head moved in between so that another decision is due, the plan is outdated and another is made.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, TypeAlias

from mldb import keys
from mldb.errors import ConflictError
from mldb.history.kinds.changes import records_of
from mldb.history.kinds.checkpoints import CheckpointInfo, checkpoint_taken
from mldb.history.kinds.tensors import tensor_deleted
from mldb.log.frame import Record, hash_record
from mldb.log.index.address import CommitRow
from mldb.log.view import View
from mldb.names import check_name
from mldb.state.checkpointing import CheckpointJob

PlannedCommit: TypeAlias = Callable[[list[Record], Callable[[View], None]], CommitRow]
"""Commits these records when the check, called under the commit lock, lets them pass."""

_PLANS_MAX: Final = 100


class PlanOutdated(ConflictError):
    """The head moved on, and the checkpoint is to be planned anew."""


def free_name(view: View, base: str, taken: Container[str] = ()) -> str:
    """Return *base*, or the first of ``base~2``, ``base~3``, ... that is free.

    Free is what no checkpoint of the view's lineage has and *taken* does not hold. Names that were
    taken out of order may be left out; some ten lookups find the end of thousands.
    """

    def is_free(number: int) -> bool:
        name = _numbered(base, number)
        key = keys.CHECKPOINTS + check_name(name)
        return name not in taken and view.newest(key, view.intervals) is None

    low, high = 0, 1  # `low` is taken (there is no number 0), `high` will be free
    while not is_free(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if is_free(middle):
            high = middle
        else:
            low = middle
    return _numbered(base, high)


def left_behind(view: View, kept: Container[bytes]) -> list[bytes]:
    """Return the keys of tensors at the head that a checkpoint stored last, without those *kept*.

    What another verb stored last is none of a checkpoint's. Costs a look at every tensor.
    """
    intervals = view.intervals
    commits = {entry.commit_lsn for _, entry in view.live(keys.CHECKPOINTS, intervals)}
    for part in view.history(keys.LATEST_CHECKPOINT, intervals):
        commits.update(part.lsns)
    return [
        key
        for key, entry in view.live(keys.TENSORS, intervals)
        if entry.commit_lsn in commits and key not in kept
    ]


class CheckpointPlan:
    """The rest of a checkpoint, for one view: its own record, and the deletions of ``prune``."""

    def __init__(self, view: View, job: CheckpointJob) -> None:
        """Decide for the head of *view*, and give the job its name."""
        self._view = view
        self._job = job
        naming = job.naming
        if not naming.is_given and not self._is_free(view):
            naming.name = free_name(view, naming.base)
        names = (*job.tensors, *job.aliases) if job.prune else ()
        self._kept = {keys.TENSORS + check_name(name) for name in names}
        self._gone = left_behind(view, self._kept) if job.prune else []

    def records(self) -> list[Record]:
        """Return the records that come behind the tensors, hashed."""
        job = self._job
        count = len(job.tensors) + len(job.aliases)
        info = CheckpointInfo(job.name, job.step, job.metrics, count, job.nbytes, job.interrupted)
        gone = [change for key in self._gone for change in tensor_deleted(key[1:])]
        records = [*records_of(gone), checkpoint_taken(info, job.skeleton)]
        for record in records:
            hash_record(record)
        return records

    def check(self, view: View) -> None:
        """Raise PlanOutdated when the head of *view* asks for another plan."""
        if view.commit.lsn == self._view.commit.lsn:
            return
        job = self._job
        if not job.naming.is_given and not self._is_free(view):
            raise self._outdated(f"another checkpoint took the name {job.name!r}")
        if job.prune and left_behind(view, self._kept) != self._gone:
            raise self._outdated("the tensors of earlier checkpoints changed")

    def _is_free(self, view: View) -> bool:
        key = keys.CHECKPOINTS + check_name(self._job.name)
        return view.newest(key, view.intervals) is None

    def _outdated(self, what: str) -> PlanOutdated:
        return PlanOutdated(
            f"{what} while checkpoint {self._job.naming.base!r} was being stored, again and again. "
            "Nothing was stored; call it again."
        )


def commit_planned(
    job: CheckpointJob, head: Callable[[], View], commit: PlannedCommit
) -> CommitRow:
    """Plan *job* on the *head* and *commit* it, until a plan holds.

    Raises what *commit* raises, and ConflictError when others are always faster.
    """
    for _ in range(_PLANS_MAX):
        plan = CheckpointPlan(head(), job)
        try:
            return commit(plan.records(), plan.check)
        except PlanOutdated as error:
            outdated = error
    raise outdated


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}~{number}"
