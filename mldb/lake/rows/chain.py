"""What was stored of one lake along one lineage, folded once: every state is a beginning of it.

A commit adds a block of rows, or removes ids, or does both in a merge; or it takes a merge back.
The chain holds them as columns that only grow, so
the next commit costs what it changes, and a state as of an earlier commit is two counts: so many
blocks, and so many removals. A rewind forks: what follows the common beginning is a chain of its
own. Blocks are mapped when their rows are first asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

import numpy as np

from mldb import keys
from mldb.arrays import Bools, Numbers
from mldb.errors import CorruptError, VersionGoneError
from mldb.history.merged import MergeInfo, UndoInfo, unpack_change
from mldb.history.splats import BlockInfo, RemovalInfo
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.ends import TRIPLE, Ends
from mldb.lake.rows.growing import Growing
from mldb.lake.rows.ids import IdIndex
from mldb.lake.rows.parts import merge_part
from mldb.lake.rows.schema import Schema, schema_of
from mldb.log.index.address import Entry, Intervals
from mldb.log.index.lineage import is_visible
from mldb.log.ownership import OwnedLock
from mldb.names import check_name
from mldb.tensors.scope import Scope

_MAPPED_MAX: Final = 1 << 14  # blocks kept mapped; those held elsewhere stay
_AT_ONCE: Final = 1 << 12  # blocks that are told together
_NO_IDS: Final = np.empty(0, np.int64)

SplatEnd = RemovalInfo | MergeInfo | UndoInfo
"""A change that ends rows."""

BlockShape = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of one value of each column of a block."""


class Size(NamedTuple):
    """How much of a chain a state is. A merge counts as a removal, and so does an undone one."""

    blocks: int
    removals: int


NO_CHANGES: Final = Size(0, 0)


class Chain:
    """The folded history of a lake. Any thread reads; ``lock`` guards what grows it.

    ``size`` says how much is there; it is told last, when all of it is, and never shrinks. Views of
    columns are of lengths that were told.
    """

    def __init__(self, name: str, lake_id: bytes) -> None:
        self.name = name
        self.lake_id = lake_id
        self.size = NO_CHANGES
        self.lock = OwnedLock(f"the blocks of lake {name!r}")
        self.fresh: dict[int, Numbers] = {}
        """The ids of rows that this handle just added, by commit: they need not be read back."""
        # How many changes the hint holds, and whether it has ids; see mldb.lake.rows.chain_hint.
        self.saved = 0
        self.saved_ids = False
        # Of each block: the commit that its key names, its own, the rows up to its end, its shape.
        self.heads = Growing(np.int64)
        self.commits = Growing(np.int64)
        self.stops = Growing(np.int64)
        self.shape_of = Growing(np.int32)
        self.shapes: list[BlockShape] = []
        self.shape_from: list[int] = []  # the first block of each shape
        self._schema = 0, schema_of(())  # of so many shapes: of the state that was asked for last
        self.ends = Ends()
        # Of each merge: its commit, the one its key names, and 0; of an undone one the commit that
        # it took back in place of 0.
        self.merged = Growing(np.int64)
        self.index = IdIndex()
        self._growing = False  # still set when a change was interrupted
        self._mapped: dict[int, MappedBlock] = {}

    # --- states -----------------------------------------------------------------------------------

    def visible(self, intervals: Intervals) -> Size:
        """The longest beginning that a snapshot sees: O(log changes) looks at *intervals*."""
        size = self.size
        return Size(
            _visible(self.commits.first(size.blocks), intervals),
            _visible(self.ends.commits.first(size.removals), intervals),
        )

    def at(self, commit: int) -> Size:
        """The beginning up to a commit of this lineage."""
        size = self.size
        return Size(
            int(np.searchsorted(self.commits.first(size.blocks), commit, "right")),
            int(np.searchsorted(self.ends.commits.first(size.removals), commit, "right")),
        )

    def last_commit(self, size: Size) -> int:
        """The commit that made a state what it is; 0 for the empty one."""
        block = int(self.commits.first(size.blocks)[-1]) if size.blocks else 0
        removal = int(self.ends.commits.first(size.removals)[-1]) if size.removals else 0
        return max(block, removal)

    def stored(self, size: Size) -> int:
        """Rows stored in a state, removed ones included."""
        return int(self.stops.first(size.blocks)[-1]) if size.blocks else 0

    def live_count(self, size: Size) -> int:
        """Rows that are live in a state."""
        return self.stored(size) - self.ends.count(size.removals)

    def live(self, size: Size) -> Numbers | None:
        """The stored rows that are live in a state, ascending; None when all are. O(N)."""
        return self.ends.live(size.removals, self.stored(size))

    def are_live(self, rows: Numbers, size: Size) -> Bools:
        """Which of these stored rows are live in a state."""
        return self.ends.are_live(rows, size.removals, self.stored(size))

    def merges(self, size: Size) -> Numbers:
        """The merges of a state, [n, 3]: commit, the commit in its key, and the one taken back."""
        found = self.merged.first(self.merged.count).reshape(-1, TRIPLE)
        return found[: int(np.searchsorted(found[:, 0], self.last_commit(size), "right"))]

    def shared(self, other: Chain) -> int:
        """How many changes two chains begin with alike."""
        count = 0
        for mine, theirs in (
            (self.commits, other.commits),
            (self.ends.commits, other.ends.commits),
        ):
            least = min(mine.count, theirs.count)
            differ = np.flatnonzero(mine.first(least) != theirs.first(least))
            count += int(differ[0]) if len(differ) else least
        return count

    def fork(self, size: Size) -> Chain:
        """A chain of its own that begins as this one: O(what it begins with)."""
        other = Chain(self.name, self.lake_id)
        other.fresh, other.saved = self.fresh, min(self.saved, sum(size))
        other.saved_ids = self.saved_ids
        for name in ("heads", "commits", "stops", "shape_of"):
            column: Growing = getattr(self, name)
            setattr(other, name, Growing(column.first(0).dtype, column.first(size.blocks)))
        other.shape_from = [block for block in self.shape_from if block < size.blocks]
        other.shapes = self.shapes[: len(other.shape_from)]
        stored = self.stored(size)
        other.ends = self.ends.fork(size.removals, stored)
        other.merged = Growing(np.int64, self.merges(size).reshape(-1))
        other._take_ids(self.index, stored)
        other.size = size
        return other

    def _take_ids(self, index: IdIndex, stored: int) -> None:
        """Begin with the ids that another chain knows of the same rows."""
        if index.count <= stored:
            self.index = index.copy()
        elif stored:
            self.index.add(index.in_order(stored))

    # --- growing ----------------------------------------------------------------------------------

    def extend(self, scope: Scope) -> None:
        """Take in what *scope* sees behind all of this; the caller holds ``lock``.

        All of this is visible in *scope*. Raises CorruptError; what came before the damage is in.
        """
        if self._growing:
            self._forget_half()
        self._growing = True
        after = self.last_commit(self.size)
        prefix = keys.splats_prefix(check_name(self.name))
        start = prefix + after.to_bytes(8, "big")
        blocks: list[tuple[bytes, Entry, BlockInfo]] = []
        for key, entry in scope.view.live_since(prefix, start, after, scope.intervals):
            try:
                if len(key) != len(start) or _head_of(key) >= entry.commit_lsn:
                    raise ValueError("a key that names no commit before its own")
                part = unpack_change(entry.attr, entry.length)
            except (ValueError, TypeError) as error:
                self._add_blocks(scope, blocks)
                raise damaged(scope, entry, self.name, error) from None
            if isinstance(part, BlockInfo):
                blocks.append((key, entry, part))
            if len(blocks) >= _AT_ONCE or not isinstance(part, BlockInfo):
                self._add_blocks(scope, blocks)
                blocks = []
            if not isinstance(part, BlockInfo):
                self._end_rows(scope, key, entry, part)
        self._add_blocks(scope, blocks)
        self._growing = False

    def _forget_half(self) -> None:
        """Undo what an interrupt left of a change that was not told."""
        blocks = self.size.blocks
        for column in (self.heads, self.commits, self.stops, self.shape_of):
            column.cut(blocks)
        self.ends.forget(self.size.removals)
        self.merged.cut(TRIPLE * len(self.merges(self.size)))
        while self.shape_from and self.shape_from[-1] >= blocks:
            self.shape_from.pop()
        del self.shapes[len(self.shape_from) :]
        for number in [number for number in list(self._mapped) if number >= blocks]:
            self._mapped.pop(number, None)

    def _add_blocks(self, scope: Scope, blocks: list[tuple[bytes, Entry, BlockInfo]]) -> None:
        if blocks:
            self._append_blocks(scope, blocks)
            self.size = Size(self.size.blocks + len(blocks), self.size.removals)

    def _append_blocks(self, scope: Scope, blocks: list[tuple[bytes, Entry, BlockInfo]]) -> None:
        """Have what is known of blocks at the end; whoever calls tells that they are there."""
        first, start = self.size.blocks, self.stored(self.size)
        if len(self._mapped) + len(blocks) > _MAPPED_MAX:
            self._mapped = {}
        rows = np.array([info.rows for _, _, info in blocks])
        starts = start + np.cumsum(rows) - rows
        shapes = [self._shape(info, first + place) for place, (_, _, info) in enumerate(blocks)]
        self.heads.append([_head_of(key) for key, _, _ in blocks])
        self.commits.append([entry.commit_lsn for _, entry, _ in blocks])
        self.stops.append(starts + rows)
        self.shape_of.append(shapes)
        low = max(len(blocks) - _MAPPED_MAX, 0)
        for place, before in enumerate(starts[low:].tolist(), low):
            self._mapped[first + place] = MappedBlock(scope, *blocks[place], before, self.name)

    def _shape(self, info: BlockInfo, block: int) -> int:
        shape = tuple((c.name, c.dtype, c.shape) for c in info.columns)
        if shape not in self.shapes:
            self.shapes.append(shape)
            self.shape_from.append(block)
        return self.shapes.index(shape)

    def _end_rows(self, scope: Scope, key: bytes, entry: Entry, change: SplatEnd) -> None:
        """Take in a change that ends rows: a removal, a merge with the block it made, an undo."""
        ids, back, made = _NO_IDS, _NO_IDS, 0
        merge: tuple[int, int, int] | None = None
        if isinstance(change, MergeInfo):
            ids = merge_part(scope, key, entry, change, "sources", self.name)
            merge = entry.commit_lsn, _head_of(key), 0
        else:
            door = scope.source.door
            data = door.version(scope.view, key, entry, entry.length, self.name)
            ids = np.frombuffer(data, "<u8").astype(np.int64)
            if isinstance(change, UndoInfo):
                ids, back = ids[: change.ended], ids[change.ended :]
                merge = entry.commit_lsn, _head_of(key), change.target
        number, stored = self.size.removals, self.stored(self.size)
        self.learn_ids(scope)
        rows, restored = self.index.newest(ids, stored), self.index.newest(back, stored)
        rows = np.unique(rows[self.are_live(rows, self.size)])
        restored = np.unique(restored[(restored >= 0) & ~self.are_live(restored, self.size)])
        self.ends.add(entry.commit_lsn, number, stored, rows, restored)
        if merge is not None:
            self.merged.append(merge)
        if isinstance(change, MergeInfo) and change.block is not None:
            self._append_blocks(scope, [(key, entry, change.block)])
            made = 1
        self.size = Size(self.size.blocks + made, number + 1)

    def learn_ids(self, scope: Scope) -> None:
        """Have the ids of all rows in the index; the caller holds ``lock``. Raises CorruptError."""
        blocks = self.size.blocks
        number = bisect_left(self.stops.first(blocks), self.index.count + 1)
        while number < blocks:
            some = range(number, min(number + _MAPPED_MAX, blocks))
            read = [self._ids_of(scope, block) for block in some]
            self.index.add(read[0] if len(read) == 1 else np.concatenate(read))
            number += len(read)

    def _ids_of(self, scope: Scope, number: int) -> Numbers:
        known = self.fresh.get(int(self.commits.first(number + 1)[number]))
        if known is not None and len(known) == self._rows(number):
            return known
        block = self.block(scope, number)
        ids = np.empty(block.info.rows, np.uint64)
        block.gather("id", slice(0, len(ids)), ids)
        return ids.view(np.int64)

    # --- blocks -----------------------------------------------------------------------------------

    def start(self, number: int) -> int:
        """The rows stored before a block."""
        return int(self.stops.first(number)[-1]) if number else 0

    def block(self, scope: Scope, number: int) -> MappedBlock:
        """Block *number*, mapped; *scope* sees it. Raises CorruptError, VersionGoneError."""
        found = self._mapped.get(number)
        if found is not None:
            return found
        head = int(self.heads.first(number + 1)[number])
        commit = int(self.commits.first(number + 1)[number])
        key = keys.splats_key(check_name(self.name), head)
        entry = scope.view.version_at(key, commit)
        if entry is None:
            raise VersionGoneError(
                f"the rows that commit {commit} added to lake {self.name!r} were pruned while they "
                "were being read. Hold a snapshot (lake.at) to keep what you read."
            )
        try:
            change = unpack_change(entry.attr, entry.length)
            info = change.block if isinstance(change, MergeInfo) else change
            if not isinstance(info, BlockInfo) or info.rows != self._rows(number):
                raise ValueError("it is not the block that was read before")
        except (ValueError, TypeError) as error:
            raise damaged(scope, entry, self.name, error) from None
        if len(self._mapped) >= _MAPPED_MAX:
            self._mapped = {}
        found = MappedBlock(scope, key, entry, info, self.start(number), self.name)
        return self._mapped.setdefault(number, found)

    def _rows(self, number: int) -> int:
        return int(self.stops.first(number + 1)[number]) - self.start(number)

    def columns(self, size: Size) -> list[BlockShape]:
        """The shapes of the blocks of a state, in the order in which they came."""
        seen = zip(self.shapes, self.shape_from, strict=False)
        return [shape for shape, block in seen if block < size.blocks]

    def schema(self, size: Size) -> Schema:
        """What the columns of a state are; not to be changed. Every stream begins by asking."""
        shapes, kept = self.columns(size), self._schema
        if kept[0] != len(shapes):  # as many are the same ones, for there are only more
            kept = self._schema = len(shapes), schema_of(shapes)
        return kept[1]

    @property
    def nbytes(self) -> int:
        """Bytes of its columns and ids; a mapped block holds about a KiB more."""
        columns = (self.heads, self.commits, self.stops, self.shape_of, self.merged)
        return self.index.nbytes + self.ends.nbytes + sum(column.nbytes for column in columns)

    @property
    def changes(self) -> int:
        """How many blocks and removals are known."""
        return sum(self.size)


def _head_of(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")


def damaged(scope: Scope, entry: Entry, name: str, error: Exception) -> CorruptError:
    """What is raised when an attr of a lake cannot be decoded."""
    return CorruptError(
        f"lake {name!r} cannot be decoded: {error}. Tensors and other lakes stay readable.",
        file=scope.source.door.file(scope.view, entry),
        offset=entry.frame,
        key=name,
    )


def _visible(commits: Numbers, intervals: Intervals) -> int:
    """How many of the ascending *commits* of one lineage a snapshot sees: the first ones."""
    low, high = 0, len(commits)
    if high and is_visible(int(commits[-1]), intervals):
        return high
    while low < high:
        middle = (low + high) // 2
        if is_visible(int(commits[middle]), intervals):
            low = middle + 1
        else:
            high = middle
    return low
