"""Decisions made under the commit lock: which epoch, which parent, and whether reads still hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mldb import keys
from mldb.errors import ConflictError, EpochOrderError, InvalidTypeError, LimitError
from mldb.log import format as fmt
from mldb.log.index.address import CommitRow, Lsn
from mldb.log.index.lineage import is_visible
from mldb.log.sequencer import Decide
from mldb.log.view import View

_SHOWN_NAMES = 8


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
            remedy = f"Another process advanced it; pass epoch=None to join epoch {head}"
        else:
            remedy = f"To go back, db.rewind({epoch}) first; to stay, pass epoch=None"
        raise EpochOrderError(
            f"epoch {epoch} is lower than the head's epoch {head}. Nothing was stored. {remedy}."
        )


@dataclass(slots=True)
class ReadSet:
    """What a transaction has read: keys and listings.

    A key comes with the commit of the version found (0: absent); a listing is a prefix with the
    keys found under it.
    """

    keys: dict[bytes, int] = field(default_factory=dict)
    listings: dict[bytes, Mapping[bytes, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was read."""
        return bool(self.keys or self.listings)


def version_of(view: View, key: bytes) -> int:
    """Return the commit of the newest version of *key* at the head of *view*, 0 for none."""
    entry = view.newest(key, view.intervals)
    return 0 if entry is None or entry.flags & fmt.ENTRY_TOMBSTONE else entry.commit_lsn


def listing(view: View, prefix: bytes) -> dict[bytes, int]:
    """Return the keys that exist under *prefix* at the head of *view*, each with its version.

    Only relationships have a version here; a tensor counts by its name alone (version 0).
    """
    by_name = prefix[:1] == keys.TENSORS
    return {
        key: 0 if by_name else entry.commit_lsn for key, entry in view.live(prefix, view.intervals)
    }


def check_reads(view: View, begin: CommitRow, reads: ReadSet) -> None:
    """Raise ConflictError when what a transaction read at *begin* is not what *view* has now."""
    if not reads or view.commit.lsn == begin.lsn:
        return
    if begin.lsn and not is_visible(begin.lsn, view.intervals):
        raise ConflictError(
            f"the lineage was rewound to before commit {begin.lsn}, at which this transaction "
            "began. Nothing was stored; run it again (db.transact does)."
        )
    changed = [key for key, lsn in reads.keys.items() if version_of(view, key) != lsn]
    for prefix, found in reads.listings.items():
        now = listing(view, prefix)
        if now != found:
            changed.append(min(now.items() ^ found.items())[0])
    if changed:
        raise _conflict(begin, view, changed)


def _conflict(begin: CommitRow, view: View, changed: Iterable[bytes]) -> ConflictError:
    names = tuple(dict.fromkeys(keys.shown(key) for key in changed))
    shown = ", ".join(repr(name) for name in names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ConflictError(
        f"{shown}{more} changed between commit {begin.lsn}, which this transaction read, and "
        f"{view.commit.lsn}. Nothing was stored; run it again (db.transact does).",
        names=names[:_SHOWN_NAMES],
    )
