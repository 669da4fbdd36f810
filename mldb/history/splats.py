"""What the log stores of a splat lake: the attrs of its keys and the columns of a block.

A block is the rows of one ``add_splats``: structure of arrays, ``mu`` first at a page boundary, so
that it is at once the NumPy array, the import into a device and the torch tensor. Layout: FORMAT.md
section 5. Pure functions over bytes; nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np

from mldb.deferred import dataclass
from mldb.errors import FormatVersionError, InvalidNameError
from mldb.log.frame import pack, unpack
from mldb.sphere.geometry import Geometry

PAGE_LOG2: Final = 12
CHECK_LOG2: Final = 14  # a row read at random has 16 KiB verified, not a MiB
COLUMN_ALIGN: Final = 64
LAKE_DIM_MAX: Final = 1 << 18  # what the noise counter addresses
ID_MAX: Final = (1 << 48) - 1
BLOCK_ROWS_MAX: Final = 1 << 40
USER_COLUMNS_MAX: Final = 64

_FIXED: Final[tuple[tuple[str, str, tuple[int, ...]], ...]] = (
    ("norm", "<f4", ()),
    ("kappa", "<f4", ()),
    ("alpha", "<f8", ()),
    ("min_cos", "<f4", ()),
    ("id", "<u8", ()),
)
_FIXED_NAMES: Final = tuple(name for name, _, _ in _FIXED)
PROVENANCE: Final = ("lsn", "augmentation", "changed")
"""What a stream tells of a row beside its columns."""
RESERVED: Final = frozenset({"mu", "label", "weight", *_FIXED_NAMES})


@dataclass(frozen=True, slots=True)
class LakeInfo:
    """A lake: its identity, its shape, and the id that its next row is given."""

    lake_id: bytes
    dim: int
    geometry: Geometry
    next_id: int


@dataclass(frozen=True, slots=True)
class BlockColumn:
    """One column of a block: its dtype, the shape of one value, and its place in the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """The rows of one ``add_splats``. A row's id is ``base`` plus what the id column holds.

    ``alpha_sum``, ``alpha_max`` and ``kappa_min``, ``kappa_max`` are statistics for samplers.
    """

    rows: int
    base: int
    columns: tuple[BlockColumn, ...]
    alpha_sum: float
    alpha_max: float
    kappa_min: float
    kappa_max: float

    def column(self, name: str) -> BlockColumn | None:
        """The column of this name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        last = self.columns[-1]
        return last.offset + self.rows * last.row_bytes


@dataclass(frozen=True, slots=True)
class RemovalInfo:
    """Rows that are gone from here on: the payload holds their ids, u64, ascending."""

    count: int


def lay_out(
    rows: int, dim: int, *, labels: bool, user: Sequence[tuple[str, str, tuple[int, ...]]] = ()
) -> tuple[BlockColumn, ...]:
    """Place the columns of a block: mu, the fixed ones, labels, then those of the user."""
    labelled = (("label", "<i8", ()),) if labels else ()
    columns: list[BlockColumn] = []
    offset = 0
    for name, dtype, shape in (("mu", "<f4", (dim,)), *_FIXED, *labelled, *user):
        columns.append(BlockColumn(name, dtype, shape, offset))
        end = offset + rows * np.dtype(dtype).itemsize * prod(shape)
        offset = -(-end // COLUMN_ALIGN) * COLUMN_ALIGN
    return tuple(columns)


def check_column_name(name: str) -> str:
    """Return a user column's name. Raises InvalidNameError."""
    if not isinstance(name, str) or not name or len(name) > 128 or "\0" in name:
        raise InvalidNameError(f"{name!r:.80} is no name of a column: 1 to 128 characters, no NUL")
    if not name.isprintable():
        raise InvalidNameError(f"{name!r:.80} is no name of a column: it cannot be printed")
    if name in RESERVED:
        raise InvalidNameError(
            f"a column of its own may not be called {name!r}; taken are {sorted(RESERVED)}"
        )
    return name


# --- attrs ----------------------------------------------------------------------------------------
# Numbers that are known only under the commit lock are eight bytes, so that the place of a payload
# written before does not depend on them. What stands behind the elements of this version is read
# over; what may not be read over has a higher version.

ATTR_VERSION: Final = 1
_ADDED: Final = 0
_REMOVED: Final = 1


def pack_lake(info: LakeInfo) -> bytes:
    """The attr of a lake's key."""
    return pack(
        (ATTR_VERSION, info.lake_id, info.dim, info.geometry, info.next_id.to_bytes(8, "little"))
    )


def unpack_lake(attr: bytes) -> LakeInfo:
    """Decode it. Raises ValueError, FormatVersionError."""
    _, lake_id, dim, geometry, next_id = attr_fields(attr, 5)[:5]
    if geometry not in ("sphere", "euclid") or len(lake_id) != 16:
        raise ValueError(f"a lake of geometry {geometry!r}")
    number = int.from_bytes(next_id, "little")
    if type(dim) is not int or not 0 < dim <= LAKE_DIM_MAX or number > ID_MAX + 1:
        raise ValueError(f"a lake of dimension {dim!r} whose next id is {number}")
    return LakeInfo(lake_id, dim, geometry, number)


def pack_block(info: BlockInfo) -> bytes:
    """The attr of a block of added rows."""
    return pack((ATTR_VERSION, _ADDED, *block_fields(info)))


def block_fields(info: BlockInfo | None) -> tuple[Any, ...]:
    """What attrs say of a block: rows, base, columns, statistics; zeros for none."""
    if info is None:
        return 0, bytes(8), (), (0.0, 0.0, 0.0, 0.0)
    columns = [(c.name, c.dtype, c.shape, c.offset) for c in info.columns]
    stats = (info.alpha_sum, info.alpha_max, info.kappa_min, info.kappa_max)
    base = info.base.to_bytes(8, "little")
    return info.rows, base, columns, stats


def pack_removal(info: RemovalInfo) -> bytes:
    """The attr of a block of removed ids."""
    return pack((ATTR_VERSION, _REMOVED, info.count))


def unpack_splats(attr: bytes, length: int) -> BlockInfo | RemovalInfo:
    """Decode the attr of rows added or removed; *length* is that of its payload.

    Every place is bounded by the payload. Raises ValueError, FormatVersionError.
    """
    fields = attr_fields(attr, 3)
    if fields[1] == _REMOVED:
        count = fields[2]
        if type(count) is not int or count * 8 != length:
            raise ValueError(f"{count!r} removed ids in {length} bytes")
        return RemovalInfo(count)
    if len(fields) < 6 or fields[1] != _ADDED:
        raise ValueError("neither added nor removed rows")
    info = read_block_fields(fields[2:6], length)
    if info.nbytes != length:
        raise ValueError(f"columns of {info.nbytes} bytes in a payload of {length}")
    return info


def read_block_fields(fields: list[Any], length: int) -> BlockInfo:
    """Decode what an attr says of a block; it ends within *length* bytes. Raises ValueError."""
    rows, base, raw, stats = fields
    if type(base) is not bytes or len(base) != 8:
        raise ValueError(f"a block of base {base!r}")
    if type(rows) is not int or not 0 < rows <= BLOCK_ROWS_MAX or len(raw) > USER_COLUMNS_MAX + 8:
        raise ValueError(f"a block of {rows!r} rows")
    columns = tuple(_column(item, rows, length) for item in raw)
    names = [column.name for column in columns]
    if names[:6] != ["mu", *_FIXED_NAMES] or len(set(names)) != len(names):
        raise ValueError(f"a block of the columns {names}")
    return BlockInfo(rows, int.from_bytes(base, "little"), columns, *map(float, stats[:4]))


def _column(item: Any, rows: int, length: int) -> BlockColumn:
    name, code, shape, offset = item[:4]
    dtype = np.dtype(code)
    if dtype.kind not in "biuf" or any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError(f"a column of dtype {code!r} and shape {shape!r}")
    if type(name) is not str or type(offset) is not int or offset < 0 or offset % COLUMN_ALIGN:
        raise ValueError(f"column {name!r} at offset {offset!r}")
    column = BlockColumn(name, code, tuple(shape), offset)
    if offset + rows * column.row_bytes > length:
        raise ValueError(f"column {name!r} ends behind its payload")
    return column


def attr_fields(attr: bytes, least: int) -> list[Any]:
    """Return the elements of an attr, at least so many. Raises ValueError, FormatVersionError."""
    fields = unpack(attr)
    if not isinstance(fields, list) or len(fields) < least or type(fields[0]) is not int:
        raise ValueError("an attr of another shape")
    if fields[0] > ATTR_VERSION:
        raise FormatVersionError(
            f"what is stored of a splat lake has version {fields[0]}; this mldb reads up to "
            f"{ATTR_VERSION}. Tensors stay readable; use a newer mldb."
        )
    if fields[0] != ATTR_VERSION:
        raise ValueError(f"an attr of version {fields[0]}")
    return fields
