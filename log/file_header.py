"""The first 128 bytes of every file but the locks. FORMAT.md section 2."""

from __future__ import annotations

from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.frame import DamagedFrame
from mldb.log.fs.protocol import FileSystem


def encode_file_header(
    kind: int,
    store_id: bytes,
    created: int,
    *,
    number: int = 0,
    segment_id: bytes = fmt.NO_ID,
    base_lsn: int = 0,
    published: int = 0,
) -> bytes:
    """Return the 128 bytes that start a file.

    *number* is that of a manifest; *segment_id* names a segment or the segment that the file is
    about. An index or lost tail of a version 1 segment has its number instead.
    """
    version = fmt.FORMAT_VERSION
    if len(segment_id) != len(fmt.NO_ID):
        version, number = fmt.FIRST_VERSION, int.from_bytes(segment_id, "little")
        segment_id = fmt.NO_ID
    head = fmt.FILE_HEADER.pack(
        fmt.FILE_MAGIC,
        version,
        kind,
        fmt.FILE_HEADER_SIZE,
        store_id,
        number,
        base_lsn,
        created,
        fmt.WRITER,
        segment_id,
        published,
        0,
    )[:-8]
    return head + check64(head).to_bytes(8, "little")


def decode_file_header(data: bytes, name: str) -> fmt.FileHeader:
    """Decode the first 128 bytes of file *name*.

    Raises :class:`DamagedFrame` for damage and FormatVersionError for a newer format or a foreign
    file.
    """
    if len(data) < fmt.FILE_HEADER_SIZE:
        raise DamagedFrame(f"{len(data)} bytes, a file header needs {fmt.FILE_HEADER_SIZE}")
    header = fmt.FileHeader._make(fmt.FILE_HEADER.unpack_from(data))
    if header.magic != fmt.FILE_MAGIC:
        raise FormatVersionError(
            f"{name} is not an mldb file: it starts with {header.magic!r}, expected "
            f"{fmt.FILE_MAGIC!r}. Nothing was changed; check the path."
        )
    computed = check64(data[: fmt.FILE_HEADER_SIZE - 8])
    if computed != header.check:
        raise DamagedFrame(
            f"stored file header checksum {header.check:016x}, computed {computed:016x}"
        )
    if header.version > fmt.FORMAT_VERSION:
        raise FormatVersionError(
            f"{name} has format version {header.version}; this mldb reads up to "
            f"{fmt.FORMAT_VERSION} (file written by {header.writer.rstrip(bytes(1))!r}). Nothing "
            "was changed; use a newer mldb."
        )
    if header.version == 0 or header.kind == 0:
        raise DamagedFrame("format version 0 and file kind 0 are never valid")
    return header


def header_of(fs: FileSystem, name: str) -> fmt.FileHeader | None:
    """The header of a file, None when it is damaged or no file of mldb.

    Raises StorageIOError, and FormatVersionError for a file of a newer mldb.
    """
    file = fs.open(name, "r")
    try:
        data = file.pread(fmt.FILE_HEADER_SIZE, 0)
        return decode_file_header(data, name) if data.startswith(fmt.FILE_MAGIC) else None
    except DamagedFrame:
        return None
    finally:
        file.close()
