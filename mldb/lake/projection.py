"""The splat lakes: blocks of rows and removals, in the order of their commits, as of any commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mldb import keys
from mldb.errors import CorruptError, MissingError
from mldb.history.splats import BlockInfo, LakeInfo, RemovalInfo, unpack_lake, unpack_splats
from mldb.log.index.address import Entry
from mldb.names import check_name
from mldb.tensors.scope import Scope


class Block(NamedTuple):
    """The rows of one addition; ``start`` counts the rows stored before it."""

    key: bytes
    entry: Entry
    info: BlockInfo
    start: int


class Removal(NamedTuple):
    """Ids that were removed; it concerns the rows numbered below ``before``."""

    key: bytes
    entry: Entry
    info: RemovalInfo
    before: int


class LakeState(NamedTuple):
    """What is stored of a lake at one commit. ``version`` is the commit that last changed it."""

    name: str
    version: int
    info: LakeInfo
    blocks: tuple[Block, ...]
    removals: tuple[Removal, ...]

    @property
    def stored(self) -> int:
        """Rows stored, removed ones included."""
        return self.blocks[-1].start + self.blocks[-1].info.rows if self.blocks else 0


def find_lake(scope: Scope, name: str) -> tuple[LakeInfo, Entry] | None:
    """Return what the lake *name* is, or None when there is none in *scope*."""
    entry = scope.find(keys.LAKES + check_name(name))
    if entry is None:
        return None
    try:
        return unpack_lake(entry.attr), entry
    except (ValueError, TypeError) as error:
        raise _damaged(scope, entry, name, error) from None


def require_lake(scope: Scope, name: str) -> tuple[LakeInfo, Entry]:
    """Like :func:`find_lake`. Raises MissingError."""
    found = find_lake(scope, name)
    if found is None:
        known = ", ".join(map(repr, names(scope))) or "none"
        raise MissingError(
            f"there is no lake {name!r} at commit {scope.commit.lsn}; there are: {known}. "
            f"add_splats on db.lake({name!r}) makes one."
        )
    return found


def names(scope: Scope) -> list[str]:
    """The names of all lakes."""
    return [keys.name_of(key) for key, _ in scope.view.live(keys.LAKES, scope.intervals)]


def fold(scope: Scope, name: str, known: LakeState | None = None) -> LakeState:
    """Return the state of lake *name*; *known* is returned when nothing was changed since.

    Raises MissingError, CorruptError.
    """
    info, head = require_lake(scope, name)
    if known is not None and known.version == head.commit_lsn:
        return known
    blocks: list[Block] = []
    removals: list[Removal] = []
    stored = 0
    for key, entry, part in _parts(scope, name):
        if isinstance(part, RemovalInfo):
            removals.append(Removal(key, entry, part, stored))
        else:
            blocks.append(Block(key, entry, part, stored))
            stored += part.rows
    return LakeState(name, head.commit_lsn, info, tuple(blocks), tuple(removals))


def _parts(scope: Scope, name: str) -> Iterator[tuple[bytes, Entry, BlockInfo | RemovalInfo]]:
    prefix = keys.splats_prefix(check_name(name))
    for key, entry in scope.view.live(prefix, scope.intervals):
        try:
            yield key, entry, unpack_splats(entry.attr, entry.length)
        except (ValueError, TypeError) as error:
            raise _damaged(scope, entry, name, error) from None


def _damaged(scope: Scope, entry: Entry, name: str, error: Exception) -> CorruptError:
    return CorruptError(
        f"lake {name!r} cannot be decoded: {error}. Tensors and other lakes stay readable.",
        file=scope.source.door.file(scope.view, entry),
        offset=entry.frame,
        key=name,
    )
