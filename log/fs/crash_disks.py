"""The disks that a crash could leave at one point, under each persistence model.

:class:`LossyDisk` loses power and combines the histories of ``mldb.log.fs.crash_model``;
:class:`ProcessDisk` loses only its process.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from mldb.log.checksum import digest128
from mldb.log.fs.crash_model import (
    FileHistory,
    FileKey,
    NameHistory,
    NamesKey,
    OrderedFileHistory,
    OrderedNameHistory,
    Step,
    Tree,
)
from mldb.log.fs.memory_disk import Image, Names, Operation, Sync, SyncFolder, Write

_NAMES = -1  # in a choice of what to lose: the changes of names, beside the inode numbers
_NOTHING_MORE: FileKey = (-1, ())  # for descriptions: of a file only what is certain


class Outcome(NamedTuple):
    """One possible disk: names, content and digest by inode; of a killed process the write cut."""

    tree: Tree
    contents: dict[int, tuple[bytes, bytes]]
    describe: Callable[[], str]
    killed: bool = False
    partial: Write | None = None

    def digest(self) -> bytes:
        """Return what tells this disk from others: names and content."""
        contents = self.contents
        return digest128(self.tree.key + b"".join([contents[node][1] for node in self.tree.inodes]))


# An outcome not built yet; good until the next operation is applied.
Choice: TypeAlias = Callable[[], Outcome]


class LossyDisk:
    """A disk that loses power, under the posix or the ordered model."""

    def __init__(
        self, image: Image, ordered: bool, sector: int, torn_rng: random.Random | None
    ) -> None:
        self.upcoming: Operation | None = None
        self._ordered = ordered
        self._sector = sector
        self._torn_rng = torn_rng
        self._names = OrderedNameHistory(image) if ordered else NameHistory(image)
        self._files = {number: self._new_file(data) for number, data in image.contents.items()}

    def _new_file(self, durable: bytes) -> FileHistory:
        kind = OrderedFileHistory if self._ordered else FileHistory
        return kind(durable, self._sector, self._torn_rng)

    def apply(self, operation: Operation) -> None:
        """Take the next recorded operation."""
        match operation:
            case Write():
                self._files[operation.inode].write(operation)
            case Sync(inode):
                self._files[inode].sync()
                if self._ordered:
                    self._names.settle()
            case SyncFolder(folder):
                self._names.sync(folder)
            case Names():
                if operation.call == "create" and operation.effects[0][1] is not None:
                    self._files[operation.effects[0][1]] = self._new_file(b"")
                self._names.change(operation)

    def count(self) -> int:
        """Return an upper bound of the number of outcomes, exact but for those that are alike."""
        inodes = set(self._names.certain.values())
        inodes.update(node or 0 for names in self._names.pending for _, node in names.effects)
        files = (self._files[node].count for node in inodes if node in self._files)
        return math.prod(files, start=self._names.count)

    def choices(self) -> Iterator[Choice]:
        """Go through every choice; some may come out alike."""
        for kept in self._names.every_key():
            inodes = dict.fromkeys(self._names.tree(kept).inodes)
            nodes = [node for node in inodes if self._files[node].steps]
            for keys in itertools.product(*(self._files[node].every_key() for node in nodes)):
                yield partial(self._outcome, kept, dict(zip(nodes, keys, strict=True)))

    def samples(self, rng: random.Random) -> Iterator[Choice]:
        """Nothing, everything; then one thing lost, or one thing kept, or any mixture."""
        names = self._names
        nodes = [node for node, file in self._files.items() if file.steps]
        units = [*nodes, *([_NAMES] if names.pending else [])]
        newest = {node: self._files[node].newest() for node in nodes}
        whole = range(len(names.pending))
        yield partial(self._outcome, (), {})
        yield partial(self._outcome, whole, newest)
        while True:
            keep = rng.random() < 0.5
            chosen = [rng.choice(units)]
            if rng.random() < 0.5:
                chosen = [unit for unit in units if rng.random() < 0.5]
            kept: NamesKey = whole if keep else ()
            if _NAMES in chosen:
                kept = names.sample(rng)
            drawn = {node: self._files[node].sample(rng) for node in chosen if node != _NAMES}
            yield partial(self._outcome, kept, (newest if keep else {}) | drawn)

    def _outcome(self, kept: NamesKey, keys: dict[int, FileKey]) -> Outcome:
        files, pending, tree = self._files, self._names.pending, self._names.tree(kept)
        contents = {node: files[node].content(keys.get(node)) for node in tree.inodes}
        notes = [
            (path, files[node].steps, keys.get(node, _NOTHING_MORE))
            for path, node in tree.files.items()
            if files[node].steps
        ]
        return Outcome(tree, contents, partial(_describe, pending, len(pending), kept, notes))


def _describe(
    pending: Sequence[Names],
    count: int,
    kept: NamesKey,
    notes: Sequence[tuple[str, Sequence[Step], FileKey]],
) -> str:
    lost = [pending[index] for index in range(count) if index not in kept]
    words = ", ".join(f"{names.call} {names.effects[-1][0]}" for names in lost) or "nothing"
    return "; ".join([f"names lost: {words}", *(_describe_file(*note) for note in notes)])


def _describe_file(path: str, steps: Sequence[Step], key: FileKey) -> str:
    length, picks = key
    kept = " ".join(f"[{steps[pick].start}:+{len(steps[pick].data)}]" for pick in picks[:8])
    size = "synced length" if length < 0 else f"length {length}"
    return f"{path}: {size}, {len(picks)} unsynced pieces on disk {kept}"


class ProcessDisk:
    """A disk whose process is killed: everything, and the write in progress cut at any byte."""

    def __init__(self, image: Image) -> None:
        self.upcoming: Operation | None = None
        self._names = NameHistory(image)
        self._images = {number: bytearray(data) for number, data in image.contents.items()}
        self._contents: dict[int, tuple[bytes, bytes]] = {}

    def apply(self, operation: Operation) -> None:
        """Take the next recorded operation."""
        if isinstance(operation, Write):
            _overwrite(self._images[operation.inode], operation)
            self._contents.pop(operation.inode, None)
        elif isinstance(operation, Names):
            if operation.call == "create":
                self._images[operation.effects[0][1] or 0] = bytearray()
            self._names.change(operation)
            self._names.settle()

    def count(self) -> int:
        """Return the number of outcomes: one, and one for each cut of the upcoming write."""
        return len(self.upcoming.data) if isinstance(self.upcoming, Write) else 1

    def choices(self) -> Iterator[Choice]:
        """Go through every choice."""
        return (partial(self._outcome, cut) for cut in range(self.count()))

    def samples(self, rng: random.Random) -> Iterator[Choice]:
        """Nothing of the write, its first byte, all but its last; then any cut."""
        count = self.count()
        for cut in (0, 1, count - 1):
            yield partial(self._outcome, cut)
        while True:
            yield partial(self._outcome, rng.randrange(count))

    def _outcome(self, cut: int) -> Outcome:
        for number, image in self._images.items():
            if number not in self._contents:
                self._contents[number] = _with_digest(bytes(image))
        contents = dict(self._contents)
        if not (cut and isinstance(self.upcoming, Write)):
            words = "the next one not begun"
            return Outcome(self._names.tree(()), contents, partial(str, words), True)
        part = self.upcoming._replace(data=self.upcoming.data[:cut])
        image = bytearray(contents[part.inode][0])
        _overwrite(image, part)
        contents[part.inode] = _with_digest(bytes(image))
        words = f"the next write cut after {cut} of {self.count()} bytes"
        return Outcome(self._names.tree(()), contents, partial(str, words), True, part)


def _overwrite(image: bytearray, write: Write) -> None:
    image.extend(bytes(max(0, write.offset - len(image))))
    image[write.offset : write.offset + len(write.data)] = write.data


def _with_digest(data: bytes) -> tuple[bytes, bytes]:
    return data, digest128(data)
