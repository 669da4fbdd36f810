"""Decisions made under the commit lock: which epoch, which parent, and whether reads still hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from mldb import keys
from mldb.deferred import dataclass, field
from mldb.errors import ConflictError, EpochOrderError, InvalidTypeError, LimitError
from mldb.history.as_of import snapshot_intervals
from mldb.log import format as fmt
from mldb.log.index.address import CommitRow, Intervals, Lsn
from mldb.log.index.lineage import is_visible
from mldb.log.view import View

if TYPE_CHECKING:
    from mldb.log.sequencer import Decide

_SHOWN_NAMES = 8
_OR_NONE = "or epoch=None where a verb takes that (checkpoint does not)"
_READS_FEW = 64


def check_epoch(epoch: object) -> int | None:
    """Return the epoch as an int. Raises InvalidTypeError, LimitError."""
    if epoch is None:
        return None
    if isinstance(epoch, bool | Lsn) or not isinstance(epoch, int | np.integer):
        raise InvalidTypeError(f"epoch is a {type(epoch).__name__}, not an int")
    if not 0 <= epoch <= fmt.EPOCH_MAX:
        raise LimitError(f"epoch {epoch} is outside 0 .. 2**63 - 1")
    return int(epoch)


@dataclass(slots=True)
class EpochRule:
    """The epoch rule of one handle: never lower than the head's.

    ``highest`` is the highest epoch that this handle committed; it changes under the commit lock
    only.
    """

    highest: int = -1

    def join(self, view: View) -> tuple[int, CommitRow]:
        """Return epoch and parent of the next commit: those of the head."""
        head = view.commit
        epoch = self.highest = head.epoch
        return epoch, head

    def choice(self, epoch: int | None, validate: Callable[[View], None] | None = None) -> Decide:
        """Return the decision for *epoch*, None for the head's, once *validate* lets it pass.

        Raises what :func:`check_epoch` raises; the decision EpochOrderError.
        """
        epoch = check_epoch(epoch)

        def decide(view: View) -> tuple[int, CommitRow]:
            if validate is not None:
                validate(view)
            if epoch is None:
                return self.join(view)
            self.check(view, epoch)
            self.highest = epoch
            return epoch, view.commit

        return decide

    def check(self, view: View, epoch: int) -> None:
        """Raise EpochOrderError when *epoch* is lower than that of the head."""
        head = view.commit.epoch
        if epoch >= head:
            return
        if head > self.highest:
            remedy = f"Another process advanced it; join it with epoch={head}, {_OR_NONE}"
        else:
            remedy = f"To go back, db.rewind({epoch}) first; to stay, pass epoch={head}, {_OR_NONE}"
        raise EpochOrderError(
            f"epoch {epoch} is lower than the head's epoch {head}. Nothing was stored. {remedy}."
        )


@dataclass(slots=True)
class ReadSet:
    """What a transaction has read: keys and listings.

    A key comes with the commit of the version found (0: absent); a listing is a prefix. What was
    found under it need not be kept: the snapshot at the beginning still tells.
    """

    keys: dict[bytes, int] = field(default_factory=dict)
    listings: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether anything was read."""
        return bool(self.keys or self.listings)


def version_of(view: View, key: bytes, intervals: Intervals) -> int:
    """Return the commit of the newest version of *key* inside *intervals*, 0 for none."""
    entry = view.newest(key, intervals)
    return 0 if entry is None or entry.flags & fmt.ENTRY_TOMBSTONE else entry.commit_lsn


class ReadCheck:
    """Whether what a transaction read still holds: called with a head, it raises ConflictError.

    For the thread of the transaction. :meth:`look` is the same before the commit lock is taken;
    from then on only what was committed since costs anything, which is then done under the lock.
    """

    __slots__ = ("_begin", "_reads", "_seen")

    def __init__(self, begin: CommitRow, reads: ReadSet) -> None:
        self._begin = begin
        self._reads = reads
        self._seen = begin.lsn  # up to here in its lineage nothing that was read has changed

    def is_large(self) -> bool:
        """Whether so much was read that :meth:`look` is worth its call."""
        return bool(self._reads.listings) or len(self._reads.keys) > _READS_FEW

    def look(self, view: View) -> None:
        """Check against the head of *view*, and remember that it held there."""
        self(view)
        self._seen = view.commit.lsn

    def __call__(self, view: View) -> None:
        """Raise ConflictError when what was read is not what *view* has now."""
        begin, reads = self._begin, self._reads
        if not reads or view.commit.lsn == self._seen:
            return
        if begin.lsn and not is_visible(begin.lsn, view.intervals):
            raise ConflictError(
                f"the lineage was rewound to before commit {begin.lsn}, at which this transaction "
                "began. Nothing was stored; run it again (db.transact does)."
            )
        # A head that was looked at may have been rewound away since.
        held = self._seen if is_visible(self._seen, view.intervals) else begin.lsn
        changed = _changed_reads(view, reads.keys, held)
        if reads.listings:
            before = snapshot_intervals(view, begin)
            for prefix in reads.listings:
                differing = _changed_listing(view, prefix, held, before)
                if differing is not None:
                    changed.append(differing)
        if changed:
            raise _conflict(begin, view, changed)


def _changed_reads(view: View, read: dict[bytes, int], after: int) -> list[bytes]:
    """Return the keys whose version is another one than was read.

    Those of few commits since *after* cost less than a lookup for each that was read.
    """
    if view.commit.lsn - after < len(read):
        changes = view.changes(b"", after, view.intervals)
        return [
            key
            for key, (lsn, deleted) in changes.items()
            if key in read and read[key] != (0 if deleted else lsn)
        ]
    return [key for key, lsn in read.items() if version_of(view, key, view.intervals) != lsn]


def _changed_listing(view: View, prefix: bytes, after: int, before: Intervals) -> bytes | None:
    """Return the first key under *prefix* that exists otherwise than in the snapshot *before*.

    It is sought among those with versions above commit *after*. Only relationships have a version
    here; a tensor counts by its name alone.
    """
    by_name = prefix[:1] == keys.TENSORS
    changes = view.changes(prefix, after, view.intervals)
    for key in sorted(changes):
        now = not changes[key].deleted
        if (now and not by_name) or now != (version_of(view, key, before) > 0):
            return key
    return None


def _conflict(begin: CommitRow, view: View, changed: Iterable[bytes]) -> ConflictError:
    names = tuple(dict.fromkeys(keys.shown(key) for key in changed))
    shown = ", ".join(repr(name) for name in names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ConflictError(
        f"{shown}{more} changed between commit {begin.lsn}, which this transaction read, and "
        f"{view.commit.lsn}. Nothing was stored; run it again (db.transact does).",
        names=names[:_SHOWN_NAMES],
    )
