"""The zstd module: in the standard library from Python 3.14, its backport before."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

_FED: Final = 256 << 10
"""Bytes of a frame that are given at once. What does not come out yet is copied by the module: of a
frame of 54 MB given whole that took three times as long as to decompress it."""


class UnpackError(ValueError):
    """Bytes are no frame of zstd with that content. Whoever knows the file says where."""


@cache
def zstd_module() -> Any:
    """Return the module, imported when first needed."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def compress_planes(planes: memoryview, width: int, options: Mapping[Any, int]) -> bytes:
    """Return one zstd frame (RFC 8878) of *width* planes of equal length, each in its own blocks.

    A block has a Huffman code of its own. Planes of short tensors that shared a block would share
    one code between exponents, which are alike, and mantissas, which are not: that costs 5 to 10 %
    of a float32 tensor of 64 KiB. A decoder sees no difference.
    """
    compressor = zstd_module().ZstdCompressor(options=options)
    compressor.set_pledged_input_size(len(planes))
    size = len(planes) // width
    parts = []
    for start in range(0, len(planes), size or 1):
        last = start + size == len(planes)
        mode = compressor.FLUSH_FRAME if last else compressor.FLUSH_BLOCK
        parts.append(compressor.compress(planes[start : start + size], mode))
    return b"".join(parts) if parts else compressor.flush()


class FrameReader:
    """The content of one zstd frame, piece by piece, however much it would give.

    One thread. Holds *frame*, and no more of its content than is asked for.
    """

    __slots__ = ("_at", "_errors", "_frame", "_unpacker")

    def __init__(self, frame: memoryview) -> None:
        zstd = zstd_module()
        self._errors = (zstd.ZstdError, ValueError, EOFError)
        self._unpacker: Any = zstd.ZstdDecompressor()
        self._frame, self._at = frame, 0

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes. Raises UnpackError when there are not as many."""
        data = self._more(size) if size else b""
        if len(data) == size:
            return data
        parts, missing = [data], size - len(data)
        while missing:
            parts.append(self._more(missing))
            missing -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Raise UnpackError unless the content and the frame end here."""
        unpacker = self._unpacker
        while not unpacker.eof:
            if self._more(1):
                raise UnpackError("it gives more bytes than it should")
        if unpacker.unused_data or self._at < len(self._frame):
            raise UnpackError("more bytes follow its end")

    def _more(self, most: int) -> bytes:
        """Return up to *most* bytes, also none where more has to be given."""
        unpacker, at = self._unpacker, self._at
        given = memoryview(b"")
        if unpacker.eof:
            raise UnpackError("it gives fewer bytes than it should")
        if unpacker.needs_input:
            given = self._frame[at : at + _FED]
            if not given:
                raise UnpackError("it is cut")
            self._at = at + len(given)
        try:
            data: bytes = unpacker.decompress(given, max_length=most)
        except self._errors as error:
            raise UnpackError(str(error)) from None
        return data
