"""Verify the checksummed blocks of one frame's payload, each at most once.

The first reader of a block pays one pass of xxh3; later readers pay a bit test. Large ranges are
split over two threads, because hashing runs without the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.aside import Aside
from mldb.log.checksum import check64
from mldb.log.frame import Frame

if TYPE_CHECKING:
    import numpy.typing as npt

_SPLIT_BYTES = 4 << 20  # from here on a second thread pays for its start and hand-over


class Blocks:
    """The blocks of one payload and which of them have been verified.

    Any thread; two threads may verify the same block at once, which costs time and nothing else.
    """

    __slots__ = ("_checks", "_done", "_file", "_log2", "_start", "_stop")

    def __init__(self, frame: Frame, checks: bytes, file: str) -> None:
        self._log2 = frame.header.block_log2
        self._start = frame.payload_offset
        self._stop = frame.payload_offset + frame.header.payload_length
        self._checks = checks
        self._done = bytearray(len(checks) // 8)
        self._file = file

    @property
    def complete(self) -> bool:
        """Whether every block has been verified."""
        return 0 not in self._done

    def span(self, low: int, high: int) -> tuple[int, int]:
        """The file range of all blocks that overlap file range [low, high)."""
        first = (low - self._start) >> self._log2
        last = (high - 1 - self._start) >> self._log2
        start = self._start + (first << self._log2)
        return start, min(self._start + ((last + 1) << self._log2), self._stop)

    def touch(
        self, data: memoryview, low: int, high: int, key: str | None = None, base: int = 0
    ) -> None:
        """Verify the blocks that overlap file range [low, high); *data* starts at offset *base*.

        Raises CorruptError naming file, offset and key.
        """
        if low >= high:
            return
        self.bound(low, high, key)
        first = (low - self._start) >> self._log2
        last = (high - 1 - self._start) >> self._log2
        if first == last:
            if not self._done[first]:
                self._verify(data, first, key, base)
            return
        todo = [index for index in range(first, last + 1) if not self._done[index]]
        self._verify_split(data, todo, key, base)

    def bound(self, low: int, high: int, key: str | None) -> None:
        """Raise CorruptError unless file range [low, high) lies in the payload."""
        if low < self._start or high > self._stop:
            raise CorruptError(
                f"the index places bytes {low}..{high} in a payload that spans "
                f"{self._start}..{self._stop}. Other names and versions stay readable; restore the "
                "file from a backup.",
                file=self._file,
                offset=low,
                key=key,
            )

    def touch_rows(
        self,
        data: memoryview,
        start: int,
        row_bytes: int,
        rows: npt.NDArray[np.int64],
        key: str | None = None,
    ) -> None:
        """Verify the blocks that hold these rows of a column that starts at file offset *start*.

        For rows scattered over a payload; each block is verified once. Raises CorruptError.
        """
        if not len(rows):
            return
        lows = rows * row_bytes + (start - self._start)
        first = lows >> self._log2
        last = (lows + (row_bytes - 1)) >> self._log2
        self._bound(start, int(lows.min()), int(last.max()), key)
        wanted = np.zeros(len(self._done), np.bool_)
        wanted[first] = True
        for step in range(1, int((last - first).max()) + 1):
            wanted[np.minimum(first + step, last)] = True
        wanted &= np.frombuffer(self._done, np.uint8) == 0
        self._verify_split(data, np.flatnonzero(wanted).tolist(), key)

    def covers(self, low: int, high: int) -> bool:
        """Whether every block of file range [low, high) has been verified."""
        first = (low - self._start) >> self._log2
        last = (high - 1 - self._start) >> self._log2
        return self._done.find(0, first, last + 1) < 0

    def _bound(self, start: int, low: int, last: int, key: str | None) -> None:
        if low < 0 or last >= len(self._done):
            raise CorruptError(
                f"the index places a column at byte {start}, outside the payload that spans "
                f"{self._start}..{self._stop}. Other names and versions stay readable; restore the "
                "file from a backup.",
                file=self._file,
                offset=start,
                key=key,
            )

    def _verify_split(
        self, data: memoryview, todo: list[int], key: str | None, base: int = 0
    ) -> None:
        """Verify these blocks, many of them in two threads."""
        if len(todo) < 2 or len(todo) << self._log2 < _SPLIT_BYTES:
            self._verify_all(data, todo, key, base)
            return
        half = len(todo) // 2
        behind = Aside(lambda: self._verify_all(data, todo[half:], key, base))
        try:
            self._verify_all(data, todo[:half], key, base)
        finally:
            behind.result()

    def _verify_all(self, data: memoryview, todo: list[int], key: str | None, base: int) -> None:
        for index in todo:
            self._verify(data, index, key, base)

    def _verify(self, data: memoryview, index: int, key: str | None, base: int) -> None:
        low = self._start + (index << self._log2)
        high = min(low + (1 << self._log2), self._stop)
        stored = int.from_bytes(self._checks[8 * index : 8 * index + 8], "big")
        computed = check64(data[low - base : high - base])
        if stored != computed:
            what = "a stored block" if key is None else f"a stored block of {key!r}"
            raise CorruptError(
                f"{what} is damaged: stored checksum {stored:016x}, computed {computed:016x} over "
                f"bytes {low}..{high}. Other blocks, names and versions stay readable; an older "
                "version of the name may be intact (db.history), a backup certainly is if it "
                "verifies.",
                file=self._file,
                offset=low,
                key=key,
            )
        self._done[index] = 1


def payload_checks(data: memoryview, frame: Frame, base: int = 0) -> bytes:
    """Return the block checksums of *frame*, which follow its body (verify the body first).

    *data* starts at file offset *base*.
    """
    count = fmt.block_count(frame.header.payload_length, frame.header.block_log2)
    start = frame.checks_offset - base
    return bytes(data[start : start + 8 * count])
