"""Retention: which commits stay. Pure functions from a policy and the commits to those kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final, NamedTuple

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.log import format as fmt
from mldb.log.index.lineage import Jumps, is_left, spelled
from mldb.log.manifest import Kept

_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which commits a store keeps. Nothing given keeps all; then compaction loses nothing.

    last:        the last commit of each of the last so many epochs.
    every:       the last commit of each epoch that is a multiple of this.
    within:      every commit that is younger than this.
    checkpoints: the newest so many model checkpoints; None keeps all of them.
    max_bytes:   what the store may take. The oldest commits go until it does, checkpoints last;
                 never the newest one, nor what is tagged, pinned or open in a process.
    abandoned:   commits that a rewind left behind stay this long; None keeps them.

    What any of ``last``, ``every`` and ``within`` keeps stays, and so do tags, pins, and the
    checkpoint that a kept commit sees as its newest. Raises InvalidValueError, InvalidTypeError.
    """

    last: int | None = None
    every: int | None = None
    within: timedelta | None = None
    checkpoints: int | None = None
    max_bytes: int | None = None
    abandoned: timedelta | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, least in (("last", 1), ("every", 1), ("checkpoints", 0), ("max_bytes", 1)):
            _check_count(name, getattr(self, name), least)
        _check_span("within", self.within, _MICROSECOND)
        _check_span("abandoned", self.abandoned, timedelta(0))
        if self.checkpoints is not None and self.keeps_lineage and self.max_bytes is None:
            raise InvalidValueError(
                f"checkpoints={self.checkpoints} limits nothing while every commit is kept. Give "
                "last, every, within or max_bytes as well."
            )

    @property
    def keeps_lineage(self) -> bool:
        """Whether no rule names which commits of the current lineage stay, so that all do."""
        return self.last is None and self.every is None and self.within is None

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever dropped."""
        return self.keeps_lineage and self.max_bytes is None and self.abandoned is None


def _check_count(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if type(value) is not int:
        raise InvalidTypeError(f"{name} is a {type(value).__name__}; give an int, or None")
    if not least <= value <= fmt.EPOCH_MAX:
        raise InvalidValueError(f"{name}={value} is not in {least} .. 2**63 - 1. Nothing was set.")


def _check_span(name: str, value: Any, least: timedelta) -> None:
    if value is None:
        return
    if not isinstance(value, timedelta):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}; give a timedelta, or None")
    if not least <= value <= timedelta(days=100_000):
        raise InvalidValueError(f"{name}={value} is not a span from {least} to 100000 days.")


class Timeline(NamedTuple):
    """All commits up to a head, ascending, and how lineages lead through them."""

    lsn: Numbers
    epoch: Numbers
    time: Numbers
    """Nanoseconds."""
    jumps: Jumps


class Roots(NamedTuple):
    """Commits that others name: those of ``always`` stay whatever a policy says."""

    always: frozenset[int]
    """Targets of tags and pins."""
    checkpoints: tuple[int, ...]
    """Commits with a checkpoint, ascending."""


def kept_commits(
    policy: Retention,
    timeline: Timeline,
    roots: Roots,
    *,
    now: int,
    already: Kept | None,
    lowest: int,
) -> Numbers:
    """Return the LSNs of the commits that *policy* keeps, ascending; ``max_bytes`` aside.

    *already* are those that were left before: what was pruned does not come back. Commits from
    *lowest* on are in use. *now* is in nanoseconds.
    """
    if not len(timeline.lsn):
        return timeline.lsn
    lineage = on_lineage(timeline)
    stays = lineage & _by_rules(policy, timeline, lineage, now)
    stays |= ~lineage & _young(timeline, policy.abandoned, now)
    stays |= np.isin(timeline.lsn, _as_numbers(_named(policy, roots)))
    stays |= timeline.lsn >= min(lowest, int(timeline.lsn[-1]))
    return left_of(timeline.lsn[stays], already)


def left_of(lsns: Numbers, kept: Kept | None) -> Numbers:
    """Return those of these commits that retention left so far."""
    if not kept:
        return lsns
    return lsns[[is_left(lsn, kept) for lsn in lsns.tolist()]]


def on_lineage(timeline: Timeline) -> Bools:
    """Which commits lead to the newest one."""
    found = np.zeros(len(timeline.lsn), np.bool_)
    for low, high in spelled(timeline.jumps.intervals_at(int(timeline.lsn[-1]))):
        first, last = np.searchsorted(timeline.lsn, (low, high + 1))
        found[first:last] = True
    return found


def _by_rules(policy: Retention, timeline: Timeline, lineage: Bools, now: int) -> Bools:
    """Which commits of the lineage ``last``, ``every`` and ``within`` keep."""
    if policy.keeps_lineage:
        return lineage
    place = np.flatnonzero(lineage)
    epochs = timeline.epoch[place]
    ends = place[np.append(epochs[1:] != epochs[:-1], True)]  # the last commit of each epoch
    stays = np.zeros(len(lineage), np.bool_)
    if policy.last is not None:
        stays[ends[-policy.last :]] = True
    if policy.every is not None:
        stays[ends[timeline.epoch[ends] % policy.every == 0]] = True
    if policy.within is not None:
        stays |= _young(timeline, policy.within, now)
    return stays


def _young(timeline: Timeline, span: timedelta | None, now: int) -> Bools:
    """Which commits are younger than *span*; all of them for None."""
    if span is None:
        return np.ones(len(timeline.lsn), np.bool_)
    return timeline.time > now - span // _MICROSECOND * 1000


def _named(policy: Retention, roots: Roots) -> set[int]:
    """The commits that are kept because something names them."""
    count = policy.checkpoints
    newest = roots.checkpoints if count is None else roots.checkpoints[-count:] if count else ()
    return {*roots.always, *newest}


def within_bytes(
    policy: Retention,
    kept: Numbers,
    roots: Roots,
    lowest: int,
    bytes_of: Callable[[Numbers], int],
) -> Numbers:
    """Return what of *kept* stays so that all of it takes at most ``max_bytes``.

    The oldest commits go first, and checkpoints behind all others. *bytes_of* says what the store
    takes that keeps some commits, never less for more of them. Raises InvalidValueError when
    nothing that may go makes it fit.
    """
    limit = policy.max_bytes
    if limit is None or bytes_of(kept) <= limit:
        return kept
    fixed = np.isin(kept, _as_numbers(roots.always)) | (kept >= min(lowest, int(kept[-1])))
    later = np.isin(kept, _as_numbers(_named(policy, roots)))
    order = np.concatenate((np.flatnonzero(~fixed & ~later), np.flatnonzero(~fixed & later)))
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        if bytes_of(np.delete(kept, order[:middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    left = np.delete(kept, order[:low])
    if (taken := bytes_of(left)) > limit:
        raise InvalidValueError(
            f"max_bytes={limit} cannot be kept: what is tagged, pinned or open in a process, and "
            f"the newest commit, take {taken} bytes. Nothing was dropped; raise max_bytes, untag "
            "or unpin commits (db.tags(), db.pins()), or close snapshots."
        )
    return left


def ranges_of(kept: Numbers, lsns: Numbers) -> Kept:
    """Return the kept ones among all commits *lsns* as ranges; both ascend."""
    if not len(kept):
        return ()
    place = np.searchsorted(lsns, kept)
    breaks = np.flatnonzero(np.diff(place) != 1)
    firsts = kept[np.append(0, breaks + 1)].tolist()
    lasts = kept[np.append(breaks, len(kept) - 1)].tolist()
    return tuple(zip(firsts, lasts, strict=True))


def _as_numbers(values: Iterable[int]) -> Numbers:
    return np.array(sorted(values), np.int64)
