"""A patch: some rows of a version as they are after a change, the others as they were. Pure.

A version is seen as rows of equally many bytes; what they mean is not known here. Layout: FORMAT.md
section 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.arrays import Numbers
from mldb.deferred import NamedTuple
from mldb.log.fs.protocol import Buffer

if TYPE_CHECKING:
    import numpy.typing as npt

PATCH_HEADER: Final = struct.Struct("<BB6xQQ8x")
PATCH_VERSION: Final = 1
_ALIGN: Final = 64
_NARROW: Final = 4  # bytes of a row number that is below 2^32
_WIDE: Final = 8


class PatchError(ValueError):
    """Stored bytes are no patch of this version. Whoever knows the file says where."""


class Patch(NamedTuple):
    """Rows that are set: ``rows`` ascend, each once; ``values`` are *row_bytes* for each."""

    rows: Numbers
    values: npt.NDArray[np.uint8]
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """The bytes that it sets."""
        return self.values.nbytes


def encode_patch(patch: Patch) -> list[Buffer]:
    """Return the stored form in two parts, the second of which is the values themselves."""
    rows = patch.rows
    width = _NARROW if not len(rows) or rows[-1] < 1 << 32 else _WIDE
    head = PATCH_HEADER.pack(PATCH_VERSION, width, len(rows), patch.row_bytes)
    head += rows.astype(f"<u{width}").tobytes()
    return [head + bytes(-len(head) % _ALIGN), patch.values.reshape(-1).data]


def decode_patch(stored: memoryview, size: int) -> Patch:
    """Return the patch in *stored*, of a version of *size* bytes; its values are a view.

    Raises PatchError.
    """
    try:
        version, width, count, row_bytes = PATCH_HEADER.unpack_from(stored)
    except struct.error as error:
        raise PatchError(str(error)) from None
    if version != PATCH_VERSION or width not in (_NARROW, _WIDE):
        raise PatchError(f"its header begins with {version}, {width}")
    start = PATCH_HEADER.size + count * width
    start += -start % _ALIGN
    if not row_bytes or size % row_bytes or count * row_bytes != len(stored) - start:
        raise PatchError(
            f"{count} rows of {row_bytes} bytes in {len(stored)}, the tensor has {size}"
        )
    rows = np.frombuffer(stored, f"<u{width}", count, PATCH_HEADER.size).astype(np.int64)
    if count and (rows[-1] >= size // row_bytes or rows[0] < 0 or (rows[1:] <= rows[:-1]).any()):
        raise PatchError("its rows do not ascend, or are not in the tensor")
    values = np.frombuffer(stored, np.uint8, count * row_bytes, start)
    return Patch(rows, values.reshape(count, row_bytes), row_bytes)


def apply_patch(patch: Patch, target: Any, first: int = 0) -> None:
    """Set the rows of a patch in *target*, writable bytes of whole rows from row *first* on."""
    size = patch.row_bytes
    table = np.frombuffer(target, np.uint8).reshape(-1, size)
    rows, values = patch.rows, patch.values
    if first or len(rows) > len(table) or (len(rows) and rows[-1] >= len(table)):
        low, high = np.searchsorted(rows, (first, first + len(table))).tolist()
        rows, values = rows[low:high] - first, values[low:high]
    # One copy for each row, whatever is in it.
    row = np.dtype((np.void, size))
    table.view(row)[rows, 0] = np.ascontiguousarray(values).view(row)[:, 0]


def merge_patches(older: Patch, newer: Patch) -> Patch:
    """Return one patch that does what *older* and then *newer* do."""
    rows = np.concatenate((older.rows, newer.rows))
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    is_last = np.append(rows[1:] != rows[:-1], True) if len(rows) else np.zeros(0, bool)
    values = np.concatenate((older.values, newer.values))[order[is_last]]
    return Patch(rows[is_last], values, newer.row_bytes)


def fold_patches(patches: Sequence[Patch]) -> Patch:
    """Return one patch that does what these do, one after another; there is at least one."""
    if len(patches) == 1:
        return patches[0]
    middle = len(patches) // 2
    return merge_patches(fold_patches(patches[:middle]), fold_patches(patches[middle:]))
