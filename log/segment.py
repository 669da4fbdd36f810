"""One segment file: mapping on demand, frames, verified payloads."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mldb.errors import CorruptError, StorageIOError
from mldb.log import format as fmt
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.frame import (
    DamagedFrame,
    Frame,
    check_body,
    decode_file_header,
    decode_header,
    unpack,
)
from mldb.log.fs.protocol import File, FileSystem
from mldb.log.index.address import Entry
from mldb.log.index.columns import ColumnReader
from mldb.log.index.mapped import MappedIndex

Verify = Literal["first", "always", "never"]

SEGMENTS = "segments"
_WHOLE_MAX = 1 << 20  # verified frames remembered per segment; beyond it they are verified again


def segment_name(number: int) -> str:
    """The file name of segment *number*, relative to the store."""
    return f"{SEGMENTS}/{number:010d}.seg"


class Segment:
    """A segment of the log, opened when first read.

    Any thread. Views returned live as long as they are held, also after the segment is retired or
    the store closed. ``_lock`` guards mapping; the verification state is only ever extended.
    """

    __slots__ = (
        "_blocks",
        "_fs",
        "_lock",
        "_map",
        "_on_map",
        "_whole",
        "header_checked",
        "kinds",
        "name",
        "number",
        "seed",
        "store_id",
        "valid",
    )

    def __init__(
        self,
        fs: FileSystem,
        number: int,
        store_id: bytes,
        valid: int,
        name: str | None = None,
        kinds: tuple[int, ...] = (fmt.FILE_SEGMENT, fmt.FILE_COMPACTED),
        on_map: Callable[[], None] | None = None,
    ) -> None:
        self._fs = fs
        self._on_map = on_map
        self.kinds = kinds
        self.number = number
        self.name = segment_name(number) if name is None else name
        self.store_id = store_id
        self.seed = fmt.file_seed(store_id, number)
        self.valid = valid  # bytes known to be whole frames; grows while the segment is active
        self.header_checked = False  # the file header is checked by who reads it first
        self._map = memoryview(b"")
        self._lock = threading.Lock()
        self._whole: set[int] = set()  # frames whose payload is verified entirely
        self._blocks: dict[int, Blocks] = {}  # frames verified in part

    def view(self, end: int) -> memoryview:
        """Return a mapping that covers at least the first *end* bytes."""
        mapped = self._map
        if len(mapped) >= end:
            return mapped
        return self._remap(end)

    def map_whole(self) -> None:
        """Map the file as long as it is now; all of it counts as whole frames."""
        self.valid = len(self._remap(0))

    def _remap(self, end: int) -> memoryview:
        with self._lock:
            if self._map and len(self._map) >= end:
                return self._map
            want = max(end, self.valid)  # before the size, which grows with it
            file = self._open()
            try:
                size = file.size()
                want = want or size
                if size < want:
                    raise CorruptError(
                        f"segment {self.number} is {size} bytes long, expected at least {want}: "
                        "it was cut. Names stored in other segments stay readable; restore this "
                        "file from a backup.",
                        file=self.name,
                        offset=size,
                    )
                if not self.header_checked:
                    self.check_file_header(file.pread(fmt.FILE_HEADER_SIZE, 0))
                    self.header_checked = True
                mapped = self._map = file.map(want)
            finally:
                file.close()
        # Outside the lock: making room may release this very segment.
        if self._on_map is not None:
            self._on_map()
        return mapped

    def _open(self) -> File:
        try:
            return self._fs.open(self.name, "r")
        except StorageIOError as error:
            if error.errno != errno.ENOENT:
                raise
            raise CorruptError(
                f"segment {self.number} is missing. What newer segments answer stays readable; "
                "restore this file from a backup.",
                file=self.name,
            ) from error

    def check_file_header(self, data: bytes) -> None:
        """Raise CorruptError or FormatVersionError unless *data* starts this segment's file."""
        try:
            header = decode_file_header(data, self.name)
        except DamagedFrame as error:
            raise CorruptError(
                f"the header of segment {self.number} is damaged: {error}", file=self.name, offset=0
            ) from None
        if header.kind not in self.kinds or (header.store_id, header.file_id) != (
            self.store_id,
            self.number,
        ):
            kind = fmt.FILE_KINDS.get(header.kind, "unknown file")
            raise CorruptError(
                f"this is {kind} {header.file_id} of store {header.store_id.hex()}, expected "
                f"segment {self.number} of store {self.store_id.hex()}: files were swapped or "
                "mixed. Put the right file back; nothing was changed.",
                file=self.name,
                offset=0,
            )

    def unmap(self) -> None:
        """Forget the mapping; views that are held keep it alive."""
        with self._lock:
            self._map = memoryview(b"")

    @property
    def mapped_bytes(self) -> int:
        """How much of the segment is mapped now."""
        return len(self._map)

    def frame(self, offset: int, data: memoryview | None = None) -> tuple[Frame, bytes]:
        """Return the checked frame at *offset* and its body. Raises CorruptError."""
        view = self.view(self.valid) if data is None else data
        try:
            frame = decode_header(view, offset, self.seed, len(view))
            return frame, check_body(view, frame)
        except DamagedFrame as error:
            raise CorruptError(
                f"the frame is damaged: {error}. Other frames stay readable.",
                file=self.name,
                offset=offset,
            ) from None

    def payload(
        self, entry: Entry, low: int, high: int, verify: Verify, key: str | None = None
    ) -> memoryview:
        """Return bytes low..high of the stored form of one version, as a view of the mapping.

        *verify* says whether they are checked first, *key* is named in errors. Raises CorruptError.
        """
        start = entry.offset + low
        stop = entry.offset + high
        data = self._map
        if len(data) < stop:
            data = self.view(stop)
        if verify != "never" and (verify == "always" or entry.frame not in self._whole):
            self._verify(entry.frame, start, stop, verify, key)
        return data[start:stop]

    def touch_rows(
        self,
        entry: Entry,
        place: int,
        row_bytes: int,
        rows: npt.NDArray[np.int64],
        verify: Verify,
        key: str | None = None,
    ) -> None:
        """Verify the blocks that hold *rows* of a column at byte *place* of a version.

        Raises CorruptError.
        """
        if verify == "never" or (verify == "first" and entry.frame in self._whole):
            return
        stop = entry.offset + entry.length
        blocks = self._find_blocks(entry.frame, stop, verify, key)
        blocks.touch_rows(self.view(stop), entry.offset + place, row_bytes, rows, key)
        if verify == "first":
            self._note(entry.frame, blocks)

    def is_verified(self, entry: Entry, low: int, high: int) -> bool:
        """Whether bytes low..high of a version were all verified before and this is remembered."""
        if entry.frame in self._whole:
            return True
        blocks = self._blocks.get(entry.frame)
        return blocks is not None and blocks.covers(entry.offset + low, entry.offset + high)

    def private(self, entry: Entry, verify: Verify, key: str | None = None) -> memoryview:
        """Return a writable copy-on-write view of one version's stored bytes."""
        if verify != "never":
            self.payload(entry, 0, entry.length, verify, key)
        file = self._fs.open(self.name, "r")
        try:
            if file.size() < entry.offset + entry.length:
                raise CorruptError(
                    f"segment {self.number} was cut", file=self.name, offset=file.size(), key=key
                )
            return file.map_private(entry.offset, entry.length)
        finally:
            file.close()

    def _verify(self, offset: int, start: int, stop: int, verify: Verify, key: str | None) -> None:
        blocks = self._find_blocks(offset, stop, verify, key)
        blocks.touch(self.view(stop), start, stop, key)
        if verify == "first":
            self._note(offset, blocks)

    def _find_blocks(self, offset: int, stop: int, verify: Verify, key: str | None) -> Blocks:
        """Return the blocks of the frame at *offset*: those known, or anew from a checked frame."""
        blocks = None if verify == "always" else self._blocks.get(offset)
        if blocks is not None:
            return blocks
        view = self._map
        try:
            frame, _ = self.frame(offset, view if len(view) >= stop else None)
        except CorruptError as error:
            raise CorruptError(
                f"{'a stored version' if key is None else repr(key)} is damaged: {error}",
                file=self.name,
                offset=offset,
                key=key,
            ) from None
        return Blocks(frame, payload_checks(self.view(frame.end), frame), self.name)

    def _note(self, offset: int, blocks: Blocks) -> None:
        """Remember what was verified of a frame."""
        if not blocks.complete:
            self._blocks[offset] = blocks
            return
        if len(self._whole) >= _WHOLE_MAX:
            self._whole = set()
        self._whole.add(offset)
        self._blocks.pop(offset, None)


def index_source(fs: FileSystem, name: str, store_id: bytes, number: int, kind: int) -> Segment:
    """Map a side index or hint of segment *number*, all of it, as a source of frames."""
    source = Segment(fs, number, store_id, 0, name, kinds=(kind,))
    source.map_whole()
    return source


def open_index(
    source: Segment, offset: int, verify: Verify, *, whole: bool = False
) -> tuple[MappedIndex, dict[str, Any]]:
    """Map the index frame at *offset* of *source*; return the index and the fields of its body.

    *whole* verifies all of it now. Raises CorruptError or FormatVersionError.
    """
    name = source.name
    frame, body = source.frame(offset)
    if frame.header.kind & ~fmt.MUST_UNDERSTAND != fmt.KIND_INDEX:
        raise CorruptError("no index frame here", file=name, offset=offset)
    view = source.view(frame.end)
    blocks = Blocks(frame, payload_checks(view, frame), name)
    place = frame.payload_offset

    def touch(low: int, high: int) -> None:
        blocks.touch(view, place + low, place + high)

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
        view[place : place + length], fields["columns"], name, touch if lazy else _trust
    )
    return MappedIndex(reader, source.number), fields


def _trust(low: int, high: int) -> None:
    """Stands for the touch of an index that is verified already, or never."""
