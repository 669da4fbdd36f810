"""The size from which mapping a tensor is cheaper than copying it: measured once, kept as a hint.

A view costs nothing per byte and holds its segment's mapping; a copy costs a memcpy into fresh
memory and holds nothing. Tensors below the border are copied, from it on they are views. The start
value, used until something was measured, is the 10 MB of the original design; machines measure far
less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mldb.errors import StorageError
from mldb.log.fs.protocol import FileSystem

START_BYTES: Final = 10_000_000
SIZES: Final = (16 << 10, 64 << 10, 256 << 10, 1 << 20)
_HINT: Final = "border"
_ROUNDS: Final = 4
_PAGE: Final = 4096


class MapBorder:
    """The border of one handle, in bytes. Any thread; measuring twice at once does no harm.

    ``fixed`` (given by the user) switches measuring off. ``origin`` says where ``value`` comes
    from.
    """

    __slots__ = ("_fs", "_writable", "known", "measured_ms", "origin", "value")

    def __init__(self, fs: FileSystem, *, fixed: int | None, writable: bool) -> None:
        self._fs = fs
        self._writable = writable
        self.known = fixed is not None
        self.value = START_BYTES if fixed is None else fixed
        self.origin = "start" if fixed is None else "option"
        self.measured_ms = 0.0

    def learn(self, name: str) -> None:
        """Take the border from the hint, or measure it on file *name* of the store (at most 5 ms).

        Never raises: when the file went away meanwhile, the start value serves.
        """
        from mldb.log.hints import load_hint, save_hint

        self.known = True
        hint = load_hint(self._fs, _HINT)
        if isinstance(hint, int) and SIZES[0] <= hint <= START_BYTES:
            self.value, self.origin = hint, "hint"
            return
        start = time.perf_counter()
        try:
            self.value, self.origin = measure_border(self._fs, name), "measured"
        except StorageError:
            return  # the file went away; the start value serves
        finally:
            self.measured_ms = (time.perf_counter() - start) * 1e3
        if self._writable:
            save_hint(self._fs, _HINT, self.value)


def measure_border(fs: FileSystem, name: str) -> int:
    """Return the smallest of SIZES at which a view of a mapped file costs no more than a copy.

    Every page is touched either way. The result is START_BYTES when copying wins at every size that
    the file has. Raises StorageError when the file cannot be opened or mapped.
    """
    file = fs.open(name, "r")
    try:
        data = file.map(min(file.size(), SIZES[-1]))
    finally:
        file.close()
    for size in SIZES:
        if size > len(data):
            break
        part = data[:size]
        if _best(lambda p=part: p[:]) <= _best(lambda p=part: memoryview(bytes(p))):  # type: ignore[misc]
            return size
    return START_BYTES


def _best(read: Callable[[], memoryview]) -> float:
    """Return the seconds of the fastest of a few readings, every page touched.

    What was read is kept meanwhile, as users keep it, so that each copy goes to fresh memory.
    """
    best = float("inf")
    kept: list[memoryview] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        data = read()
        bytes(data[::_PAGE])
        best = min(best, time.perf_counter() - start)
        kept.append(data)
    return best
