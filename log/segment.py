"""One segment file: mapping on demand, frames, verified payloads.

A sealed segment is mapped whole. The mapping of the active one is renewed only when a read lies
behind it and the file has grown by half, so that arrays which are kept hold a handful of mappings
and not one each; until then the range asked for is read. The same is done where the system has no
room for a mapping.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final

from mldb.arrays import Numbers
from mldb.errors import CorruptError, StorageIOError
from mldb.log import format as fmt
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.file_header import decode_file_header
from mldb.log.frame import DamagedFrame, Frame, check_body, decode_header
from mldb.log.fs.protocol import File, FileSystem, OpenMode
from mldb.log.index.address import Entry
from mldb.options import Verify

SEGMENTS: Final = "segments"
REMAP_BYTES: Final = 1 << 20
"""A mapping that is renewed covers at least this much."""

_WHOLE_MAX: Final = 1 << 20  # verified frames remembered; beyond it they are verified again
_HEAD_BYTES: Final = 4096  # what is read of a frame first; most heads are shorter
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class SegmentGoneError(CorruptError):
    """The file of a segment is not there: lost, or its versions moved to another segment."""


def segment_name(segment_id: bytes) -> str:
    """The file name of a segment, relative to the store."""
    return f"{SEGMENTS}/{fmt.id_text(segment_id)}.seg"


class Segment:
    """A segment of the log, opened when first read.

    Any thread; nothing here waits. Views returned live as long as they are held, also after the
    segment is retired or the store closed. Two threads may map it or verify a block at once, which
    costs time and nothing else: fields are only ever replaced by something at least as good.
    """

    __slots__ = (
        "_blocks",
        "_fs",
        "_map",
        "_on_map",
        "_whole",
        "grows",
        "header_checked",
        "id",
        "kinds",
        "name",
        "seed",
        "store_id",
        "valid",
    )

    def __init__(
        self,
        fs: FileSystem,
        segment_id: bytes,
        store_id: bytes,
        valid: int,
        name: str | None = None,
        kinds: tuple[int, ...] = (fmt.FILE_SEGMENT, fmt.FILE_COMPACTED),
        on_map: Callable[[], None] | None = None,
        *,
        grows: bool = False,
    ) -> None:
        self._fs = fs
        self._on_map = on_map
        self.kinds = kinds
        self.id = segment_id
        self.name = segment_name(segment_id) if name is None else name
        self.store_id = store_id
        self.seed = fmt.file_seed(store_id, segment_id)
        self.valid = valid  # bytes known to be whole frames; grows while the segment is active
        self.grows = grows  # it is appended to
        self.header_checked = False  # the file header is checked by who reads it first
        self._map = memoryview(b"")
        self._whole: set[int] = set()  # frames whose payload is verified entirely
        self._blocks: dict[int, Blocks] = {}  # frames verified in part

    # --- mapping and reading ----------------------------------------------------------------------

    def view(self, end: int) -> memoryview:
        """Return a mapping that covers at least the first *end* bytes; for sealed segments."""
        mapped = self._map
        return mapped if len(mapped) >= end else self._remap(end)

    def map_whole(self) -> None:
        """Map the file as long as it is now; all of it counts as whole frames."""
        self.valid = len(self._remap(0))

    def _cover(self, end: int) -> memoryview | None:
        """Return a mapping of the first *end* bytes; None when there is to be none."""
        mapped = self._map
        if len(mapped) >= end:
            return mapped
        if self.grows and mapped and self.valid < max(REMAP_BYTES, len(mapped) * 3 // 2):
            return None
        try:
            return self._remap(end)
        except StorageIOError as error:
            if error.errno not in _NO_ROOM:
                raise
            return None

    def _remap(self, end: int) -> memoryview:
        want = max(end, self.valid)  # before the size, which grows with it
        file = self._open()
        try:
            size = file.size()
            want = want or size
            self._check_size(size, want)
            mapped = file.map(want)
        finally:
            file.close()
        if len(mapped) >= len(self._map):
            self._map = mapped
        if self._on_map is not None:
            self._on_map()
        return mapped

    def _check_size(self, size: int, want: int) -> None:
        if size < want:
            raise CorruptError(
                f"segment {fmt.id_text(self.id)} is {size} bytes long, expected at least {want}: "
                "it was cut. Names stored in other segments stay readable; restore this file from "
                "a backup.",
                file=self.name,
                offset=size,
            )

    def open_file(self, mode: OpenMode) -> File:
        """Open the file; its header is not looked at. Raises SegmentGoneError, StorageIOError."""
        try:
            return self._fs.open(self.name, mode)
        except StorageIOError as error:
            if error.errno != errno.ENOENT:
                raise
            rest = (
                "The log cannot go on"
                if self.grows
                else "What other segments answer stays readable"
            )
            raise SegmentGoneError(
                f"segment {fmt.id_text(self.id)} is missing. {rest}; restore this file from a "
                "backup.",
                file=self.name,
            ) from error

    def _open(self) -> File:
        """Open the file and check its header once. Raises SegmentGoneError, CorruptError."""
        file = self.open_file("r")
        try:
            if not self.header_checked:
                if (size := file.size()) < fmt.FILE_HEADER_SIZE:
                    self._check_size(size, max(fmt.FILE_HEADER_SIZE, self.valid))
                self.check_file_header(file.pread(fmt.FILE_HEADER_SIZE, 0))
                self.header_checked = True
        except BaseException:
            file.close()
            raise
        return file

    def _read(self, start: int, stop: int) -> memoryview:
        """Return bytes start..stop of the file, copied. Raises CorruptError when they end early."""
        file = self._open()
        try:
            data = file.pread(stop - start, start)
        finally:
            file.close()
        self._check_size(start + len(data), stop)
        return memoryview(data)

    def check_file_header(self, data: bytes) -> None:
        """Raise CorruptError or FormatVersionError unless *data* starts this segment's file."""
        text = fmt.id_text(self.id)
        try:
            header = decode_file_header(data, self.name)
        except DamagedFrame as error:
            raise CorruptError(
                f"the header of segment {text} is damaged: {error}", file=self.name, offset=0
            ) from None
        found = header.segment_id
        if header.kind not in self.kinds or (header.store_id, found) != (self.store_id, self.id):
            kind = fmt.FILE_KINDS.get(header.kind, "unknown file")
            raise CorruptError(
                f"this is {kind} {fmt.id_text(found)} of store {header.store_id.hex()}, expected "
                f"segment {text} of store {self.store_id.hex()}: files were swapped or mixed. Put "
                "the right file back; nothing was changed.",
                file=self.name,
                offset=0,
            )

    def unmap(self) -> None:
        """Forget the mapping; views that are held keep it alive."""
        self._map = memoryview(b"")

    @property
    def mapped_bytes(self) -> int:
        """How much of the segment is mapped now."""
        return len(self._map)

    # --- frames and payloads ----------------------------------------------------------------------

    def frame(self, offset: int) -> tuple[Frame, bytes]:
        """Return the checked frame at *offset* and its body. Raises CorruptError."""
        try:
            data, base, frame = self._head(offset)
            return frame, check_body(data, frame, base)
        except DamagedFrame as error:
            raise self._damaged(error, offset) from None

    def _head(self, offset: int) -> tuple[memoryview, int, Frame]:
        """Return bytes that hold a frame up to its payload, the offset they start at, the frame.

        Raises DamagedFrame.
        """
        data = self._cover(min(offset + fmt.FRAME_HEADER_SIZE, self.valid))
        if data is not None:
            frame = decode_header(data, offset, self.seed, max(self.valid, len(data)))
            if _head_end(frame) <= len(data):
                return data, 0, frame
        data = self._read(offset, max(offset, min(offset + _HEAD_BYTES, self.valid)))
        frame = decode_header(data, offset, self.seed, self.valid, offset)
        if _head_end(frame) > offset + len(data):
            data = self._read(offset, _head_end(frame))
        return data, offset, frame

    def _damaged(self, error: DamagedFrame, offset: int) -> CorruptError:
        return CorruptError(
            f"the frame is damaged: {error}. Other frames stay readable.",
            file=self.name,
            offset=offset,
        )

    def payload(
        self, entry: Entry, low: int, high: int, verify: Verify, key: str | None = None
    ) -> memoryview:
        """Return bytes low..high of the stored form of one version: mapped, or else copied.

        *verify* says whether they are checked first, *key* is named in errors. Raises CorruptError.
        """
        start = entry.offset + low
        stop = start - low + high
        data = self._map
        if len(data) < stop:
            covering = self._cover(stop)
            if covering is None:
                return self._read_payload(entry, start, stop, verify, key)
            data = covering
        if verify != "never" and (verify == "always" or entry.frame not in self._whole):
            blocks = self._find_blocks(entry.frame, verify, key)
            blocks.touch(data, start, stop, key)
            self._note(entry.frame, blocks, verify)
        return data[start:stop]

    def mapped(self, entry: Entry) -> memoryview | None:
        """Return the stored bytes of one version where they are mapped, not verified; or None.

        A sealed segment is not mapped for that: each mapping holds a descriptor.
        """
        stop = entry.offset + entry.length
        data = self._cover(stop) if self.grows else self._map
        return None if data is None or len(data) < stop else data[entry.offset : stop]

    def pieces(self, entry: Entry, size: int) -> Iterator[memoryview]:
        """Yield the stored bytes of one version, *size* at a time, read and not verified.

        What a piece takes is used again for the next one. Raises CorruptError, SegmentGoneError.
        """
        file = self._open()
        try:
            at, stop = entry.offset, entry.offset + entry.length
            while at < stop:
                data = file.pread(min(size, stop - at), at)
                self._check_size(at + len(data), min(at + size, stop))
                yield memoryview(data)
                at += len(data)
        finally:
            file.close()

    def _read_payload(
        self, entry: Entry, start: int, stop: int, verify: Verify, key: str | None
    ) -> memoryview:
        if start == stop:
            return memoryview(b"")
        if verify == "never" or (verify == "first" and entry.frame in self._whole):
            return self._read(start, stop)
        blocks = self._find_blocks(entry.frame, verify, key)
        blocks.bound(start, stop, key)
        low, high = blocks.span(start, stop)
        data = self._read(low, high)
        blocks.touch(data, start, stop, key, low)
        self._note(entry.frame, blocks, verify)
        return data[start - low : stop - low]

    def touch_rows(
        self,
        entry: Entry,
        start: int,
        row_bytes: int,
        rows: Numbers,
        verify: Verify,
        key: str | None = None,
    ) -> None:
        """Verify the blocks that hold *rows* of a column at byte *start* of a version.

        Raises CorruptError.
        """
        if verify == "never" or (verify == "first" and entry.frame in self._whole):
            return
        stop = entry.offset + entry.length
        data = self._cover(stop)
        if data is None:
            self.payload(entry, 0, entry.length, verify, key)
            return
        blocks = self._find_blocks(entry.frame, verify, key)
        blocks.touch_rows(data, entry.offset + start, row_bytes, rows, key)
        self._note(entry.frame, blocks, verify)

    def is_verified(self, entry: Entry, low: int, high: int) -> bool:
        """Whether bytes low..high of a version were all verified before and this is remembered."""
        if entry.frame in self._whole:
            return True
        blocks = self._blocks.get(entry.frame)
        return blocks is not None and blocks.covers(entry.offset + low, entry.offset + high)

    def private(
        self,
        entry: Entry,
        verify: Verify,
        key: str | None = None,
        low: int = 0,
        high: int | None = None,
    ) -> memoryview:
        """Return a writable copy-on-write view of bytes low..high of one version as stored."""
        stop = entry.length if high is None else high
        if verify != "never":
            self.payload(entry, low, stop, verify, key)
        file = self._open()
        offset, length = entry.offset + low, stop - low
        try:
            self._check_size(file.size(), offset + length)
            return file.map_private(offset, length)
        except StorageIOError as error:
            if error.errno not in _NO_ROOM:
                raise
            return memoryview(bytearray(file.pread(length, offset)))
        finally:
            file.close()

    def _find_blocks(self, offset: int, verify: Verify, key: str | None) -> Blocks:
        """Return the blocks of the frame at *offset*: those known, or anew from a checked frame."""
        blocks = None if verify == "always" else self._blocks.get(offset)
        if blocks is not None:
            return blocks
        try:
            data, base, frame = self._head(offset)
            check_body(data, frame, base)
        except (DamagedFrame, CorruptError) as error:
            if isinstance(error, SegmentGoneError):
                raise
            raise CorruptError(
                f"{'a stored version' if key is None else repr(key)} is damaged: {error}",
                file=self.name,
                offset=offset,
                key=key,
            ) from None
        blocks = Blocks(frame, payload_checks(data, frame, base), self.name)
        return blocks if verify == "always" else self._blocks.setdefault(offset, blocks)

    def _note(self, offset: int, blocks: Blocks, verify: Verify) -> None:
        """Remember what was verified of a frame."""
        if verify != "first":
            return
        if not blocks.complete:
            self._blocks[offset] = blocks
            return
        if len(self._whole) >= _WHOLE_MAX:
            self._whole = set()
        self._whole.add(offset)
        self._blocks.pop(offset, None)


def _head_end(frame: Frame) -> int:
    return frame.payload_offset if frame.header.payload_length else frame.end
