"""Every struct layout, magic and limit of the log, in one place. FORMAT.md explains them.

Little-endian throughout. Sizes are asserted at import, so this file and FORMAT.md cannot drift
apart unnoticed. Leaf module: constants and pure functions only.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from xxhash import xxh3_64_intdigest

from mldb.deferred import NamedTuple

FORMAT_VERSION: Final = 2
FIRST_VERSION: Final = 1  # of files that are read and no longer written
WRITER: Final = b"mldb 0.1.0"

# --- file header: the first 128 bytes of every file -----------------------------------------------
FILE_MAGIC: Final = b"\x89MLDB\r\n\x1a"  # 0x89, CR LF and 0x1a expose text-mode transfers
FILE_HEADER: Final = struct.Struct("<8sHHI16sQQq16s16sQ24xQ")
FILE_HEADER_SIZE: Final = 128
assert FILE_HEADER.size == FILE_HEADER_SIZE

FILE_SEGMENT: Final = 1
FILE_COMPACTED: Final = 2
FILE_INDEX: Final = 3
FILE_MANIFEST: Final = 4
FILE_READER: Final = 5
FILE_LOST: Final = 6
FILE_HINT: Final = 7
FILE_BLOB: Final = 8  # reserved
FILE_KINDS: Final = {
    FILE_SEGMENT: "segment",
    FILE_COMPACTED: "compacted segment",
    FILE_INDEX: "index",
    FILE_MANIFEST: "manifest",
    FILE_READER: "reader",
    FILE_LOST: "lost bytes",
    FILE_HINT: "hint",
    FILE_BLOB: "blob",
}

# --- frame header ---------------------------------------------------------------------------------
FRAME_MAGIC: Final = b"\xf7mfr"
FRAME_HEADER: Final = struct.Struct("<4sHBBIBBHQQQQQ")
FRAME_HEADER_SIZE: Final = 56
FRAME_START: Final = struct.Struct("<4sHBBIBBHQQQQ")  # all but the header checksum
FRAME_CHECK: Final = struct.Struct("<Q")
FRAME_CHECKED_SIZE: Final = 48  # the header checksum covers the bytes before itself
assert FRAME_HEADER.size == FRAME_HEADER_SIZE
assert FRAME_START.size == FRAME_CHECKED_SIZE

FLAG_KEYED: Final = 1  # the body starts with index entries
FLAG_EXTERNAL: Final = 2  # reserved: the payload lies in another file
NO_ID: Final = bytes(16)  # the id of a file that has none

MUST_UNDERSTAND: Final = 0x8000
BODY_VERSION: Final = 1  # of every body but those of manifests
MANIFEST_BODY_VERSION: Final = 2
KIND_INVALID: Final = 0
KIND_COMMIT: Final = 1
KIND_INDEX: Final = 2
KIND_MANIFEST: Final = 3
KIND_READER: Final = 4
KIND_HINT: Final = 5
KIND_BLOB: Final = 6  # reserved
KIND_FIRST_EVENT: Final = 16

# --- index entries --------------------------------------------------------------------------------
ENTRY_TOMBSTONE: Final = 1
ENTRY_SETTLED: Final = 2  # another encoding was tried: compaction leaves it as it is
ENTRY_FLAGS_MAX: Final = 255
ENCODING_RAW: Final = 0
ENCODING_REFERENCE: Final = 2  # 1 is zstd, which the log need not know
ENCODING_DELTA: Final = 3
ENCODING_PATCH: Final = 4
BUILT_ENCODINGS: Final = (ENCODING_REFERENCE, ENCODING_DELTA, ENCODING_PATCH)
"""Of what has its bytes, or some of them, from another version."""
ENCODING_MAX: Final = 255

# --- sizes and limits -----------------------------------------------------------------------------
FRAME_ALIGN: Final = 8
PAYLOAD_ALIGN_LOG2: Final = 6
PAGE_ALIGN_LOG2: Final = 12
PAGE_ALIGN_FROM: Final = 1 << 20  # from here it costs at most 0.4 % and serves GPU imports
BLOCK_LOG2: Final = 20
INDEX_BLOCK_LOG2: Final = 14
BLOCK_LOG2_MIN: Final = 12
BLOCK_LOG2_MAX: Final = 30
ALIGN_LOG2_MIN: Final = 3
ALIGN_LOG2_MAX: Final = 21
DIGEST_SIZE: Final = 16

KEY_BYTES_MAX: Final = 1024
ATTR_BYTES_MAX: Final = 1 << 20
BODY_BYTES_MAX: Final = 1 << 26
PAYLOAD_BYTES_MAX: Final = 1 << 48
ENTRIES_MAX: Final = 1 << 16  # per frame
FRAMES_MAX: Final = 1 << 20  # per batch
EPOCH_MAX: Final = (1 << 63) - 1
LSN_MAX: Final = (1 << 63) - 1
TIME_MIN: Final = -(1 << 63)  # nanoseconds
TIME_MAX: Final = (1 << 63) - 1
META_COLUMNS_MAX: Final = 64  # metadata fields with columns, per segment
CHANGES_MAX: Final = 256  # segments that a manifest may replace and add of its base's
SEGMENT_BYTES: Final = 256 << 20
SEGMENT_ENTRIES: Final = 1 << 16  # bounds memory, recovery and the pause of a seal
HINT_VERSIONS: Final = 1 << 13  # after which the index of the active segment is saved
HINT_LACKS_MAX: Final = 1 << 8  # commits that the hint of a clean close may lack
LSN_CEILING_STEP: Final = 1 << 24  # LSNs that one synced manifest sets free


SegmentId: TypeAlias = bytes
"""What names a segment: 16 random bytes, or 8 bytes with its number in version 1."""


class FrameHeader(NamedTuple):
    """The fixed part of a frame, as stored."""

    magic: bytes
    kind: int
    body_version: int
    flags: int
    body_length: int
    block_log2: int
    align_log2: int
    reserved: int
    payload_length: int
    lsn: int
    commit_lsn: int
    body_check: int
    header_check: int


class FileHeader(NamedTuple):
    """The first 128 bytes of a file, as stored."""

    magic: bytes
    version: int
    kind: int
    header_size: int
    store_id: bytes
    file_id: int
    base_lsn: int
    created: int
    writer: bytes
    id: bytes
    published: int
    check: int

    @property
    def segment_id(self) -> SegmentId:
        """What names a segment and its index: random since version 2, a number before."""
        return number_id(self.file_id) if self.version == FIRST_VERSION else self.id


def align_up(offset: int, log2: int) -> int:
    """Round *offset* up to a multiple of ``2**log2``."""
    mask = (1 << log2) - 1
    return (offset + mask) & ~mask


def block_count(payload_length: int, block_log2: int) -> int:
    """How many checksummed blocks a payload of this length has."""
    return (payload_length + (1 << block_log2) - 1) >> block_log2


def number_id(number: int) -> bytes:
    """The id of a file that is known by a number: manifests, and segments of version 1."""
    return number.to_bytes(8, "little")


def id_text(segment_id: SegmentId) -> str:
    """A segment id as file names and messages have it."""
    if len(segment_id) == len(NO_ID):
        return segment_id.hex()
    return f"{int.from_bytes(segment_id, 'little'):010d}"


def file_seed(store_id: bytes, file_id: bytes) -> int:
    """Seed of all header checksums of a file: ties every frame to its store and file."""
    return xxh3_64_intdigest(store_id + file_id)


def is_readable(block_log2: int, align_log2: int) -> bool:
    """Whether a payload may have blocks of this size and this alignment."""
    return (
        BLOCK_LOG2_MIN <= block_log2 <= BLOCK_LOG2_MAX
        and ALIGN_LOG2_MIN <= align_log2 <= ALIGN_LOG2_MAX
    )


def payload_offset(
    offset: int, body_length: int, payload_length: int, block_log2: int, align_log2: int
) -> int:
    """Where the payload of a frame at *offset* starts."""
    head = offset + FRAME_HEADER_SIZE + body_length + 8 * block_count(payload_length, block_log2)
    return align_up(head, align_log2) if payload_length else head


def payload_align_log2(payload_length: int) -> int:
    """Alignment of a payload: 64 bytes, a page from 1 MiB on."""
    return PAGE_ALIGN_LOG2 if payload_length >= PAGE_ALIGN_FROM else PAYLOAD_ALIGN_LOG2
