"""What commits of a lake said of merges: sources of a splat, stress, which rows arrived since."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from mldb import keys
from mldb.arrays import Numbers
from mldb.errors import MissingError, VersionGoneError
from mldb.history.merged import MergeInfo, unpack_change
from mldb.lake.rows.chain import damaged
from mldb.lake.rows.live import Rows
from mldb.lake.rows.parts import merge_part
from mldb.log.index.address import Entry
from mldb.names import check_name

AVALANCHES: Final = "avalanches"
"""Under which a run of the sandpile tells how many avalanches took 0, 1, 2-3, 4-7 ... topplings."""


class ToldMerge:
    """One merge of a lake, read as it is asked for. One thread."""

    def __init__(self, rows: Rows, commit: int, head: int) -> None:
        """Raises VersionGoneError, CorruptError."""
        self._rows = rows
        self.commit = commit
        self._key = keys.splats_key(check_name(rows.name), head)
        scope = rows.scope
        entry = scope.view.version_at(self._key, commit)
        if entry is None:
            raise VersionGoneError(
                f"the merges that commit {commit} made in lake {rows.name!r} were pruned"
            )
        self._entry: Entry = entry
        try:
            info = unpack_change(entry.attr, entry.length)
            if not isinstance(info, MergeInfo):
                raise ValueError("it is not the merge that was read before")
        except (ValueError, TypeError) as error:
            raise damaged(scope, entry, rows.name, error) from None
        self.info = info

    def part(self, name: str, span: tuple[int, int] | None = None) -> Numbers:
        """A column behind the block. Raises CorruptError."""
        rows = self._rows
        return merge_part(rows.scope, self._key, self._entry, self.info, name, rows.name, span)

    @property
    def first_row(self) -> int:
        """The stored number of the first row that was made."""
        chain = self._rows.chain
        commits = chain.commits.first(self._rows.blocks)
        return chain.start(int(np.searchsorted(commits, self.commit)))

    def sources_of(self, place: int) -> Numbers:
        """The ids of the sources of one row that was made, by its place among them."""
        low, high = self.part("starts", (place, place + 2)).tolist()
        return self.part("sources", (low, high))


def told_merges(rows: Rows) -> list[tuple[int, int]]:
    """Return commit and the commit in the key of every merge of a state, the first one first."""
    merges = rows.chain.merges(rows.state.size)
    return [(commit, head) for commit, head, target in merges.tolist() if not target]


def undone_merges(rows: Rows) -> dict[int, int]:
    """Return the merges that were taken back, by the commit that did so."""
    merges = rows.chain.merges(rows.state.size)
    return {target: commit for commit, _, target in merges.tolist() if target}


def merge_at(rows: Rows, commit: int) -> ToldMerge:
    """Return the merge of a commit. Raises MissingError."""
    found = [pair for pair in told_merges(rows) if pair[0] == commit]
    if not found:
        known = ", ".join(str(told) for told, _ in told_merges(rows)[-8:]) or "none"
        raise MissingError(
            f"commit {commit} merged nothing in lake {rows.name!r}, as commit {rows.lsn} sees it; "
            f"the last that did: {known}. Nothing was changed."
        )
    return ToldMerge(rows, *found[0])


def sources_of(rows: Rows, row_id: int) -> Numbers:
    """Return the ids that row *row_id* was made of, ascending; none where it was added.

    The row may have ended since. Raises MissingError for an id that no row of the state has.
    """
    chain = rows.chain
    stored = int(rows.newest_of(np.array([row_id]))[0])
    if stored < 0:
        raise MissingError(f"lake {rows.name!r} never had a row of id {row_id}")
    stops = chain.stops.first(rows.blocks)
    block = int(np.searchsorted(stops, stored, "right"))
    commit = int(chain.commits.first(rows.blocks)[block])
    found = [pair for pair in told_merges(rows) if pair[0] == commit]
    if not found:
        return np.empty(0, np.int64)
    return ToldMerge(rows, *found[0]).sources_of(stored - chain.start(block))


class Stress(NamedTuple):
    """What a sandpile goes on with: ids, ascending, and the grains told of each; and the rest.

    ``seen`` is the state that the last run was planned on, 0 for none; ``told`` counts what was
    told since stress was told whole.
    """

    ids: Numbers
    grains: Numbers
    residue: int
    seen: int
    told: int


def told_stress(rows: Rows) -> Stress:
    """Return what the runs of a state left: read back to where stress was told whole."""
    ids: list[Numbers] = []
    grains: list[Numbers] = []
    last: dict[str, Any] | None = None
    for commit, head in reversed(told_merges(rows)):
        merge = ToldMerge(rows, commit, head)
        if merge.info.run.get("method") != "sandpile":
            continue
        last = dict(merge.info.run) if last is None else last
        base = merge.info.block.base if merge.info.block else 0
        ids += [merge.part("stressed"), np.arange(base, base + merge.info.rows)]
        grains += [merge.part("stress"), merge.part("made_stress")]
        if merge.info.is_whole:
            break
    if last is None:
        empty = np.empty(0, np.int64)
        return Stress(empty, empty, 0, 0, 0)
    every, told = np.concatenate(ids), np.concatenate(grains)
    known, first = np.unique(every, return_index=True)  # the newest stands first
    residue, seen = (int(last.get(name) or 0) for name in ("residue", "seen"))
    return Stress(known, told[first], residue, seen, len(every))


def arrivals_since(rows: Rows, seen: int) -> Numbers:
    """Return the live rows that were added behind commit *seen*, by number: none that were made."""
    added = rows.lsns(slice(0, len(rows)))
    made = np.array([commit for commit, _ in told_merges(rows)], np.int64)
    return np.flatnonzero((added > seen) & ~np.isin(added, made))
