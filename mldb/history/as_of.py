"""as_of: from what a caller says to the commit it means.

``int`` is an epoch, :class:`Lsn` a commit, an aware ``datetime`` a time, ``str`` a tag or
checkpoint name, ``None`` the head. Epochs and times follow the lineage of the view; an Lsn may name
any commit, abandoned ones too.

Times never go back along a lineage. After a commit from a clock that was ahead, all later ones have
its time until the clocks have come so far; a moment before it leaves them out, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TypeAlias

import numpy as np

from mldb import keys
from mldb.errors import InvalidTypeError, InvalidValueError, MissingError, VersionGoneError
from mldb.log import format as fmt
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Intervals, Lsn, to_time
from mldb.log.index.lineage import around, is_left, is_visible
from mldb.log.index.memory import CommitField
from mldb.log.readers import Hold
from mldb.log.view import View
from mldb.tensors.scope import Scope

AsOf: TypeAlias = "int | Lsn | datetime | str | None"

_EPOCHS_MAX = 4096  # about 1 MiB: a row and a small tuple each; paths are shared
_LOOKED_AT = 8  # commits behind the one found: the first of a wrong clock, and some of right ones
_CLOCKS_NS = 60 * 10**9  # clocks that disagree by less are set right now and then
_UNIX_START = datetime(1970, 1, 1, tzinfo=UTC)


def resolve(view: View, intervals: Intervals, as_of: AsOf) -> CommitRow:
    """Return the commit that *as_of* means, seen from the snapshot *intervals* of *view*.

    Before the first commit: EMPTY_COMMIT. Beyond the head: the head. Raises MissingError for an
    unknown Lsn, tag or checkpoint name, InvalidTypeError and InvalidValueError for what is no
    as_of, VersionGoneError for a pruned commit.
    """
    if as_of is None:
        return _commit(view, intervals[-1][1]) if intervals else EMPTY_COMMIT
    if isinstance(as_of, Lsn):
        return kept(view, _commit(view, as_of))
    if isinstance(as_of, bool):
        raise InvalidTypeError(
            "as_of is a bool; give an epoch (int), Lsn, aware datetime, tag or checkpoint name"
        )
    if isinstance(as_of, int | np.integer):
        return _last(view, intervals, "epoch", int(as_of))
    if isinstance(as_of, datetime):
        return _at_time(view, intervals, as_of)
    if isinstance(as_of, str):
        return kept(view, _named(view, intervals, as_of))
    raise InvalidTypeError(
        f"as_of is a {type(as_of).__name__}; give an epoch (int), Lsn, aware datetime, tag or "
        "checkpoint name"
    )


def snapshot_intervals(view: View, row: CommitRow) -> Intervals:
    """What the snapshot at *row* sees."""
    return view.intervals if row.lsn == view.commit.lsn else view.jumps.intervals_at(row.lsn)


def resolve_scope(view: View, as_of: AsOf) -> tuple[CommitRow, Intervals]:
    """Return the commit that *as_of* means at the head of *view*, and what its snapshot sees.

    Epochs below the head's are remembered: along one lineage no commit can join them any more.
    """
    if type(as_of) is not int:
        row = resolve(view, view.intervals, as_of)
        return row, snapshot_intervals(view, row)
    found = view.epochs.get(as_of)
    if found is None:
        row = resolve(view, view.intervals, as_of)
        found = row, snapshot_intervals(view, row)
        if as_of < view.commit.epoch:
            if len(view.epochs) >= _EPOCHS_MAX:
                view.epochs.clear()
            view.epochs[as_of] = found
    return found


def store_intervals(view: View) -> Intervals:
    """Every commit of the store: tags, pins and retention are not rewound."""
    return ((1, view.commit.lsn),)


def _commit(view: View, lsn: int) -> CommitRow:
    if lsn == 0:
        return EMPTY_COMMIT
    row = view.commit_at(lsn)
    if row is None:
        raise MissingError(
            f"no commit has LSN {int(lsn)}; the newest is {view.commit.lsn}. An Lsn comes from a "
            "commit: store_tensor, txn.lsn, db.history(name) or db.events()."
        )
    return row


def _last(view: View, intervals: Intervals, field: CommitField, limit: int) -> CommitRow:
    limit = min(max(limit, -1), fmt.EPOCH_MAX)
    row = view.last_commit(intervals, field, limit)
    return EMPTY_COMMIT if row is None else kept(view, row)


def _at_time(view: View, intervals: Intervals, moment: datetime) -> CommitRow:
    limit = _nanoseconds(moment)
    row = _last(view, intervals, "time", limit)
    head = _commit(view, intervals[-1][1]) if intervals else EMPTY_COMMIT
    if row.lsn != head.lsn:
        after = islice(_after(view, intervals, row.lsn), _LOOKED_AT)
        if any(later.clock <= min(limit, later.time - _CLOCKS_NS) for later in (*after, head)):
            _warn_of_clock(next(_after(view, intervals, row.lsn)))
    return row


def _after(view: View, intervals: Intervals, lsn: int) -> Iterator[CommitRow]:
    """Yield the commits of a lineage behind commit *lsn*."""
    for _, row in view.commits(lsn + 1, intervals[-1][1]):
        if is_visible(row.lsn, intervals):
            yield row


def _warn_of_clock(first: CommitRow) -> None:
    """Say that *first* and what follows is left out, though some of it was made before by a clock.

    The text is the same for every moment, so that it is told once.
    """
    warnings.warn(
        f"as_of at a time before {to_time(first.time).isoformat()} leaves out commit {first.lsn} "
        "and those after it, although the clocks of some said less: two clocks disagree, and times "
        "never go back along a history. Name the commit otherwise: as_of=None is the newest; "
        "epochs, tags and mldb.Lsn (db.history(name), db.events()) do not depend on clocks.",
        UserWarning,
        stacklevel=2,
    )


def _nanoseconds(moment: datetime) -> int:
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise InvalidValueError(
            f"as_of is the naive datetime {moment!s}; say which zone it is in, for example "
            "datetime.now(timezone.utc) or moment.astimezone()"
        )
    span = moment - _UNIX_START
    # Commits made within the named microsecond count as before it.
    return (span.days * 86_400 + span.seconds) * 1_000_000_000 + span.microseconds * 1000 + 999


def _named(view: View, intervals: Intervals, name: str) -> CommitRow:
    from mldb.history.kinds.timeline import unpack_tag

    key = name.encode("utf-8", "surrogatepass")
    tag = view.newest(keys.TAGS + key, store_intervals(view))
    if tag is not None and not tag.flags & fmt.ENTRY_TOMBSTONE:
        return _commit(view, unpack_tag(keys.TAGS + key, tag.attr))
    checkpoint = view.newest(keys.CHECKPOINTS + key, intervals) if key else None
    if checkpoint is None:
        raise MissingError(
            f"no tag or checkpoint is named {name[:80]!r}; see db.tags() and db.checkpoints()"
        )
    return _commit(view, checkpoint.commit_lsn)


def held(scope: Scope) -> tuple[Scope, Hold]:
    """Register the commit of a snapshot; return the snapshot on a view since then, and the hold.

    Raises VersionGoneError when it was pruned in between.
    """
    hold, view = scope.source.log.hold(scope.commit.lsn)
    if view.number != scope.view.number:
        kept(view, scope.commit)
        scope = scope._replace(view=view)
    return scope, hold


def kept(view: View, row: CommitRow) -> CommitRow:
    """Return *row*; raises VersionGoneError naming the nearest kept commits when it was pruned."""
    ranges = view.kept
    if not ranges or is_left(row.lsn, ranges):
        return row
    below, above = around(row.lsn, ranges)
    raise VersionGoneError(
        f"commit {row.lsn} (epoch {row.epoch}) was pruned by retention; the nearest kept commits "
        f"are {below} below and {above} above. Pin or tag a commit to keep it.",
        below=below,
        above=above,
    )
