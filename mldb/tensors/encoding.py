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

from mldb.compaction.deltas import DeltaError, decode_delta
from mldb.compaction.planes import join_planes, split_planes
from mldb.compaction.zstd import compress_planes, zstd_module
from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.fs.protocol import Buffer

ENCODING_ZSTD: Final = fmt.ENCODING_RAW + 1
LEVEL: Final = 1

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
    """Return the *size* decoded bytes, read-only; those of a delta are built on *base*.

    Holds up to three times *size* meanwhile, however much the encoded bytes would give. Raises
    CorruptError for bytes that do not give exactly *size*, FormatVersionError for an encoding of a
    newer mldb.
    """
    if encoding == fmt.ENCODING_DELTA and base is not None:
        try:
            return decode_delta(data, base)
        except DeltaError as error:
            raise _damaged(key, file, offset, error) from None
    if encoding != ENCODING_ZSTD:
        raise FormatVersionError(
            f"{key!r} is stored in encoding {encoding}, which this mldb does not know; use a newer "
            f"mldb. Other names and versions stay readable. [file {file}, offset {offset}]"
        )
    zstd = zstd_module()
    try:
        itemsize = data[0]
        decompressor = zstd.ZstdDecompressor()
        plain: bytes = decompressor.decompress(bytes(data[1:]), max_length=size + 1)
        if len(plain) != size or not decompressor.eof or not itemsize or size % itemsize:
            raise ValueError(f"{len(plain)} bytes or more came out, {size} are declared")
    except (zstd.ZstdError, ValueError, IndexError, EOFError) as error:
        raise _damaged(key, file, offset, error) from None
    if itemsize == 1:
        return memoryview(plain)
    made = np.empty(size, np.uint8)
    join_planes(plain, itemsize, made)
    return made.data.toreadonly()


def _damaged(key: str, file: str, offset: int, error: Exception) -> CorruptError:
    return CorruptError(
        f"the encoded payload of {key!r} cannot be unpacked: {error}. Other names and versions "
        "stay readable.",
        file=file,
        offset=offset,
        key=key,
    )
