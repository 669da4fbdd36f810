"""Small hints: one plain value in a checksummed file under ``hints/``, where it may be lost."""

from __future__ import annotations

import os

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.active import HINTS
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
from mldb.log.fs import FileSystem
from mldb.log.manifest import PENDING

_BYTES_MAX = 1 << 20


def save_hint(fs: FileSystem, name: str, value: object) -> None:
    """Save a plain value; failures are ignored, since a hint may always be missing."""
    body = pack([value])
    frame = encode_head(
        fmt.KIND_HINT,
        1,
        0,
        body,
        b"",
        0,
        0,
        0,
        0,
        0,
        fmt.file_seed(bytes(16), 0),
        fmt.FILE_HEADER_SIZE,
    )
    temporary = f"{PENDING}/{os.urandom(16).hex()}.hint"
    try:
        file = fs.open(temporary, "create")
        try:
            file.pwritev(
                [encode_file_header(fmt.FILE_HINT, bytes(16), 0, 0, fs.time_ns()), frame], 0
            )
        finally:
            file.close()
        fs.rename(temporary, f"{HINTS}/{name}")
    except MldbError:
        return


def load_hint(fs: FileSystem, name: str) -> object:
    """Return the saved value, None when it is absent, damaged or unreadable."""
    path = f"{HINTS}/{name}"
    try:
        file = fs.open(path, "r")
        try:
            data = file.pread(min(file.size(), _BYTES_MAX), 0)
        finally:
            file.close()
        if decode_file_header(data, path).kind != fmt.FILE_HINT:
            return None
        frame = decode_header(data, fmt.FILE_HEADER_SIZE, fmt.file_seed(bytes(16), 0), len(data))
        return unpack(check_body(data, frame))[0]
    except (MldbError, DamagedFrame, ValueError, TypeError, LookupError):
        return None
