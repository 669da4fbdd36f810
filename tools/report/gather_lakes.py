"""Lakes at a moment: their rows, the spread of concentration and mass, and what was merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.errors import MldbError
from mldb.lake.consolidation.told import AVALANCHES, ToldMerge, told_merges
from mldb.tools.report.facts import LakeFacts, LakesFacts, MergeFacts, NumberColumn

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.lake.rows.live import Rows
    from mldb.query.surface import Snapshot

LAKES_SHOWN: Final = 12
MERGES_SHOWN: Final = 400
_GROWTH_POINTS: Final = 400


def gather_lakes(
    db: MLDatabase, at: Snapshot, lsns: NumberColumn, epochs: NumberColumn
) -> LakesFacts:
    """Gather the lakes at *at*; *lsns* and *epochs* are those of all commits.

    Two columns of each are read whole, 8 bytes a row. One that is damaged is named in ``problems``.
    """
    names = db.lakes(as_of=at.lsn) if at.lsn else []
    epoch_of = dict(zip(lsns.tolist(), epochs.tolist(), strict=True))
    found: list[LakeFacts] = []
    problems: list[str] = []
    for name in names[:LAKES_SHOWN]:
        try:
            found.append(_lake(db, at, name, epoch_of))
        except MldbError as error:
            problems.append(f"lake {name}: {error}")
    return LakesFacts(lakes=found, lakes_in_all=len(names), problems=tuple(problems))


def _lake(db: MLDatabase, at: Snapshot, name: str, epoch_of: dict[int, int]) -> LakeFacts:
    with db.lake(name).at(at.lsn) as lake:
        rows = lake.rows()
        every = slice(0, len(rows))
        kappa = np.asarray(rows.gather("kappa", every), np.float64)
        alpha = np.asarray(rows.gather("alpha", every), np.float64)
        merges = [_merge(rows, pair, epoch_of) for pair in told_merges(rows)[-MERGES_SHOWN:]]
        return LakeFacts(
            name=name,
            rows=len(rows),
            dim=lake.dim,
            geometry=lake.geometry,
            mass=float(alpha.sum()),
            kappa=kappa,
            alpha=alpha,
            merges=merges,
            growth=_growth(rows, epoch_of),
        )


def _merge(rows: Rows, pair: tuple[int, int], epoch_of: dict[int, int]) -> MergeFacts:
    merge = ToldMerge(rows, *pair)
    starts = np.asarray(merge.part("starts"), np.int64)
    return MergeFacts(
        lsn=pair[0],
        epoch=epoch_of.get(pair[0], 0),
        method=str(merge.info.run.get("method", "")),
        sources=merge.info.sources,
        made=merge.info.rows,
        sizes=np.diff(starts),
        avalanches=read_counts(merge.info.run.get(AVALANCHES)),
    )


def read_counts(text: Any) -> NumberColumn:
    """Return counts by powers of two out of ``"12 5 0 1"``; none for what is no such text."""
    if not isinstance(text, str) or len(text) > 2000:
        return np.empty(0, np.int64)
    parts = text.split()
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        return np.empty(0, np.int64)
    return np.array([int(part) for part in parts], np.int64)


def _growth(rows: Rows, epoch_of: dict[int, int]) -> list[tuple[int, int, int]]:
    """Live rows after each change of the lake; evenly chosen ones where there are many."""
    chain = rows.chain
    size = rows.state.size
    commits = np.union1d(
        chain.commits.first(size.blocks), chain.ends.commits.first(size.removals)
    ).astype(np.int64)
    if len(commits) > _GROWTH_POINTS:
        commits = commits[np.linspace(0, len(commits) - 1, _GROWTH_POINTS).astype(int)]
    return [
        (commit, epoch_of.get(commit, 0), chain.live_count(chain.at(commit)))
        for commit in commits.tolist()
    ]
