"""Hints: a plain value, and bytes with it, in a checksummed file of ``hints/`` that may be lost."""

from __future__ import annotations

import os
from typing import Final

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.active import HINTS
from mldb.log.file_header import encode_file_header
from mldb.log.frame import DamagedFrame, pack, unpack
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.lone import decode_lone, encode_lone, publish_over, read_file

_BYTES_MAX: Final = 1 << 20
_PAYLOAD_MAX: Final = 1 << 34


def encode_hint(fs: FileSystem, value: object, payload: Buffer = b"") -> list[Buffer]:
    """Return the buffers of a hint of a plain value and bytes."""
    header = encode_file_header(fmt.FILE_HINT, fmt.NO_ID, fs.time_ns())
    return encode_lone(header, fmt.KIND_HINT, pack([value]), payload)


def save_hint(fs: FileSystem, name: str, value: object, payload: Buffer = b"") -> None:
    """Save a plain value and bytes; failures are ignored, since a hint may always be missing."""
    buffers = encode_hint(fs, value, payload)
    try:
        publish_over(fs, os.urandom(16).hex(), buffers, f"{HINTS}/{name}")
    except MldbError:
        return


def load_hint(fs: FileSystem, name: str) -> object:
    """Return the saved value, None when it is absent, damaged or unreadable."""
    found = load_hint_bytes(fs, name, limit=_BYTES_MAX)
    return None if found is None else found[0]


def load_hint_bytes(
    fs: FileSystem, name: str, *, limit: int = _PAYLOAD_MAX
) -> tuple[object, memoryview] | None:
    """Return the saved value and bytes, all of them verified; None as above."""
    path = f"{HINTS}/{name}"
    try:
        data = memoryview(read_file(fs, path, limit))
        file = decode_lone(data, path, fmt.FILE_HINT, fmt.KIND_HINT)
        return unpack(file.body)[0], file.payload
    except (MldbError, DamagedFrame, ValueError, TypeError, LookupError):
        return None
