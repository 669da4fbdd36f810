# The constants of log/format.py that are mirrored here: compared by name when the module is loaded.

cdef enum:
    _FRAME_HEADER_SIZE = 56
    _FRAME_ALIGN = 8
    _KIND_COMMIT = 1
    _MUST_UNDERSTAND = 0x8000
    _BLOCK_LOG2 = 20
    _INDEX_BLOCK_LOG2 = 14
    _PAYLOAD_ALIGN_LOG2 = 6
    _DIGEST_SIZE = 16
    _ENTRY_TOMBSTONE = 1
    _FRAME_CHECKED_SIZE = 48
    _BODY_VERSION = 1
    _KIND_MANIFEST = 3
    _BODY_BYTES_MAX = 1 << 26
    _BLOCK_LOG2_MIN = 12
    _BLOCK_LOG2_MAX = 30
    _ALIGN_LOG2_MIN = 3
    _ALIGN_LOG2_MAX = 21
    _FRAME_MAGIC = 0x72666DF7  # as a number
    _ENCODING_RAW = 0
    _FLAG_KEYED = 1
    _KEY_BYTES_MAX = 1024
    _ATTR_BYTES_MAX = 1 << 20
    _ENTRIES_MAX = 1 << 16
    _FRAMES_MAX = 1 << 20

cdef int64_t _LSN_MAX = 0x7FFFFFFFFFFFFFFF
cdef int64_t _PAYLOAD_BYTES_MAX = <int64_t>1 << 48

cdef struct _Header:  # FRAME_HEADER, which has no gaps
    uint32_t magic
    uint16_t kind
    uint8_t body_version, flags
    uint32_t body_length
    uint8_t block_log2, align_log2
    uint16_t reserved
    uint64_t payload_length, lsn, commit_lsn, body_check, header_check

VERSION = (<bytes>MLDB_VERSION).decode()
INTERFACE = 5
HAS_XXHASH = bool(MLDB_HAS_XXHASH)
CONSTANTS = {
    "FRAME_HEADER_SIZE": _FRAME_HEADER_SIZE,
    "FRAME_ALIGN": _FRAME_ALIGN,
    "KIND_COMMIT": _KIND_COMMIT,
    "MUST_UNDERSTAND": _MUST_UNDERSTAND,
    "BLOCK_LOG2": _BLOCK_LOG2,
    "INDEX_BLOCK_LOG2": _INDEX_BLOCK_LOG2,
    "PAYLOAD_ALIGN_LOG2": _PAYLOAD_ALIGN_LOG2,
    "DIGEST_SIZE": _DIGEST_SIZE,
    "ENTRY_TOMBSTONE": _ENTRY_TOMBSTONE,
    "FRAME_CHECKED_SIZE": _FRAME_CHECKED_SIZE,
    "BODY_VERSION": _BODY_VERSION,
    "KIND_MANIFEST": _KIND_MANIFEST,
    "BODY_BYTES_MAX": _BODY_BYTES_MAX,
    "BLOCK_LOG2_MIN": _BLOCK_LOG2_MIN,
    "BLOCK_LOG2_MAX": _BLOCK_LOG2_MAX,
    "ALIGN_LOG2_MIN": _ALIGN_LOG2_MIN,
    "ALIGN_LOG2_MAX": _ALIGN_LOG2_MAX,
    "FRAME_MAGIC": (<uint32_t>_FRAME_MAGIC).to_bytes(4, "little"),
    "ENCODING_RAW": _ENCODING_RAW,
    "FLAG_KEYED": _FLAG_KEYED,
    "KEY_BYTES_MAX": _KEY_BYTES_MAX,
    "ATTR_BYTES_MAX": _ATTR_BYTES_MAX,
    "ENTRIES_MAX": _ENTRIES_MAX,
    "FRAMES_MAX": _FRAMES_MAX,
    "LSN_MAX": _LSN_MAX,
    "PAYLOAD_BYTES_MAX": _PAYLOAD_BYTES_MAX,
}
