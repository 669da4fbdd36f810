"""The run as a whole: commits, lineage, checkpoints, tags, compactions, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.errors import MldbError
from mldb.log.format import FILE_COMPACTED
from mldb.log.index.address import to_time
from mldb.log.index.lineage import visible_mask
from mldb.tools.report.facts import Curve, RunFacts

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.query.surface import Snapshot

CURVES_SHOWN: Final = 24
"""Metrics that are drawn; the rest is counted."""


def gather_run(db: MLDatabase, at: Snapshot, path: str, moment: str) -> RunFacts:
    """Gather the run up to snapshot *at*. Costs O(commits), none of which is decoded.

    Metrics that cannot be read are named in ``problems``. Raises CorruptError where the index
    itself is damaged.
    """
    scope = at._scope()
    view, commit = scope.view, scope.commit
    rows = np.array(
        [(row.lsn, row.epoch, row.time) for _, row in view.commits(1, commit.lsn)], np.int64
    ).reshape(-1, 3)
    lsns = np.ascontiguousarray(rows[:, 0])
    problems: list[str] = []
    curves, curves_in_all = _curves(at, problems)
    return RunFacts(
        path=path,
        moment=moment,
        lsn=commit.lsn,
        epoch=commit.epoch,
        time=to_time(commit.time),
        lsns=lsns,
        epochs=rows[:, 1],
        times=rows[:, 2],
        is_kept=visible_mask(lsns, scope.intervals),
        rewinds=[(jump, target) for jump, target in view.jumps.up_to(commit.lsn)],
        checkpoints=at.checkpoints(),
        tags={name: int(lsn) for name, lsn in db.tags().items()},
        compactions=[
            (part.info.first_lsn, part.info.last_lsn, part.info.length)
            for part in view.sealed
            if part.info.kind == FILE_COMPACTED
        ],
        curves=curves,
        curves_in_all=curves_in_all,
        problems=tuple(problems),
    )


def _curves(at: Snapshot, problems: list[str]) -> tuple[list[Curve], int]:
    """The curves that were logged, then those that only checkpoints have."""
    try:
        names = at.metrics()
    except MldbError as error:
        problems.append(f"metrics: {error}")
        names = []
    curves: list[Curve] = []
    for name in names[:CURVES_SHOWN]:
        try:
            found = at.metrics(name)
        except MldbError as error:
            problems.append(f"metric {name}: {error}")
            continue
        if not len(found):
            continue
        has_steps = bool((found.step >= 0).all())
        curves.append(
            Curve(
                name=name,
                x=(found.step if has_steps else found.epoch).astype(np.float64),
                y=found.value,
                x_label="step" if has_steps else "epoch",
                source="logged",
            )
        )
    told = _told_by_checkpoints(at, frozenset(names))
    room = max(CURVES_SHOWN - len(curves), 0)
    return curves + told[:room], len(names) + len(told)


def _told_by_checkpoints(at: Snapshot, known: frozenset[str]) -> list[Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for item in at.checkpoints():
        for name, value in item.metrics.items():
            if name not in known and _is_number(value):
                points.setdefault(name, []).append((item.epoch, float(value)))
    return [
        Curve(
            name=name,
            x=np.array([epoch for epoch, _ in found], np.float64),
            y=np.array([value for _, value in found], np.float64),
            x_label="epoch",
            source="from checkpoints",
        )
        for name, found in points.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
