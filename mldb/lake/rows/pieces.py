"""What of a lake is brought in and verified before a pass reads it, piece by piece.

Rows in their order are prepared in runs just before they are read. Rows of a full shuffle may lie
anywhere, so all of the lake is, in its order, which is how a disk and a processor read fastest.
Windows of strata are read a window ahead: a window is shuffled, but its strata are runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from mldb.arrays import Numbers
from mldb.lake.order.pass_order import Windowed
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.live import Rows

_PIECE_BYTES: Final = 4 << 20
_RUN_PIECES: Final = 8  # that are prepared ahead of the reader of rows in their order
_WINDOW_BYTES: Final = 256 << 20  # of the next window are asked for when one begins
_ASKED: Final = 16  # strata asked of the disk ahead of the one that is waited for
_LEAST_BYTES: Final = 1 << 20
"""Blocks of less are left to who reads them, which verifies them whole when it touches them."""


class Reach(NamedTuple):
    """Which pieces are of use: from *first* to before *stop*.

    Those before *needed* are waited for, where the disk has them.
    """

    first: int
    stop: int
    needed: int = 0


class Pieces(Protocol):
    """Pieces 0 .. count-1 of a lake in the order in which a pass needs them.

    ``reach`` is for who reads, the rest for the one thread that prepares.
    """

    count: int
    begins: int
    """The batch, counted from 0, before which preparing begins: the first one waits for nobody."""

    def reach(self, stop: int) -> Reach:
        """What is of use to who reads the rows up to before position *stop* of the pass."""

    def is_resident(self, piece: int) -> bool:
        """Whether a piece would come from memory."""

    def ask(self, first: int, stop: int) -> None:
        """Ask for pieces from the disk; waits for none of them."""

    def prepare(self, piece: int) -> None:
        """Bring in a piece and verify it. Raises CorruptError, StorageIOError, MemoryError."""


class _OfRows(ABC):
    """What all of them do with the rows of a piece."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._row_bytes = 4 * rows.dim

    @abstractmethod
    def rows_of(self, piece: int) -> slice:
        """The rows of a piece."""

    def prepare(self, piece: int) -> None:
        """Bring in a piece and verify it."""
        for block, part in self._parts(piece):
            block.prepare(part)

    def is_resident(self, piece: int) -> bool:
        """Whether a piece would come from memory."""
        return all(block.is_resident(part) for block, part in self._parts(piece))

    def ask(self, first: int, stop: int) -> None:  # noqa: B027 - not every kind has to do it
        """Leave it to the kernel, which sees that rows are read in their order."""

    def _parts(self, piece: int) -> Iterator[tuple[MappedBlock, slice]]:
        return self._rows.parts(self.rows_of(piece), _LEAST_BYTES // self._row_bytes)


class Runs(_OfRows):
    """Runs of rows in their order; with *whole* all at once, for a pass in any order."""

    begins = 1

    def __init__(self, rows: Rows, *, whole: bool = False) -> None:
        super().__init__(rows)
        self._size = max(1, _PIECE_BYTES // self._row_bytes)
        self._whole = whole
        self.count = -(-len(rows) // self._size)

    def rows_of(self, piece: int) -> slice:
        """A run of rows of the size of a piece."""
        low = piece * self._size
        return slice(low, min(low + self._size, len(self._rows)))

    def reach(self, stop: int) -> Reach:
        """The pieces behind the one that is being read."""
        if self._whole:
            return Reach(0, self.count)
        behind = (stop - 1) // self._size + 1
        return Reach(behind, behind + _RUN_PIECES)


class Strata(_OfRows):
    """The strata of a windowed order, window by window."""

    begins = 0

    def __init__(self, rows: Rows, order: Windowed) -> None:
        super().__init__(rows)
        self._order = order
        self._in_window = order.window_strata
        self.count = -(-order.length // order.stratum_rows)
        stratum_bytes = order.stratum_rows * self._row_bytes
        self._ahead = min(self._in_window, max(1, _WINDOW_BYTES // stratum_bytes))
        self._known: tuple[int, Numbers] | None = None  # the strata of the window asked for last
        self._asked = 0

    def rows_of(self, piece: int) -> slice:
        """The rows of a stratum."""
        window, slot = divmod(piece, self._in_window)
        if self._known is None or self._known[0] != window:
            self._known = window, self._order.strata(window)
        low = int(self._known[1][slot]) * self._order.stratum_rows
        return slice(low, min(low + self._order.stratum_rows, len(self._rows)))

    def reach(self, stop: int) -> Reach:
        """This window and the beginning of the next, more of it the further this one is read."""
        position = stop - 1
        window = position // (self._in_window * self._order.stratum_rows)
        first = window * self._in_window
        read = position // self._order.stratum_rows - first
        needed = min(first + self._in_window, self.count)
        return Reach(first, needed + min(self._in_window, self._ahead + read), needed)

    def ask(self, first: int, stop: int) -> None:
        """Ask for the strata that follow: a disk is busy while others are verified."""
        self._asked = max(self._asked, first)
        while self._asked < min(stop, first + _ASKED, self.count):
            for block, part in self._parts(self._asked):
                block.read_ahead(part)
            self._asked += 1
