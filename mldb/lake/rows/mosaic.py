"""One column of many blocks as one table: a batch of scattered rows is one copy for each mapping.

Blocks of a segment lie in one mapping of it, at multiples of the size of a number. A view of the
mapping whose "rows" overlap, one for every number, has any row of any block among them; so rows of
ten thousand blocks are copied as fast as rows of one. Every index is checked against the mapping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.lake.rows.block import UNLABELLED, MappedBlock
from mldb.lake.rows.growing import Growing
from mldb.log import native
from mldb.log.ownership import OwnedLock

_WHOLE_BYTES: Final = 1 << 16  # of a column: verified as a whole, once, when first touched
_NONE: Final = -1  # the table of a block that was not asked for
_UNLABELLED: Final = -2
_TOUCH_BYTES: Final = 1024

_BlockAt: TypeAlias = Callable[[int], MappedBlock]


class Mosaic:
    """A column of the first blocks of a chain. Any thread.

    It holds what is mapped of the blocks that were asked for, and 27 bytes a block. ``_lock``
    guards what is learnt of a block; that it is verified is noted last.
    """

    def __init__(
        self, name: str, stops: Numbers, dtype: str, shape: tuple[int, ...], block: _BlockAt
    ) -> None:
        self.name = name
        self._stops = stops
        self._starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
        self._block = block
        self._dtype = np.dtype(dtype)
        self._row = np.dtype((np.void, self._dtype.itemsize * int(np.prod(shape, dtype=np.int64))))
        self._lock = OwnedLock(f"the places of column {name!r}")
        self._tables: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []  # of rows, of numbers
        self._flat: tuple[npt.NDArray[Any], ...] = ()  # the same numbers
        self._number: dict[int, int] = {}  # of a table, by the address of its mapping
        self._table = np.full(len(stops), _NONE, np.int16)
        self._offset = np.zeros(len(stops), np.int64)  # of row 0 of the column, in numbers
        self._base = Growing(np.int64)  # what is added to ids
        self._is_verified = np.zeros(len(stops), np.bool_)
        known: tuple[npt.NDArray[Any], ...]
        known = stops, self._table, self._offset, self._is_verified
        if name == "id":
            self._base.append(np.zeros(len(stops), np.int64))
            known = *known, self._base.first(len(stops))
        self._known = known

    @property
    def is_verified(self) -> bool:
        """Whether no row of it needs a further check."""
        return bool(self._is_verified.all())

    def gather_known(self, rows: Numbers, out: npt.NDArray[Any]) -> bool:
        """Copy stored rows of blocks that are verified to *out*, in one call without the lock.

        False, with anything in *out*, where that is not possible: :meth:`gather` is asked then.
        """
        twin, size = native.twin, self._dtype.itemsize
        if twin is None or not size:
            return False
        numbers = self._row.itemsize // size
        return bool(twin.gather_rows(self._flat, rows, out, numbers, size, self._known))

    def gather(self, rows: Numbers, out: npt.NDArray[Any]) -> bool:
        """Copy stored rows to *out*, C-contiguous; False, and nothing, where this has no way to.

        Raises CorruptError.
        """
        which = np.searchsorted(self._stops, rows, "right")
        local = rows - self._starts[which]
        if not self._is_verified[which].all() and not self._look_at(which, local):
            return False
        tables = self._table[which]
        width = self._row.itemsize // self._dtype.itemsize
        places = self._offset[which] + local * width
        into = out.view(self._row).reshape(-1) if width > 1 else out.view(self._row)
        first = int(tables[0])
        if first >= 0 and (tables == first).all():
            self._copy(first, places, into, slice(None))
        else:
            for number in np.unique(tables).tolist():
                here = np.flatnonzero(tables == number)
                if number == _UNLABELLED:
                    out[here] = UNLABELLED
                else:
                    self._copy(number, places[here], into, here)
        if self.name == "id":
            numbers = out.view(np.int64)
            numbers += self._base.first(len(self._stops))[which]
        return True

    def _copy(self, number: int, places: Numbers, into: npt.NDArray[Any], where: Any) -> None:
        rows, flat = self._tables[number]
        if self._row.itemsize >= _TOUCH_BYTES:
            # Reads that do not wait for each other bring the pages in; see mldb.lake.rows.take.
            flat[places]
        into[where] = rows[places]

    def _look_at(self, which: Numbers, local: Numbers) -> bool:
        """Map and verify what holds these rows. Blocks of few bytes are verified whole."""
        guard = self._lock.hold_unless_inside()
        if guard is None:
            return False  # inside this very call: the blocks are asked one by one
        with guard:
            return self._learn(which, local)

    def _learn(self, which: Numbers, local: Numbers) -> bool:
        fresh = np.flatnonzero(~self._is_verified[which])
        if not len(fresh):
            return True  # another thread was faster
        order = fresh[np.argsort(which[fresh], kind="stable")]
        numbers, starts = np.unique(which[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            block = self._block(number)
            if self._table[number] == _NONE and not self._admit(number, block):
                return False
            if self._table[number] == _UNLABELLED:
                self._is_verified[number] = True
                continue
            if not block.is_verified(self.name):
                small = block.info.rows * self._row.itemsize <= _WHOLE_BYTES
                block.verify(self.name, slice(0, block.info.rows) if small else local[places])
            self._is_verified[number] = block.is_verified(self.name)
        return True

    def _admit(self, number: int, block: MappedBlock) -> bool:
        """Find the place of a block's column in its mapping."""
        if self.name == "label" and block.info.column("label") is None:
            self._table[number] = _UNLABELLED
            return True
        array = block.array(self.name)
        whole = _exporter(array)
        if whole is None or array.dtype != self._dtype or not self._row.itemsize:
            return False
        size = self._dtype.itemsize
        offset = _address(array) - _address(whole)
        table = self._number.get(_address(whole))
        if table is None or len(self._tables[table][1]) != len(whole) // size:
            table = self._map(whole)
        if offset % size or table < 0:
            return False
        self._offset[number] = offset // size
        if self.name == "id":
            self._base.first(len(self._stops))[number] = block.info.base
        self._table[number] = table
        return True

    def _map(self, whole: npt.NDArray[np.uint8]) -> int:
        size, row = self._dtype.itemsize, self._row.itemsize
        count = (len(whole) - row) // size + 1
        if count < 1 or len(self._tables) >= np.iinfo(np.int16).max:
            return -1
        flat = whole[: len(whole) // size * size].view(self._dtype)
        self._tables.append((np.ndarray((count,), self._row, whole, 0, (size,)), flat))
        self._flat = (*self._flat, flat)
        number = self._number[_address(whole)] = len(self._tables) - 1
        return number


def _exporter(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """All bytes of the mapping that *array* is a view of; None where it is something else."""
    data: Any = array
    while isinstance(data, np.ndarray) and data.base is not None:
        data = data.base
    if isinstance(data, memoryview):
        data = data.obj
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError):
        return None


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
