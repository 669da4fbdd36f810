"""Hints: a plain value, and bytes with it, in a checksummed file of ``hints/`` that may be lost."""

from __future__ import annotations

import os

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.active import HINTS
from mldb.log.blocks import payload_checks
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import (
    DamagedFrame,
    check_body,
    decode_file_header,
    decode_header,
    encode_file_header,
    encode_head,
    pack,
    unpack,
)
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.manifest import PENDING

_BYTES_MAX = 1 << 20
_PAYLOAD_MAX = 1 << 34


def save_hint(fs: FileSystem, name: str, value: object, payload: Buffer = b"") -> None:
    """Save a plain value and bytes; failures are ignored, since a hint may always be missing."""
    body = pack([value])
    size = memoryview(payload).nbytes
    frame = encode_head(
        fmt.KIND_HINT,
        1,
        0,
        body,
        checks_and_digest((payload,), fmt.BLOCK_LOG2)[0] if size else b"",
        size,
        fmt.BLOCK_LOG2 if size else 0,
        fmt.PAYLOAD_ALIGN_LOG2 if size else 0,
        0,
        0,
        fmt.file_seed(bytes(16), 0),
        fmt.FILE_HEADER_SIZE,
    )
    header = encode_file_header(fmt.FILE_HINT, bytes(16), 0, 0, fs.time_ns())
    padding = bytes(-size & (fmt.FRAME_ALIGN - 1))
    temporary = f"{PENDING}/{os.urandom(16).hex()}.hint"
    try:
        file = fs.open(temporary, "create")
        try:
            file.pwritev([header, frame, payload, padding], 0)
        finally:
            file.close()
        fs.rename(temporary, f"{HINTS}/{name}")
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
        file = fs.open(path, "r")
        try:
            data = memoryview(file.pread(min(file.size(), limit), 0))
        finally:
            file.close()
        if decode_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]), path).kind != fmt.FILE_HINT:
            return None
        frame = decode_header(data, fmt.FILE_HEADER_SIZE, fmt.file_seed(bytes(16), 0), len(data))
        value = unpack(check_body(data, frame))[0]
        start, size = frame.payload_offset, frame.header.payload_length
        payload = data[start : start + size]
        if size:
            stored = payload_checks(data, frame)
            if stored != checks_and_digest((payload,), frame.header.block_log2)[0]:
                return None
        return value, payload
    except (MldbError, DamagedFrame, ValueError, TypeError, LookupError):
        return None
