"""What a power loss may leave of one file and of the names of a disk.

A history takes the recorded operations in order and answers which outcomes are possible now. An
outcome is a *key*; it stays valid until the next sync of that file or change of the names.

- posix: what a completed sync covers is certain, everything else is any subset. Content goes by
  sectors, the length on its own; every change of a name is a unit that happened or did not.
- ordered: as ext4 by default. Of each file a prefix of what was written to it, and never a length
  without its content; of the changes of names a prefix, complete up to the last sync of anything.

Space that was never written reads as zeros in both; old content of other files never shows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from mldb.log.checksum import digest128
from mldb.log.fs.memory_disk import FOLDER, Image, Names, Write

MANY = 1 << 40  # counts above this are all "too many to enumerate"
_CACHED_CONTENTS_MAX = 1024

# A length, and the numbers of the steps that are on disk.
FileKey: TypeAlias = tuple[int, Sequence[int]]
# The numbers of the pending changes of names that happened.
NamesKey: TypeAlias = Sequence[int]


class Step(NamedTuple):
    """One sector as a write left it, or tore it: where, its bytes, the length of the file then."""

    start: int
    data: bytes
    length: int


class FileHistory:
    """One file under the posix model: certain bytes, and the steps taken since the last sync."""

    def __init__(self, durable: bytes, sector: int, torn_rng: random.Random | None) -> None:
        self._sector = sector
        self._torn_rng = torn_rng
        self.image = bytearray(durable)
        self._settle(durable)

    def _settle(self, durable: bytes) -> None:
        self.durable = durable
        self._lengths = [len(durable)]
        # New containers, not cleared ones: descriptions of earlier states still hold the old.
        self.steps: list[Step] = []
        self._sectors: dict[int, list[int]] = {}
        self._contents: dict[FileKey, tuple[bytes, bytes]] = {}
        self._certain = (durable, digest128(durable))
        self._count = 1

    def sync(self) -> None:
        """Everything written so far is certain from now on."""
        if self.steps:
            self._settle(bytes(self.image))

    def write(self, write: Write) -> None:
        """Take a write apart into one step per sector, each preceded by its torn form."""
        position, end = write.offset, write.offset + len(write.data)
        while position < end:
            stop = min((position // self._sector + 1) * self._sector, end)
            self._take_step(position, write.data[position - write.offset : stop - write.offset])
            position = stop
        self._count = 0

    def _take_step(self, position: int, piece: bytes) -> None:
        image, start = self.image, position - position % self._sector
        length, before = len(image), bytes(image[start : start + self._sector])
        image.extend(bytes(max(0, position - length)))
        image[position : position + len(piece)] = piece
        after = bytes(image[start : start + self._sector])
        if self._torn_rng is not None and len(piece) > 1:
            cut = position - start + self._torn_rng.randrange(1, len(piece))
            self._add(Step(start, after[:cut] + before[cut:], max(length, start + cut)))
        self._add(Step(start, after, len(image)))

    def _add(self, step: Step) -> None:
        self._sectors.setdefault(step.start, []).append(len(self.steps))
        self.steps.append(step)
        if step.length > self._lengths[-1]:
            self._lengths.append(step.length)

    @property
    def count(self) -> int:
        """The number of keys (1: certain); MANY or more when nobody could go through them."""
        if self._count == 0:
            self._count = self._count_keys()
        return self._count

    def _count_keys(self) -> int:
        total, product, done = 0, 1, 0
        starts = sorted(self._sectors)
        for length in self._lengths:
            while done < len(starts) and starts[done] < length and product < MANY:
                product *= len(self._sectors[starts[done]]) + 1
                done += 1
            total += product
        return total

    def every_key(self) -> Iterator[FileKey]:
        """Go through all keys."""
        for length in self._lengths:
            choices = [(-1, *steps) for start, steps in self._sectors.items() if start < length]
            for picks in itertools.product(*choices):
                yield length, tuple(pick for pick in picks if pick >= 0)

    def newest(self) -> FileKey:
        """Return the key that loses nothing."""
        return self._prefix(len(self.steps))

    def sample(self, rng: random.Random) -> FileKey:
        """Draw a key: a prefix, all but one sector, or any subset; there must be steps."""
        kind = rng.randrange(3)
        if kind == 0:
            return self._prefix(rng.randrange(len(self.steps) + 1))
        if kind == 1:
            lost = self.steps[rng.randrange(len(self.steps))].start
            kept = (steps[-1] for start, steps in self._sectors.items() if start != lost)
            return self._lengths[-1], tuple(kept)
        length, share = rng.choice(self._lengths), rng.random()
        picks = tuple(
            rng.choice(steps)
            for start, steps in self._sectors.items()
            if start < length and rng.random() < share
        )
        return length, picks

    def _prefix(self, count: int) -> FileKey:
        return (self.steps[count - 1].length if count else len(self.durable)), range(count)

    def content(self, key: FileKey | None) -> tuple[bytes, bytes]:
        """Return the bytes that *key* leaves (None: what is certain) and their digest."""
        if key is None:
            return self._certain
        found = self._contents.get(key)
        if found is None:
            if len(self._contents) >= _CACHED_CONTENTS_MAX:
                self._contents.clear()
            data = self._build(key)
            found = self._contents[key] = (data, digest128(data))
        return found

    def _build(self, key: FileKey) -> bytes:
        length, picks = key
        data = bytearray(self.durable)
        data.extend(bytes(length - len(data)))
        for pick in picks:
            start, piece, _ = self.steps[pick]
            data[start : start + len(piece)] = piece
        return bytes(memoryview(data)[:length])


class OrderedFileHistory(FileHistory):
    """One file under the ordered model: a prefix of its steps."""

    def _count_keys(self) -> int:
        return len(self.steps) + 1

    def every_key(self) -> Iterator[FileKey]:
        """Go through all prefixes."""
        return map(self._prefix, range(len(self.steps) + 1))

    def sample(self, rng: random.Random) -> FileKey:
        """Draw a prefix."""
        return self._prefix(rng.randrange(len(self.steps) + 1))


class Tree(NamedTuple):
    """The names of one outcome; ``inodes`` in the order of the sorted paths, ``key`` names them."""

    files: dict[str, int]
    folders: dict[str, frozenset[str]]
    inodes: tuple[int, ...]
    key: bytes


class NameHistory:
    """The names under the posix model: certain ones, and the changes since each folder's sync."""

    def __init__(self, image: Image) -> None:
        self.certain: dict[str, int] = dict(image.files)
        self.certain.update(dict.fromkeys(image.folders, FOLDER))
        self.pending: list[Names] = []
        self._trees: dict[NamesKey, Tree] = {}

    def change(self, names: Names) -> None:
        """Take a change that is not certain yet."""
        self.pending.append(names)
        self._trees.clear()

    def sync(self, folder: str) -> None:
        """Make what concerns *folder* certain; a rename between two folders comes apart here."""
        left = []
        for names in self.pending:
            here = [effect for effect in names.effects if _parent(effect[0]) == folder]
            _apply(self.certain, here)
            if len(here) < len(names.effects):
                rest = tuple(effect for effect in names.effects if effect not in here)
                left.append(Names(names.call, rest))
        self.pending = left
        self._trees.clear()

    def settle(self) -> None:
        """Make every change certain."""
        for names in self.pending:
            _apply(self.certain, names.effects)
        self.pending = []
        self._trees.clear()

    @property
    def count(self) -> int:
        """The number of keys."""
        return 1 << len(self.pending)

    def every_key(self) -> Iterator[NamesKey]:
        """Go through all subsets of the pending changes."""
        every = range(len(self.pending))
        return itertools.chain.from_iterable(
            itertools.combinations(every, size) for size in range(len(self.pending) + 1)
        )

    def sample(self, rng: random.Random) -> NamesKey:
        """Draw a key: a prefix, all but one, or any subset; there must be pending changes."""
        every = range(len(self.pending))
        kind = rng.randrange(3)
        if kind == 0:
            return every[: rng.randrange(len(every) + 1)]
        if kind == 1:
            lost = rng.randrange(len(every))
            return tuple(index for index in every if index != lost)
        return tuple(index for index in every if rng.random() < 0.5)

    def tree(self, key: NamesKey) -> Tree:
        """Return the names that *key* leaves, without those whose folder is gone."""
        found = self._trees.get(key)
        if found is None:
            entries = dict(self.certain)
            for index in key:
                _apply(entries, self.pending[index].effects)
            found = self._trees[key] = _tree(entries)
        return found


class OrderedNameHistory(NameHistory):
    """The names under the ordered model: a prefix of the changes."""

    @property
    def count(self) -> int:
        """The number of prefixes."""
        return len(self.pending) + 1

    def every_key(self) -> Iterator[NamesKey]:
        """Go through all prefixes."""
        return map(range, range(len(self.pending) + 1))

    def sample(self, rng: random.Random) -> NamesKey:
        """Draw a prefix."""
        return range(rng.randrange(len(self.pending) + 1))

    def sync(self, folder: str) -> None:
        """Make every change certain: the journal of the file system is written as a whole."""
        self.settle()


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _apply(entries: dict[str, int], effects: Iterable[tuple[str, int | None]]) -> None:
    for path, inode in effects:
        if inode is None:
            entries.pop(path, None)
        else:
            entries[path] = inode


def _tree(entries: dict[str, int]) -> Tree:
    files: dict[str, int] = {}
    folders: dict[str, set[str]] = {}
    # Sorted, a folder comes before what is in it.
    for path in sorted(entries):
        parent, _, base = path.rpartition("/")
        if path:
            if parent not in folders:
                continue
            folders[parent].add(base)
        if entries[path] == FOLDER:
            folders[path] = set()
        else:
            files[path] = entries[path]
    return Tree(
        files,
        {folder: frozenset(names) for folder, names in folders.items()},
        tuple(files.values()),
        "\0".join((*files, "", *folders)).encode(),
    )
