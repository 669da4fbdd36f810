"""From a plan, and what was done of it, to the report that a user gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mldb.compaction.plan import CompactionPlan
from mldb.compaction.planning import Planned
from mldb.compaction.report import CompactionReport, NameReport
from mldb.compaction.rules import EventRules
from mldb.log.log import Log

_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(slots=True)
class Work:
    """What a compaction did so far. Sizes in bytes."""

    written: int = 0
    to_write: int = 0
    read: int = 0
    recoded: int = 0
    recoded_bytes: int = 0
    groups: int = 0


def report_of(
    log: Log,
    rules: EventRules,
    planned: Planned,
    work: Work | None,
    before: Mapping[str, Any] = _NOTHING,
) -> CompactionReport:
    """Return the report of a plan, or with *work* of what was done since the figures *before*."""
    plan = planned.plan
    stats = log.stats()
    goes = ~plan.stays
    size, segments = stats["bytes"], stats["segments"]
    after, left, recoded = size, segments, (len(plan.anew), _anew_bytes(plan))
    if work is None:
        after += plan.bytes_after - int(plan.table.sizes.sum())
        after += planned.footer * planned.wants_active
        left = segments - sum(group.segments - 1 for group in plan.groups)
        left += planned.wants_active  # the log goes on in another
    else:
        size, segments = before["bytes"], before["segments"]
        recoded = work.recoded, work.recoded_bytes
    return CompactionReport(
        planned_only=work is None,
        bytes_before=size,
        bytes_after=after,
        segments_before=segments,
        segments_after=left,
        commits_kept=plan.commits_kept,
        commits_pruned=plan.commits - plan.commits_kept,
        versions_kept=int(plan.stays.sum()),
        versions_dropped=int(goes.sum()),
        bytes_dropped=int(np.where(plan.table.shared, 0, plan.table.length)[goes].sum()),
        recoded=recoded[0],
        recoded_bytes=recoded[1],
        bytes_read=0 if work is None else work.read,
        names=_names(plan, rules),
    )


def _anew_bytes(plan: CompactionPlan) -> int:
    return sum(int(plan.table.length[item.row]) for item in plan.anew)


def _names(plan: CompactionPlan, rules: EventRules) -> tuple[NameReport, ...]:
    """The names of which versions go, those first that give back most."""
    table, goes = plan.table, ~plan.stays
    found: dict[str, list[int]] = {}
    for number in np.unique(table.key[goes]).tolist():
        low, high = np.searchsorted(table.key, (number, number + 1)).tolist()
        own, dropped = table.length[low:high], goes[low:high]
        figures = (high - low, int(dropped.sum()), int(own.sum()), int(own[dropped].sum()))
        known = found.setdefault(rules.shown(table.keys[number]), [0, 0, 0, 0])
        known[:] = [one + more for one, more in zip(known, figures, strict=True)]
    reports = [NameReport(name, *figures) for name, figures in found.items()]
    return tuple(sorted(reports, key=lambda item: (-item.bytes_dropped, item.name)))
