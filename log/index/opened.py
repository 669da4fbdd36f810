"""Index frames opened as mapped indexes: footers, side indexes, hints."""

from __future__ import annotations

from typing import Any

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.frame import unpack
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.column_reader import ColumnReader, trust
from mldb.log.index.mapped import MappedIndex
from mldb.log.segment import Segment
from mldb.options import Verify


def index_source(
    fs: FileSystem, name: str, store_id: bytes, segment_id: bytes, kind: int
) -> Segment:
    """Map a side index or hint of a segment, all of it, as a source of frames."""
    source = Segment(fs, segment_id, store_id, 0, name, kinds=(kind,))
    source.map_whole()
    return source


def open_index(
    source: Segment, offset: int, verify: Verify, *, whole: bool = False
) -> tuple[MappedIndex, dict[str, Any]]:
    """Map the index frame at *offset* of *source*; return the index and the fields of its body.

    *whole* verifies all of it now. Raises CorruptError or FormatVersionError.
    """
    name = source.name
    view = source.view(source.valid)
    frame, body = source.frame(offset)
    if frame.header.kind & ~fmt.MUST_UNDERSTAND != fmt.KIND_INDEX:
        raise CorruptError("no index frame here", file=name, offset=offset)
    blocks = Blocks(frame, payload_checks(view, frame), name)
    start = frame.payload_offset

    def touch(low: int, high: int) -> None:
        blocks.touch(view, start + low, start + high)

    try:
        fields = unpack(body)
        if not isinstance(fields, dict) or not isinstance(fields.get("columns"), dict):
            raise ValueError("no column directory")
    except ValueError as error:
        raise CorruptError(
            f"the index directory is damaged: {error}", file=name, offset=offset
        ) from None
    length = frame.header.payload_length
    if whole:
        touch(0, length)
    lazy = not whole and verify != "never"
    reader = ColumnReader(
        view[start : start + length], fields["columns"], name, touch if lazy else trust
    )
    return MappedIndex(reader, source.id), fields
