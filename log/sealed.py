"""One sealed segment as the index sees it: its file and its footer, opened when first asked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow
from mldb.log.manifest import SegmentInfo
from mldb.log.mappings import MappingBudget
from mldb.log.segment import Segment, SegmentGoneError
from mldb.options import Verify

if TYPE_CHECKING:
    from mldb.log.index.mapped import MappedIndex
    from mldb.log.moved import MovedIndex, Newest

    class Head(Newest, Protocol):
        """The newest view, as far as a segment whose file was replaced asks it."""

        @property
        def segments(self) -> Mapping[bytes, Segment]:
            """The segments that the manifest names, by id."""


class SealedPart:
    """A sealed segment: its file and its mapped index, opened when first asked. Any thread.

    *head* leads to the newest view, where the versions of a segment lie whose file was replaced.
    """

    def __init__(
        self,
        fs: FileSystem,
        info: SegmentInfo,
        verify: Verify,
        budget: MappingBudget,
        head: Callable[[], Head] | None = None,
    ) -> None:
        self.info = info
        self.first_lsn = info.first_lsn
        self.last_lsn = info.last_lsn
        self.until = info.last_lsn
        """The highest LSN up to here in log order; the segment may be empty. The state sets it."""
        self._head = head
        this = weakref.ref(self)  # a strong one would make a ring

        def note() -> None:
            part = this()
            if part is not None:
                budget.note(part)

        self.segment = Segment(fs, info.id, info.origin, info.length, on_map=note)
        self._fs = fs
        self._verify = verify
        self._index: MappedIndex | MovedIndex | None = None

    @property
    def index(self) -> MappedIndex | MovedIndex:
        """The mapped index, or where its file is gone what the newest view has of it."""
        index = self._index
        if index is None:
            try:
                index = self._open()
            except SegmentGoneError:
                head = self._head
                if head is None or self.info.id in head().segments:
                    raise  # the manifest still names the file, so it is lost
                from mldb.log.moved import MovedIndex

                index = MovedIndex(head, self.info.first_lsn, self.info.last_lsn)
            self._index = index
        return index

    def own_index(self) -> MappedIndex:
        """The mapped index, for who reads this very file. Raises SegmentGoneError."""
        from mldb.log.index.mapped import MappedIndex

        index = self.index
        if not isinstance(index, MappedIndex):
            raise SegmentGoneError("it was replaced", file=self.segment.name)
        return index

    def _open(self) -> MappedIndex:
        from mldb.log.index.opened import index_source, open_index

        info = self.info
        source = self.segment
        if info.index_file:
            source = index_source(self._fs, info.index_file, info.origin, info.id, fmt.FILE_INDEX)
        return open_index(source, info.index_offset, self._verify)[0]

    @property
    def lookup(self) -> MappedIndex | MovedIndex:
        """What single questions are asked of."""
        return self.index

    def distrust(self, error: MldbError) -> bool:
        """There is no other index of it."""
        return False

    def commits(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) with low <= lsn <= high, ascending."""
        return self.index.placed(low, high)

    @property
    def mapped_bytes(self) -> int:
        """How much of the segment is mapped now."""
        return self.segment.mapped_bytes

    def release(self) -> None:
        """Let the mapping go; the next question maps the segment again."""
        self._index = None
        self.segment.unmap()
