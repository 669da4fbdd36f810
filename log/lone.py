"""Files that hold one frame: manifests, registrations, value hints. Encoded, read, published here.

Such a file is a file header and one frame that is not keyed. It appears under its name in one step:
written under a name in ``pending/``, then linked to its own, which fails when that exists, or moved
over what stood there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from mldb.deferred import NamedTuple
from mldb.errors import ClosedError, CorruptError, StorageError
from mldb.log import format as fmt
from mldb.log.blocks import payload_checks
from mldb.log.checksum import checks_and_digest
from mldb.log.file_header import decode_file_header
from mldb.log.frame import DamagedFrame, check_body, decode_header, encode_head
from mldb.log.fs.protocol import Buffer, FileSystem

PENDING: Final = "pending"


class LoneFile(NamedTuple):
    """A decoded file: its header, the verified body and payload of its one frame.

    ``end`` is where the frame ends.
    """

    header: fmt.FileHeader
    body: bytes
    payload: memoryview
    end: int


def header_seed(header: fmt.FileHeader) -> int:
    """The seed of the frames behind this file header."""
    own = header.id if header.id != fmt.NO_ID else fmt.number_id(header.file_id)
    return fmt.file_seed(header.store_id, own)


def encode_lone(
    header: bytes, kind: int, body: bytes, payload: Buffer = b"", body_version: int = 1
) -> list[Buffer]:
    """Return the buffers of a file: *header*, a frame of *kind* with this body and payload."""
    seed = header_seed(fmt.FileHeader._make(fmt.FILE_HEADER.unpack(header)))
    size = memoryview(payload).nbytes
    head = encode_lone_head(kind, body, seed, payload, body_version)
    return [header, head, payload, bytes(-size & (fmt.FRAME_ALIGN - 1))]


def encode_lone_head(
    kind: int, body: bytes, seed: int, payload: Buffer = b"", body_version: int = 1
) -> bytes:
    """Return what stands between header and payload; *seed* is :func:`header_seed` of the header.

    Without a payload it is all that follows the header.
    """
    size = memoryview(payload).nbytes
    return encode_head(
        kind,
        body_version,
        0,
        body,
        checks_and_digest((payload,), fmt.BLOCK_LOG2)[0] if size else b"",
        size,
        fmt.BLOCK_LOG2 if size else 0,
        fmt.PAYLOAD_ALIGN_LOG2 if size else 0,
        0,
        0,
        seed,
        fmt.FILE_HEADER_SIZE,
    )


def decode_lone(data: memoryview, name: str, file_kind: int, frame_kind: int) -> LoneFile:
    """Decode the file *name*, all of it verified; what follows the frame is not looked at.

    Raises DamagedFrame, and FormatVersionError for a newer or foreign file.
    """
    header = decode_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]), name)
    if header.kind != file_kind:
        raise DamagedFrame(
            f"this is a file of kind {fmt.FILE_KINDS.get(header.kind, header.kind)}, expected "
            f"{fmt.FILE_KINDS[file_kind]}"
        )
    frame = decode_header(data, fmt.FILE_HEADER_SIZE, header_seed(header), len(data))
    if frame.header.kind & ~fmt.MUST_UNDERSTAND != frame_kind:
        raise DamagedFrame(f"a frame of kind {frame.header.kind} stands where it does not belong")
    body = check_body(data, frame)
    size = frame.header.payload_length
    payload = data[frame.payload_offset : frame.payload_offset + size]
    if size:
        stored = payload_checks(data, frame)
        if stored != checks_and_digest((payload,), frame.header.block_log2)[0]:
            raise DamagedFrame("the payload has another checksum")
    return LoneFile(header, body, payload, frame.end)


def read_file(fs: FileSystem, name: str, bytes_max: int) -> bytes:
    """Return a whole file of at most *bytes_max*. Raises CorruptError beyond, StorageIOError."""
    file = fs.open(name, "r")
    try:
        size = file.size()
        if size > bytes_max:
            raise CorruptError(
                f"the file is {size} bytes long, the limit is {bytes_max}", file=name, offset=0
            )
        return file.pread(size, 0)
    finally:
        file.close()


def write_pending(fs: FileSystem, owner: str, buffers: Sequence[Buffer], *, sync: bool) -> str:
    """Write a new file in ``pending/`` for process *owner* and return its name."""
    name = f"{PENDING}/{owner}-{os.urandom(8).hex()}.tmp"
    file = fs.open(name, "create")
    try:
        file.pwritev(buffers, 0)
        if sync:
            file.sync()
    except BaseException:
        discard(fs, name)
        raise
    finally:
        file.close()
    return name


def publish_new(fs: FileSystem, owner: str, buffers: Sequence[Buffer], name: str) -> bool:
    """Publish a file durably under a name that nothing has; False when something has it."""
    temporary = write_pending(fs, owner, buffers, sync=True)
    try:
        if not fs.link(temporary, name):
            return False
        fs.sync_dir(name.rpartition("/")[0])
    finally:
        discard(fs, temporary)
    return True


def publish_over(
    fs: FileSystem, owner: str, buffers: Sequence[Buffer], name: str, *, sync: bool = False
) -> None:
    """Publish a file in place of what has its name."""
    temporary = write_pending(fs, owner, buffers, sync=sync)
    try:
        fs.rename(temporary, name)
    except BaseException:
        discard(fs, temporary)
        raise


def discard(fs: FileSystem, name: str) -> None:
    """Remove a file; one that stays is no reason to call what was done a failure."""
    with contextlib.suppress(StorageError, ClosedError):  # ClosedError: in a forked child
        fs.unlink(name)
