"""Which versions some commits see, on any lineage. Pure, NumPy.

A version is seen by a commit when it is the newest one of its key on the path that leads there. The
commits between two jumps are a *run* (``mldb.log.index.lineage``). The runs are gone through from
the newest to the oldest: what the commits of a run do not find in it they ask of the run that it
continues from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.table import NO_ROW, VersionTable
from mldb.log.index.lineage import Jump

_NEVER: Final = np.iinfo(np.int64).max


def seen_by(
    table: VersionTable,
    commits: Numbers,
    jumps: Sequence[Jump],
    store_wide: Bools,
    curves: Bools | None = None,
) -> Bools:
    """Return which rows these commits see, which ascend; and what these rows refer to.

    *store_wide* are rows whose keys belong to no lineage: of them a commit sees the newest one in
    front of it in the log. Of the keys in *curves*, a mask over the keys, it sees every version on
    the path that leads to it. O(rows), and O(keys) for each jump that leads to any of the commits.
    """
    seen = np.zeros(len(table), np.bool_)
    if curves is None:
        curves = np.zeros(len(table.keys), np.bool_)
    if len(commits):
        _see_in_order(table, commits, np.flatnonzero(store_wide), seen)
        _see_by_runs(table, commits, jumps, np.flatnonzero(~store_wide), seen, curves)
    return with_bases(table, seen)


def with_bases(table: VersionTable, seen: Bools) -> Bools:
    """Return these rows and those that they refer to, in however many steps; changes *seen*."""
    found = np.flatnonzero(seen)
    while len(found):
        bases = table.base_row[found]
        bases = np.unique(bases[bases != NO_ROW])
        found = bases[~seen[bases]]
        seen[found] = True
    return seen


def _see_in_order(table: VersionTable, commits: Numbers, rows: Numbers, seen: Bools) -> None:
    key, commit = table.key[rows], table.commit[rows]
    seen[rows] = _any_between(commits, commit, _following(key, commit))


def _see_by_runs(
    table: VersionTable,
    commits: Numbers,
    jumps: Sequence[Jump],
    rows: Numbers,
    seen: Bools,
    curves: Bools,
) -> None:
    lows = np.array([1, *(low for low, _ in jumps)], np.int64)
    run_of = np.searchsorted(lows, table.commit[rows], "right") - 1
    rows = rows[np.argsort(run_of, kind="stable")]
    starts = np.searchsorted(np.sort(run_of), np.arange(len(lows) + 1))
    bounds = np.searchsorted(commits, lows)
    # By run: what later ones ask of it, as the commit they continue from and the keys they lack.
    asked: dict[int, dict[int, Bools]] = {}
    for run in range(len(lows) - 1, -1, -1):
        high = bounds[run + 1] if run + 1 < len(lows) else len(commits)
        own = commits[bounds[run] : high]
        questions = asked.pop(run, {})
        if not len(own) and not questions:
            continue
        inside = rows[starts[run] : starts[run + 1]]
        lacking = _see_in_run(table, own, questions, inside, seen, curves)
        target = jumps[run - 1][1] if run else 0
        if target <= 0:
            continue
        parent = int(np.searchsorted(lows, target, "right")) - 1
        known = asked.setdefault(parent, {})
        known[target] = known[target] | lacking if target in known else lacking


def _see_in_run(
    table: VersionTable,
    own: Numbers,
    questions: dict[int, Bools],
    rows: Numbers,
    seen: Bools,
    curves: Bools,
) -> Bools:
    """Mark the rows of a run that are seen; return the keys that are to be found before it."""
    key, commit = table.key[rows], table.commit[rows]
    after = _following(key, commit)
    after[curves[key]] = _NEVER  # no version hides an older one
    found = _any_between(own, commit, after)
    for target, keys in questions.items():
        found |= (commit <= target) & (target < after) & keys[key]
    seen[rows[found]] = True
    first = np.full(len(table.keys), _NEVER, np.int64)
    np.minimum.at(first, key, commit)
    first[curves] = _NEVER
    lacking = first > own[0] if len(own) else np.zeros(len(first), np.bool_)
    for target, keys in questions.items():
        lacking |= keys & (first > target)
    return lacking


def _following(key: Numbers, commit: Numbers) -> Numbers:
    """The commit of the next version of the same key, of rows in order."""
    after = np.full(len(key), _NEVER, np.int64)
    same = key[1:] == key[:-1]
    after[:-1][same] = commit[1:][same]
    return after


def _any_between(commits: Numbers, low: Numbers, high: Numbers) -> Bools:
    """Whether any of the commits lies in low <= commit < high."""
    found: Bools = np.searchsorted(commits, low) < np.searchsorted(commits, high)
    return found
