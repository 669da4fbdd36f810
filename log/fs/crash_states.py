"""Every disk that a crash of a recorded MemoryFileSystem could leave: enumerated, or drawn by seed.

A crash point is a number of completed operations. Where few things are uncertain all outcomes are
yielded, elsewhere as many drawn ones as the limit allows; no two states are alike. The models are
those of ``mldb.log.fs.crash_model``, and "process": a killed process loses nothing, and the write
in progress is cut at any byte.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, Protocol, TypeAlias

from mldb.errors import InvalidValueError
from mldb.log.fs.crash_disks import Choice, LossyDisk, Outcome, ProcessDisk
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Crash, Image, Journal, Names, Operation, Sync, SyncFolder, Write

_DRAWS_PER_STATE = 4  # draws repeat outcomes that were seen; this bounds the search for new ones
_SHUFFLED_MAX = 50_000  # choices held in memory at a time

Model: TypeAlias = Literal["posix", "ordered", "process"]


class _Disk(Protocol):
    """A disk of one model, after the operations applied so far. ``upcoming`` is the next one."""

    upcoming: Operation | None

    def apply(self, operation: Operation) -> None: ...

    def count(self) -> int: ...

    def choices(self) -> Iterator[Choice]: ...

    def samples(self, rng: random.Random) -> Iterator[Choice]: ...


def crash_states(
    fs: MemoryFileSystem,
    *,
    at: int | Iterable[int] | None = None,
    model: Model = "posix",
    seed: int = 0,
    limit: int = 10_000,
    sector: int = 512,
    torn_sectors: bool = True,
    record: bool = False,
) -> Iterator[MemoryFileSystem]:
    """Yield the distinct disks that a crash could leave, at most *limit* of them, in order of time.

    *at* picks the crash points, numbers of recorded operations done before the crash (default:
    all, from none to every one). States differ in content or in the number of marks before them,
    so the same content is yielded again once more has been promised. A point with more outcomes
    than its share of *limit* is sampled; the same *seed* gives the same states. *sector* is in
    bytes; with *torn_sectors* a sector may also be cut inside, at one drawn byte per write.
    ``ordered`` is a subset of ``posix``. A state is a file system of its own; with *record* it can
    be crashed again, and of a killed process what was not synced is then still uncertain.

    Raises InvalidValueError when *fs* does not record or an option is out of range. The file system
    must be idle meanwhile.
    """
    journal = fs.journal
    if journal is None:
        raise InvalidValueError("crash_states needs a MemoryFileSystem made with record=True.")
    if sector < 1 or limit < 1 or model not in {"posix", "ordered", "process"}:
        raise InvalidValueError(
            f"crash_states: sector={sector} and limit={limit} must be positive, and "
            f"model={model!r} one of 'posix', 'ordered', 'process'."
        )
    operations = tuple(journal.operations)
    points = _points(at, len(operations), limit, seed)

    def replay() -> Iterator[tuple[int, _Disk]]:
        disk: _Disk = ProcessDisk(journal.base)
        if model != "process":
            torn_rng = random.Random(seed) if torn_sectors else None
            disk = LossyDisk(journal.base, model == "ordered", sector, torn_rng)
        return _replay(disk, operations, points)

    counts = [disk.count() for _, disk in replay()]
    mark_counts = [bisect.bisect_right(journal.mark_positions, point) for point in points]
    for point, mark_count, outcome in _distinct(replay(), counts, mark_counts, limit, seed):
        yield _state(fs, journal, point, mark_count, outcome, record)


def _points(at: int | Iterable[int] | None, total: int, limit: int, seed: int) -> list[int]:
    wanted = range(total + 1) if at is None else [at] if isinstance(at, int) else at
    points = sorted(set(wanted))
    if points and not 0 <= points[0] <= points[-1] <= total:
        raise InvalidValueError(f"crash points go from 0 to {total}, got {points[0]}..{points[-1]}")
    return points if len(points) <= limit else sorted(random.Random(seed).sample(points, limit))


def _replay(
    disk: _Disk, operations: Sequence[Operation], points: Sequence[int]
) -> Iterator[tuple[int, _Disk]]:
    """Yield the disk at each point; the next step of the iteration changes it."""
    done = 0
    for point in points:
        for operation in operations[done:point]:
            disk.apply(operation)
        done = point
        disk.upcoming = operations[point] if point < len(operations) else None
        yield point, disk


def _distinct(
    replay: Iterator[tuple[int, _Disk]],
    counts: Sequence[int],
    mark_counts: Sequence[int],
    limit: int,
    seed: int,
) -> Iterator[tuple[int, int, Outcome]]:
    seen: set[tuple[bytes, int]] = set()
    for place, (point, disk) in enumerate(replay):
        share = _share(counts[place:], limit - len(seen))
        rng = random.Random(f"{seed}/{point}")
        full = len(seen) + share
        for choice in _drawn(disk, counts[place], share, rng):
            outcome = choice()
            key = (outcome.digest(), mark_counts[place])
            if key not in seen:
                seen.add(key)
                yield point, mark_counts[place], outcome
                if len(seen) == full:
                    break


def _drawn(disk: _Disk, count: int, share: int, rng: random.Random) -> Iterable[Choice]:
    """Return all choices where they fit; all in random order where few do not; else draws."""
    if count <= share:
        return disk.choices()
    draws = share * _DRAWS_PER_STATE
    if count > min(draws, _SHUFFLED_MAX):
        return itertools.islice(disk.samples(rng), draws)
    choices = list(disk.choices())
    rng.shuffle(choices)
    return choices


def _share(counts: Sequence[int], limit: int) -> int:
    """Return how many states the first point may have so that all points fit fairly in *limit*."""
    left = limit
    for place, count in enumerate(sorted(counts)):
        level = left // (len(counts) - place)
        if count > level:
            return level
        left -= count
    return counts[0]


def _state(
    fs: MemoryFileSystem,
    journal: Journal,
    point: int,
    mark_count: int,
    outcome: Outcome,
    record: bool,
) -> MemoryFileSystem:
    tree = outcome.tree
    contents = {number: data for number, (data, _) in outcome.contents.items()}
    crash = Crash(
        point, tuple(fs.marks[:mark_count]), partial(_where, journal, point, outcome.describe)
    )
    image = Image(tree.files, tree.folders, contents)
    state = MemoryFileSystem(record=record, image=image, crash=crash)
    state.clock_ns = fs.clock_ns
    if record and outcome.killed and state.journal is not None:
        # What the killed process had not synced can still be lost by a power cut after it.
        state.journal.base = journal.base
        state.journal.operations += journal.operations[:point]
        state.journal.operations += [outcome.partial] if outcome.partial else []
        state.journal.mark_positions = journal.mark_positions[:mark_count]
    return state


def _where(journal: Journal, point: int, describe: Callable[[], str]) -> str:
    last = _in_words(journal, journal.operations[point - 1]) if point else "nothing"
    return f"after operation {point} of {len(journal.operations)} ({last}): {describe()}"


def _in_words(journal: Journal, operation: Operation) -> str:
    match operation:
        case Write(inode, offset, data):
            return f"write [{offset}:+{len(data)}] of {_any_name(journal, inode)}"
        case Sync(inode):
            return f"sync of {_any_name(journal, inode)}"
        case SyncFolder(folder):
            return f"sync of folder {folder!r}"
        case Names(call, effects):
            return f"{call} {' -> '.join(path for path, _ in effects)}"


def _any_name(journal: Journal, inode: int) -> str:
    """Return the first name that the journal gives to a file; it may have others or none now."""
    names = itertools.chain(
        journal.base.files.items(),
        *(entry.effects for entry in journal.operations if isinstance(entry, Names)),
    )
    return next((path for path, number in names if number == inode), f"inode {inode}")
