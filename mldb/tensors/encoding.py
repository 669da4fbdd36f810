"""Encodings of stored bytes: raw, byte planes compressed with zstd, or deltas to another version.

Floats of one tensor share their exponents, so sorting the bytes of all elements by their position
in the element (a byte shuffle, as in HDF5 and Blosc) puts alike bytes together before zstd level 1
sees them. A single fp32 snapshot shrinks by about a sixth, bf16 by a third; whoever wants zero-copy
reads stores raw, which is the default.

Encoded form: one byte of element size, then one zstd frame (RFC 8878).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.compaction.deltas import WIDTHS, DeltaError, decode_deltas
from mldb.compaction.planes import split_planes, spread_plane
from mldb.compaction.zstd import FrameReader, UnpackError, compress_planes, zstd_module
from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.chain import Stored
from mldb.log.fs.protocol import Buffer

ENCODING_ZSTD: Final = fmt.ENCODING_RAW + 1
LEVEL: Final = 1
_UNPACKED: Final = 128 << 10
"""Bytes of a plane that are unpacked at once."""
_JOINED: Final = 64 << 20
"""Up to so many bytes all planes are held beside the value, and joined in one pass over memory."""
_RATIO_LOG2: Final = 15
"""A block of zstd takes 4 bytes or more and gives 2^17 or fewer."""

_NAMES: Final = {
    fmt.ENCODING_RAW: "raw",
    ENCODING_ZSTD: "zstd",
    fmt.ENCODING_REFERENCE: "reference",
    fmt.ENCODING_DELTA: "delta",
    fmt.ENCODING_PATCH: "patch",
}


def encoding_name(encoding: int) -> str:
    """Return the word for an encoding; ``encoding 9`` for one of a newer mldb."""
    return _NAMES.get(encoding, f"encoding {encoding}")


def encode_bytes(buffers: Sequence[Buffer], itemsize: int) -> bytes | None:
    """Return the encoded form of a payload, or None when it would not be at least 5 % smaller."""
    data = b"".join(buffers)
    itemsize = itemsize if 1 < itemsize <= 16 and len(data) % itemsize == 0 else 1
    level = {zstd_module().CompressionParameter.compression_level: LEVEL}
    packed = compress_planes(split_planes(data, itemsize), itemsize, level)
    if len(packed) + 1 > 0.95 * len(data):
        return None
    return bytes([itemsize]) + packed


def decode_bytes(
    data: memoryview,
    encoding: int,
    size: int,
    file: str,
    offset: int,
    key: str,
    base: memoryview | None = None,
) -> memoryview:
    """Return the *size* decoded bytes of one version, as :func:`decode_stored` does."""
    return decode_stored([Stored(data, encoding, file, offset)], size, key, base)


def decode_stored(
    chain: Sequence[Stored],
    size: int,
    key: str,
    base: memoryview | None = None,
    start: int = 0,
) -> memoryview:
    """Return the decoded bytes of the last version of a chain, read-only.

    Each one builds on the one before it, the first on *base* if that is given. Of *size* bytes are
    returned those from *start* on that *base* has, all where there is none. Of more than 64 MiB
    nothing else of their size is held meanwhile, however much the encoded bytes would give. Raises
    CorruptError for bytes that do not give exactly *size*, FormatVersionError for an encoding of a
    newer mldb.
    """
    if base is None:
        first, *chain = chain
        made = _unpacked(first, size, key)
        base = made
    else:
        made = np.empty(len(base), np.uint8).data
    for item in chain:
        if item.encoding != fmt.ENCODING_DELTA:
            raise _unknown(item, key)
    if chain:
        try:
            decode_deltas([item.data for item in chain], size, base, made, start)
        except DeltaError as error:
            raise _damaged(key, chain[error.number], error) from None
    return made.toreadonly()


def _unpacked(stored: Stored, size: int, key: str) -> memoryview:
    """The decoded bytes of a version that builds on none, in writable memory of their own.

    The planes come out of the frame one after another; each part goes to its place at once.
    """
    if stored.encoding != ENCODING_ZSTD:
        raise _unknown(stored, key)
    data = stored.data
    try:
        width = data[0]
        if not width or size % width or size > len(data) << _RATIO_LOG2:
            raise UnpackError(f"{size} bytes are declared, of elements of {width}")
        made, reader = np.empty(size, np.uint8), FrameReader(data[1:])
        if not _joined(reader, width, made):
            _spread(reader, width, made)
        reader.finish()
    except (UnpackError, IndexError) as error:
        raise _damaged(key, stored, error) from None
    return made.data


def _joined(reader: FrameReader, width: int, made: npt.NDArray[np.uint8]) -> bool:
    """Put all planes together in one pass over memory, where there is a compiled twin."""
    twin = native.twin
    if twin is None or made.nbytes > _JOINED or width not in WIDTHS:
        return False
    return bool(twin.fold_planes(reader.take(made.nbytes), width, 0, False, 0, None, made))


def _spread(reader: FrameReader, width: int, made: npt.NDArray[np.uint8]) -> None:
    count = made.nbytes // width
    for place in range(width):
        for at in range(0, count, _UNPACKED):
            part = reader.take(min(_UNPACKED, count - at))
            spread_plane(part, place, width, at, made)


def _unknown(stored: Stored, key: str) -> FormatVersionError:
    return FormatVersionError(
        f"{key!r} is stored in encoding {stored.encoding}, which this mldb does not know; use a "
        "newer mldb. Other names and versions stay readable. "
        f"[file {stored.file}, offset {stored.offset}]"
    )


def _damaged(key: str, stored: Stored, error: Exception) -> CorruptError:
    return CorruptError(
        f"the encoded payload of {key!r} cannot be unpacked: {error}. Other names and versions "
        "stay readable.",
        file=stored.file,
        offset=stored.offset,
        key=key,
    )
