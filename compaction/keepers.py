"""Who keeps which bytes: what would come back if one tag, process, or rule let go.

Pure but for the indexes that are read. A commit that two keep comes back for neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.planning import Sight, steady_sources, timeline_of
from mldb.compaction.retention import Retention, Roots, Timeline, kept_commits, left_of, on_lineage
from mldb.compaction.rules import EventRules
from mldb.compaction.table import make_table
from mldb.log.index.pause import collection_paused
from mldb.log.log import Log
from mldb.log.readers import NEEDS_NOTHING

MEASURED_MAX: Final = 50
"""So many keepers are measured, those that alone keep the most commits; each costs O(versions)."""
_AT_ONCE: Final = timedelta(0)
_ABANDONED: Final = "what a rewind left behind"


@dataclass(frozen=True, slots=True)
class Keeper:
    """One who keeps commits. ``alone`` are the commits that nobody else keeps.

    ``kind`` is "process", "tag", "pin", "checkpoint" or "rule"; ``name`` is the registration, the
    tag, the LSN of the pin or checkpoint, or the rule. ``bytes`` is about what would come back
    without it; None where it was not measured.
    """

    kind: str
    name: str
    commits: int
    alone: int
    bytes: int | None


def keepers(
    log: Log,
    rules: EventRules,
    *,
    tags: Mapping[str, int],
    pins: Sequence[int],
    readers: Mapping[str, int],
) -> tuple[Keeper, ...]:
    """Return who keeps commits beside the newest one, by the bytes that each keeps alone.

    *readers* are living registrations, each with the lowest commit that it needs. The limit
    ``max_bytes`` is left aside: it lets go what rules keep. Where everything is kept, that is the
    one rule, and nothing else matters. Raises what ``make_plan`` raises.
    """
    with collection_paused():
        view, _, sources, _ = steady_sources(log)
        table, timeline = make_table(sources), timeline_of(view, sources)
        policy, roots = rules.policy(view), rules.roots(view)
        if not len(timeline.lsn):
            return ()
        masks = _masks(policy, timeline, roots, log.fs.time_ns(), tags, pins, readers)
        sight = Sight(rules, table, timeline.jumps[:])
        newest = np.zeros(len(timeline.lsn), np.bool_)
        newest[-1] = True
        counts = np.sum([newest, *masks.values()], axis=0)
        left = np.isin(timeline.lsn, left_of(timeline.lsn, view.kept))
        alone = {key: mask & left & (counts == 1) for key, mask in masks.items()}
        kept = timeline.lsn[(counts > 0) & left]
        order = sorted(alone, key=lambda key: -int(alone[key].sum()))
        sizes = _measured(sight, kept, [(key, timeline.lsn[alone[key]]) for key in order])
    found = [
        Keeper(*key, int((masks[key] & left).sum()), int(alone[key].sum()), sizes[key])
        for key in order
    ]
    return tuple(sorted(found, key=lambda item: -(item.bytes or 0)))


_Key = tuple[str, str]


def _masks(
    policy: Retention,
    timeline: Timeline,
    roots: Roots,
    now: int,
    tags: Mapping[str, int],
    pins: Sequence[int],
    readers: Mapping[str, int],
) -> dict[_Key, Bools]:
    """Which commits each of them keeps."""
    lsn = timeline.lsn
    found: dict[_Key, Bools] = {("tag", name): lsn == target for name, target in tags.items()}
    found |= {("pin", str(target)): lsn == target for target in pins}
    found |= {
        ("process", name): lsn >= min(lowest, int(lsn[-1]))
        for name, lowest in readers.items()
        if lowest < NEEDS_NOTHING
    }
    for name, rule in _rules_of(policy).items():
        found["rule", name] = _kept_by(name, rule, timeline, now)
    count = policy.checkpoints
    named = roots.checkpoints if count is None else roots.checkpoints[-count:] if count else ()
    for target in named:
        found["checkpoint", str(target)] = lsn == target
    return {key: mask for key, mask in found.items() if mask.any()}


def _rules_of(policy: Retention) -> dict[str, Retention]:
    """The policy as one for each of its rules, by what it is called."""
    found = {
        f"{name}={getattr(policy, name)}": Retention(
            **{name: getattr(policy, name)}, abandoned=_AT_ONCE
        )
        for name in ("last", "every", "within")
        if getattr(policy, name) is not None
    }
    if policy.keeps_lineage:
        found["all of the lineage"] = Retention(abandoned=_AT_ONCE)
    if policy.abandoned != _AT_ONCE:
        found[_ABANDONED] = Retention(last=1, abandoned=policy.abandoned)
    return found


def _kept_by(name: str, rule: Retention, timeline: Timeline, now: int) -> Bools:
    """The commits that one rule keeps, but for the newest, which always stays."""
    nothing = Roots(frozenset(), ())
    kept = kept_commits(rule, timeline, nothing, now=now, already=None, lowest=NEEDS_NOTHING)
    found: Bools = np.isin(timeline.lsn, kept)
    if name == _ABANDONED:
        found &= ~on_lineage(timeline)
    found[-1] = False
    return found


def _measured(
    sight: Sight, kept: Numbers, alone: Sequence[tuple[_Key, Numbers]]
) -> dict[_Key, int | None]:
    """What comes back without the commits that each of them keeps alone."""
    whole = sight.bytes_of(kept)
    most = int(sight.table.sizes.sum())  # what a footer takes is only known about
    found: dict[_Key, int | None] = {}
    for number, (key, commits) in enumerate(alone):
        if not len(commits):
            found[key] = 0
        elif number < MEASURED_MAX:
            less = sight.bytes_of(np.setdiff1d(kept, commits))
            found[key] = min(max(whole - less, 0), most)
        else:
            found[key] = None
    return found
