"""The one door to stored bytes: what a version is made of, whatever file and form it lies in.

Encodings, references, deltas and compacted files are behind it. A view that somebody holds may name
a segment whose file was replaced since: then the version is looked up as (key, commit) in the
newest view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mldb.errors import CorruptError, VersionGoneError
from mldb.log import format as fmt
from mldb.log.chain import DEPTH_MAX, Cache, Decode, base_fault, wrong_base
from mldb.log.delta_reads import DeltaReads
from mldb.log.index.address import Entry
from mldb.log.segment import Segment, SegmentGoneError, segment_name
from mldb.log.view import View
from mldb.options import Verify

if TYPE_CHECKING:
    import numpy.typing as npt

    from mldb.log.patch import Patch
    from mldb.log.patched import Layers

_T = TypeVar("_T")


class Door:
    """Hands out the bytes of versions. Any thread; what it returns lives as long as it is held.

    *key* is the index key of the version, None for that of the tensor *name*, which errors name.
    *size* is the number of decoded bytes, which whoever knows what they mean says. Raises
    CorruptError, FormatVersionError for an encoding of a newer mldb, VersionGoneError for a version
    that was pruned meanwhile.

    Who asks how a version is stored, or maps it, asks for its :meth:`holder` first; what only hands
    out bytes does so by itself.
    """

    __slots__ = ("_cache", "_deltas", "_head", "_key_of", "verify")

    def __init__(
        self,
        head: Callable[[], View],
        verify: Verify,
        decode: Decode,
        cache: Cache,
        key_of: Callable[[str], bytes],
    ) -> None:
        self.verify = verify
        self._key_of = key_of
        self._head = head
        self._cache = cache
        self._deltas = DeltaReads(decode, cache)

    def holder(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[bytes | None, Entry]:
        """Return key and entry of the version that has the bytes: this one, or a reference's owner.

        Raises CorruptError when there is no such owner, or it has other bytes.
        """
        if entry.encoding != fmt.ENCODING_REFERENCE:
            return key, entry
        return self.base_of(view, key, entry, name)

    def version(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        size: int,
        name: str,
        depth: int = DEPTH_MAX,
    ) -> memoryview:
        """Return the decoded bytes of one version: a view of the log, or of the cache.

        *depth* bounds how many versions it may build on.
        """
        if entry.encoding == fmt.ENCODING_REFERENCE:
            key, entry = self.holder(view, key, entry, name)
        view, entry, data = self.opened(view, key, entry, name)
        if entry.encoding == fmt.ENCODING_RAW:
            return data

        def make() -> memoryview:
            if entry.encoding == fmt.ENCODING_PATCH:
                return self._patched(view, key, entry, data, size, (0, size), name).toreadonly()
            return self._deltas.decode(self, view, key, entry, data, size, (0, size), name, depth)

        return self._cache.get((entry.segment, entry.offset), size, make)

    def raw(self, view: View, entry: Entry, name: str) -> memoryview:
        """Return the bytes of a raw version of tensor *name*: what :meth:`version` does, sooner."""
        try:
            return view.segments[entry[1]].payload(entry, 0, entry[4], self.verify, name)
        except (KeyError, SegmentGoneError):
            pass  # looked for elsewhere
        return self.version(view, None, entry, entry.length, name)

    def opened(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[View, Entry, memoryview]:
        """Return the stored bytes of a holder, with its entry as it lies now and the view of it."""
        try:
            segment = view.segments.get(entry.segment) or self._newer(entry)
            return view, entry, segment.payload(entry, 0, entry.length, self.verify, name)
        except SegmentGoneError as error:
            return self._elsewhere(
                error, key, entry, name, lambda new, at: self.opened(new, key, at, name)
            )

    def part(
        self, view: View, key: bytes | None, entry: Entry, size: int, low: int, high: int, name: str
    ) -> memoryview:
        """Return decoded bytes low..high of one version, reading no more than it has to."""
        if entry.encoding == fmt.ENCODING_REFERENCE:
            key, entry = self.holder(view, key, entry, name)
        if entry.encoding == fmt.ENCODING_PATCH:
            return self._patched_part(view, key, entry, size, (low, high), name).toreadonly()
        if entry.encoding == fmt.ENCODING_DELTA:
            return self._deltas.part(self, view, key, entry, size, (low, high), name)
        if entry.encoding != fmt.ENCODING_RAW:
            return self.version(view, key, entry, size, name)[low:high]
        try:
            segment = view.segments.get(entry.segment) or self._newer(entry)
            return segment.payload(entry, low, high, self.verify, name)
        except SegmentGoneError as error:
            return self._elsewhere(
                error,
                key,
                entry,
                name,
                lambda new, at: self.part(new, key, at, size, low, high, name),
            )

    def unverified(
        self, view: View, key: bytes | None, entry: Entry, low: int, high: int, name: str
    ) -> memoryview:
        """Return raw bytes low..high of a holder; who reads them verifies them first."""
        try:
            segment = view.segments.get(entry.segment) or self._newer(entry)
            return segment.payload(entry, low, high, "never", name)
        except SegmentGoneError as error:
            return self._elsewhere(
                error,
                key,
                entry,
                name,
                lambda new, at: self.unverified(new, key, at, low, high, name),
            )

    def private(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        size: int,
        name: str,
        *,
        low: int = 0,
        high: int | None = None,
        is_verified: bool = False,
    ) -> memoryview | bytearray:
        """Return decoded bytes low..high (all of them) as writable memory of the caller's own.

        Raw bytes come as a copy-on-write mapping, and so do those of a patch, of which only the
        pages with changed rows are copied. *is_verified*: the caller sees to that.
        """
        if entry.encoding == fmt.ENCODING_REFERENCE:
            key, entry = self.holder(view, key, entry, name)
        if entry.encoding == fmt.ENCODING_PATCH:
            stop = size if high is None else high
            return self._patched_part(view, key, entry, size, (low, stop), name)
        if entry.encoding != fmt.ENCODING_RAW:
            return bytearray(self.version(view, key, entry, size, name)[low:high])
        try:
            verify = "never" if is_verified else self.verify
            segment = view.segments.get(entry.segment) or self._newer(entry)
            return segment.private(entry, verify, name, low, high)
        except SegmentGoneError as error:
            return self._elsewhere(
                error,
                key,
                entry,
                name,
                lambda new, at: self.private(
                    new, key, at, size, name, low=low, high=high, is_verified=is_verified
                ),
            )

    def touch_rows(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        start: int,
        row_bytes: int,
        rows: npt.NDArray[np.int64],
        name: str,
    ) -> None:
        """Verify what holds *rows* of a column that starts at byte *start* of a raw holder."""
        try:
            segment = view.segments.get(entry.segment) or self._newer(entry)
            segment.touch_rows(entry, start, row_bytes, rows, self.verify, name)
        except SegmentGoneError as error:
            self._elsewhere(
                error,
                key,
                entry,
                name,
                lambda new, at: self.touch_rows(new, key, at, start, row_bytes, rows, name),
            )

    def is_verified(self, view: View, entry: Entry, low: int, high: int) -> bool:
        """Whether decoded bytes low..high are raw, were verified before, and this is remembered."""
        if entry.encoding != fmt.ENCODING_RAW:
            return False
        segment = view.segments.get(entry.segment)
        return segment is not None and segment.is_verified(entry, low, high)

    def seen(self, view: View, entry: Entry) -> memoryview | None:
        """Return the bytes of a raw holder where they are mapped, not verified; or None."""
        segment = view.segments.get(entry.segment)
        return None if segment is None else segment.mapped(entry)

    def unread(self, view: View, entry: Entry, piece: int) -> Iterable[memoryview] | None:
        """Return the bytes of a raw holder that lies in an active segment, not verified; or None.

        All of them where they are mapped, else *piece* bytes at a time. For who compares them with
        bytes of the same digest, which tells more than the checksums do.
        """
        segment = view.segments.get(entry.segment)
        if segment is None or not segment.grows or entry.encoding != fmt.ENCODING_RAW:
            return None
        data = segment.mapped(entry)
        return segment.pieces(entry, piece) if data is None else (data,)

    @staticmethod
    def has_parts(entry: Entry) -> bool:
        """Whether a part of a holder costs no more than itself, and the patches on it."""
        return entry.encoding in (fmt.ENCODING_RAW, fmt.ENCODING_PATCH)

    @staticmethod
    def has_pieces(entry: Entry) -> bool:
        """Whether a part of a holder costs less than all of it: itself, or the pieces it is in."""
        parts = (fmt.ENCODING_RAW, fmt.ENCODING_PATCH, fmt.ENCODING_DELTA)
        return entry.encoding in parts

    @staticmethod
    def is_own(entry: Entry) -> bool:
        """Whether what :meth:`version` returns of a holder is made for it, not part of a file."""
        return entry.encoding == fmt.ENCODING_PATCH

    @staticmethod
    def is_raw(entry: Entry) -> bool:
        """Whether a holder stores decoded bytes, so that a part of them costs only itself."""
        return entry.encoding == fmt.ENCODING_RAW

    @staticmethod
    def file(view: View, entry: Entry) -> str:
        """The file that a version lies in, relative to the store: for messages and measuring."""
        return segment_name(entry.segment)

    def _newer(self, entry: Entry) -> Segment:
        """A segment that took the place of others since a view was made."""
        segment = self._head().segments.get(entry.segment)
        if segment is None:
            raise SegmentGoneError("it was replaced", file=segment_name(entry.segment))
        return segment

    # --- versions that build on others ------------------------------------------------------------

    def _patched_part(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        size: int,
        span: tuple[int, int],
        name: str,
    ) -> memoryview:
        """Return bytes of a patched version as writable memory of the caller's own."""
        view, entry, data = self.opened(view, key, entry, name)
        if entry.encoding != fmt.ENCODING_PATCH:  # it was replaced meanwhile
            low, high = span
            return memoryview(self.private(view, key, entry, size, name, low=low, high=high))
        return self._patched(view, key, entry, data, size, span, name)

    def _patched(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        data: memoryview,
        size: int,
        span: tuple[int, int],
        name: str,
    ) -> memoryview:
        """Return bytes of a version: those of the whole one below, with the patches laid over."""
        from mldb.log.patch import apply_patch

        below = self._layers(view, key, entry, data, size, name)
        row = below.row_bytes
        first, stop = span[0] // row, -(-span[1] // row)
        low, high = first * row, stop * row
        view, key, entry = below.view, below.key, below.entry
        target = memoryview(self.private(view, key, entry, size, name, low=low, high=high))
        if len(target) != high - low:
            raise wrong_base(entry, name, "has rows of another length")
        for patch in reversed(below.patches):
            apply_patch(patch, target, first)
        return target[span[0] - low : span[1] - low]

    def patch_onto(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        size: int,
        name: str,
        below: tuple[bytes, int],
    ) -> Patch:
        """Return what a patched version sets on that of key and commit *below*, as one patch.

        It is a copy, or a view of the log. Raises CorruptError when it does not build on that.
        """
        from mldb.log.patch import fold_patches

        view, entry, data = self.opened(view, key, entry, name)
        if entry.encoding != fmt.ENCODING_PATCH:
            raise wrong_base(entry, name, "it does not build on any more")
        found = self._layers(view, key, entry, data, size, name, below)
        if (found.key, found.entry.commit_lsn) != below:
            raise wrong_base(entry, name, f"does not lead to that of commit {below[1]}")
        return fold_patches(found.patches[::-1])

    def _layers(
        self,
        view: View,
        key: bytes | None,
        entry: Entry,
        data: memoryview,
        size: int,
        name: str,
        until: tuple[bytes, int] | None = None,
    ) -> Layers:
        """Return what a patched version consists of, wherever it lies by now."""
        from mldb.log.patched import layers_of

        try:
            return layers_of(self, view, key, entry, data, size, name, until)
        except (CorruptError, VersionGoneError):
            # What it built on may be gone since it was folded with that, and lies elsewhere.
            newest = self._head()
            found = newest.version_at(self._key_of(name) if key is None else key, entry.commit_lsn)
            if found is None or found.segment == entry.segment:
                raise
        view, entry, data = self.opened(newest, key, found, name)
        return self._layers(view, key, entry, data, size, name, until)

    def base_of(
        self, view: View, key: bytes | None, entry: Entry, name: str
    ) -> tuple[bytes, Entry]:
        """Return key and entry of the version that this one names. Raises CorruptError."""
        owner = entry.owner or (self._key_of(name) if key is None else key)
        found = view.version_at(owner, entry.base)
        fault = base_fault(entry, found)
        if found is None or fault:
            raise wrong_base(entry, name, fault)
        return owner, found

    def _elsewhere(
        self,
        error: SegmentGoneError,
        key: bytes | None,
        entry: Entry,
        name: str,
        again: Callable[[View, Entry], _T],
    ) -> _T:
        """Find a version whose file is gone in the newest view, and read it there."""
        view = self._head()
        found = view.version_at(self._key_of(name) if key is None else key, entry.commit_lsn)
        if found is not None and found.segment != entry.segment:
            return again(view, found)
        if entry.segment in view.segments:
            raise error  # the manifest still names the file, so it is lost
        raise VersionGoneError(
            f"the version of {name!r} that commit {entry.commit_lsn} stored was pruned while it "
            "was being read. Hold a snapshot (db.at) to keep what you read, or pin the commit."
        )
