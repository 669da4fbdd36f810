"""What the log stores of merges of splats, and of merges taken back: attrs and payloads.

The rows made are a splat block as additions have it (``mldb.history.splats``), so that they are
read like any others. Behind it stands what they were made of, and the stress of the sandpile.
Layout: FORMAT.md section 5. Pure functions over bytes; nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from mldb.deferred import dataclass
from mldb.history.splats import (
    ATTR_VERSION,
    BLOCK_ROWS_MAX,
    COLUMN_ALIGN,
    BlockColumn,
    BlockInfo,
    RemovalInfo,
    attr_fields,
    block_fields,
    read_block_fields,
    unpack_splats,
)
from mldb.log.frame import pack

MERGED: Final = 2
UNDONE: Final = 3

PlainRun = Mapping[str, str | int | float | bool | None]
"""Settings of a run by name."""


@dataclass(frozen=True, slots=True)
class MergeInfo:
    """One SPLATS_CONSOLIDATED: the block of rows made, None where only stress moved, and the rest.

    ``sources`` counts the rows that ended, ``stressed`` those whose stress is told beside the rows
    made; ``is_whole``: no stress that was told before counts. ``run`` says how it came about.
    """

    block: BlockInfo | None
    sources: int
    stressed: int
    is_whole: bool
    run: PlainRun = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows were made."""
        return 0 if self.block is None else self.block.rows

    @property
    def parts(self) -> tuple[BlockColumn, ...]:
        """The columns behind the block: starts, sources, made_stress, stressed, stress."""
        counts = (self.rows + 1, self.sources, self.rows, self.stressed, self.stressed)
        names = ("starts", "sources", "made_stress", "stressed", "stress")
        places: list[BlockColumn] = []
        end = 0 if self.block is None else self.block.nbytes
        for name, count in zip(names, counts, strict=True):
            offset = -(-end // COLUMN_ALIGN) * COLUMN_ALIGN
            code = "<u4" if name in ("made_stress", "stress") else "<u8"
            places.append(BlockColumn(name, code, (count,), offset))
            end = offset + places[-1].row_bytes
        return tuple(places)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        last = self.parts[-1]
        return last.offset + last.row_bytes

    def part(self, name: str) -> BlockColumn:
        """The place of a column behind the block; its shape is how many values there are."""
        return next(part for part in self.parts if part.name == name)


@dataclass(frozen=True, slots=True)
class UndoInfo:
    """One CONSOLIDATION_UNDONE: the commit it takes back, rows ended, and rows live again."""

    target: int
    ended: int
    restored: int

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return 8 * (self.ended + self.restored)


def pack_merge(info: MergeInfo) -> bytes:
    """The attr of merges."""
    rest = (info.sources, info.stressed, info.is_whole, dict(info.run))
    return pack((ATTR_VERSION, MERGED, *block_fields(info.block), *rest))


def pack_undo(info: UndoInfo) -> bytes:
    """The attr of merges taken back."""
    return pack((ATTR_VERSION, UNDONE, info.target, info.ended, info.restored))


def unpack_change(attr: bytes, length: int) -> BlockInfo | RemovalInfo | MergeInfo | UndoInfo:
    """Decode the attr of a key in the splats space; *length* is that of its payload.

    Every place is bounded by the payload. Raises ValueError, FormatVersionError.
    """
    fields = attr_fields(attr, 3)
    if fields[1] == MERGED:
        return _read_merge(fields, length)
    if fields[1] == UNDONE:
        return _read_undo(fields, length)
    return unpack_splats(attr, length)


def _read_merge(fields: list[Any], length: int) -> MergeInfo:
    if len(fields) < 10:
        raise ValueError("merges of another shape")
    sources, stressed, is_whole, run = fields[6:10]
    for count in (sources, stressed):
        if type(count) is not int or not 0 <= count <= BLOCK_ROWS_MAX:
            raise ValueError(f"merges of {count!r} rows")
    if type(is_whole) is not bool or not isinstance(run, dict):
        raise ValueError("merges of another shape")
    block = read_block_fields(fields[2:6], length) if fields[2] else None
    info = MergeInfo(block, sources, stressed, is_whole, run)
    if info.nbytes != length or (sources > 0) != (block is not None):
        raise ValueError(f"merges of {info.nbytes} bytes in a payload of {length}")
    return info


def _read_undo(fields: list[Any], length: int) -> UndoInfo:
    if len(fields) < 5 or any(type(n) is not int or n < 1 for n in fields[2:5]):
        raise ValueError("an undone merge of another shape")
    info = UndoInfo(*fields[2:5])
    if info.nbytes != length:
        raise ValueError(f"{info.ended} and {info.restored} ids in {length} bytes")
    return info


# --- policies -------------------------------------------------------------------------------------


def pack_policy(policy: PlainRun) -> bytes:
    """The attr of a policy."""
    return pack((ATTR_VERSION, dict(policy)))


def unpack_policy(attr: bytes) -> dict[str, Any]:
    """Decode it. Raises ValueError, FormatVersionError."""
    found = attr_fields(attr, 2)
    if not isinstance(found[1], dict) or any(type(name) is not str for name in found[1]):
        raise ValueError("a policy of another shape")
    return found[1]
