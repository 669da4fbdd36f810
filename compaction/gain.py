"""What a pass would give back, found without making it: what goes, and a trial of what is encoded.

A plan counts cold versions as they are, since nobody knows what an encoding saves before it was
made, and patches that are folded as if no row were set twice. So some of them are made, spread over
the whole store, and the others are taken to save the same share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from mldb.compaction.compactor import trial_of
from mldb.compaction.folds import Anew
from mldb.compaction.frames import Recode
from mldb.compaction.planning import make_plan
from mldb.compaction.rules import ColdAge, EventRules
from mldb.compaction.table import VersionTable
from mldb.errors import MldbError
from mldb.log.log import Log

_TRIALS: Final = 24
_TRIAL_BYTES: Final = 256 << 20


class Gain(NamedTuple):
    """What the segments take, the active one included, and what a pass would give back of it."""

    size: int
    returned: int

    def is_worth(self, least: int, share: float) -> bool:
        """Whether that is so many bytes and such a share of all."""
        return self.returned > 0 and self.returned >= max(least, share * self.size)


def expected_gain(
    log: Log, rules: EventRules, cold: ColdAge, step: Callable[[], None] = lambda: None
) -> Gain:
    """Plan a pass and try what it would encode; changes nothing. *step* is called between trials.

    Raises as ``make_plan`` does.
    """
    planned = make_plan(log, rules, cold, with_active=True)
    plan = planned.plan
    table = plan.table
    known = int(table.sizes.sum())
    dropped = known - plan.bytes_after if plan.groups else 0
    trials = (
        (plan.cold, [int(table.length[item.row]) for item in plan.cold]),
        (plan.folds, [fold.size for fold in plan.folds]),
    )
    saved = sum(
        int(sum(sizes) * _share_saved(trial_of(log, rules), table, items, sizes, step))
        for items, sizes in trials
        if sum(sizes)
    )
    return Gain(known, max(dropped + saved, 0))


def _share_saved(
    recode: Recode,
    table: VersionTable,
    items: Sequence[Anew],
    sizes: Sequence[int],
    step: Callable[[], None],
) -> float:
    """The share of the *sizes* that the plan counts of *items* that storing them anew saves."""
    before = after = 0
    # Taken at regular steps of the bytes, so that a large version counts for what it takes.
    ends = np.cumsum(sizes)
    marks = (np.arange(_TRIALS) + 0.5) * (int(ends[-1]) / _TRIALS)
    for place in np.unique(np.searchsorted(ends, marks)).tolist():
        step()
        try:
            form = recode(table, items[place])
        except MldbError:  # damaged, or replaced meanwhile: the pass itself tells
            continue
        before += sizes[place]
        after += sizes[place] if form is None else len(form.data)
        if before >= _TRIAL_BYTES:
            break
    return (before - after) / before if before else 0.0
