"""Verify the checksummed blocks of one frame's payload, each at most once.

The first reader of a block pays one pass of xxh3; later readers pay a bit test. Large ranges are
split over two threads, because hashing runs without the GIL. The compiled twin hashes many blocks
in one call; where one of them does not fit Python looks again, and says which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.aside import Aside
from mldb.log.checksum import check64
from mldb.log.frame import Frame

if TYPE_CHECKING:
    import numpy.typing as npt

_SPLIT_BYTES = 64 << 20
"""From here on a second thread pays for its start and hand-over.

Measured on two cores, which share the way to memory: of 4 MiB, hashed in 0.4 ms, it makes 0.5 to
3 ms, of 16 MiB 1.7 ms out of 1.5, and at 64 MiB both take the same.
"""


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
        if self._done.find(0, first, last + 1) < 0:
            return
        self._halved(
            last + 1 - first,
            lambda low, high: self._verify_run(data, first + low, first + high, key, base),
        )

    def _halved(self, count: int, verify: Callable[[int, int], None]) -> None:
        """Verify *count* blocks, many of them in two threads: *verify* takes both ends of a run."""
        if count < 2 or count << self._log2 < _SPLIT_BYTES:
            verify(0, count)
            return
        half = count // 2
        behind = Aside(lambda: verify(half, count))
        try:
            verify(0, half)
        finally:
            behind.result()

    def _verify_run(
        self, data: memoryview, first: int, stop: int, key: str | None, base: int
    ) -> None:
        """Verify the blocks from *first* to before *stop*."""
        if not self._twin(data, base, first, stop - 1):
            todo = [index for index in range(first, stop) if not self._done[index]]
            self._verify_all(data, todo, key, base)

    def _twin(
        self,
        data: memoryview,
        base: int,
        first: int,
        last: int,
        rows: npt.NDArray[np.int64] | None = None,
        row_bytes: int = 0,
    ) -> Any:
        """Have the compiled twin verify blocks; False or None where Python has to look itself."""
        twin = native.twin
        if twin is None:
            return None
        place = (self._start, self._stop, self._log2)
        known = (self._checks, self._done)
        return twin.verify_blocks(data, base, *place, *known, first, last, rows, row_bytes)

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
        if rows.dtype == np.int64 and self._twin(data, 0, start - self._start, 0, rows, row_bytes):
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
        todo = np.flatnonzero(wanted).tolist()
        self._halved(len(todo), lambda low, high: self._verify_all(data, todo[low:high], key, 0))

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

    def _verify_all(self, data: memoryview, todo: list[int], key: str | None, base: int) -> None:
        size = 1 << self._log2
        for index in todo:
            low = self._start + (index << self._log2) - base
            computed = check64(data[low : min(low + size, self._stop - base)])
            if computed != int.from_bytes(self._checks[8 * index : 8 * index + 8], "big"):
                raise self._damaged(index, computed, key)
            self._done[index] = 1

    def _damaged(self, index: int, computed: int, key: str | None) -> CorruptError:
        stored = int.from_bytes(self._checks[8 * index : 8 * index + 8], "big")
        low = self._start + (index << self._log2)
        high = min(low + (1 << self._log2), self._stop)
        what = "a stored block" if key is None else f"a stored block of {key!r}"
        return CorruptError(
            f"{what} is damaged: stored checksum {stored:016x}, computed {computed:016x} over "
            f"bytes {low}..{high}. Other blocks, names and versions stay readable; an older "
            "version of the name may be intact (db.history), a backup certainly is if it "
            "verifies.",
            file=self._file,
            offset=low,
            key=key,
        )


def payload_checks(data: memoryview, frame: Frame, base: int = 0) -> bytes:
    """Return the block checksums of *frame*, which follow its body (verify the body first).

    *data* starts at file offset *base*.
    """
    count = fmt.block_count(frame.header.payload_length, frame.header.block_log2)
    start = frame.checks_offset - base
    return bytes(data[start : start + 8 * count])
