"""One part of the directory: a file of ``hints/`` that indexes a run of sealed segments.

It says which segments by a digest over their ids and chains, and is believed only where the
manifest has exactly these, one after another. FORMAT.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from mldb.deferred import NamedTuple, compiled
from mldb.errors import CorruptError, MldbError
from mldb.log import format as fmt
from mldb.log.active import HINTS
from mldb.log.checksum import digest128
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.memory import CommitField
from mldb.log.manifest import SegmentInfo
from mldb.log.mappings import MappingBudget
from mldb.log.sealed import SealedPart
from mldb.options import Verify

if TYPE_CHECKING:
    from mldb.log.index.columns import IndexImage
    from mldb.log.index.mapped import MappedIndex

_NAME: Final = r"directory-([0-9a-f]{32})\.idx\Z"


class Files(NamedTuple):
    """Where the files of the directory are, and how they are read."""

    fs: FileSystem
    store_id: bytes
    verify: Verify
    budget: MappingBudget


class PartInfo(NamedTuple):
    """What the catalog says of a part: its file, which segments and how many versions it covers."""

    id: bytes
    start: int
    """The place of its first segment in the manifest."""
    segments: int
    versions: int
    covers: bytes
    """The digest of the segments; see :func:`digest_of`."""

    @property
    def name(self) -> str:
        """Its file, relative to the store."""
        return f"{HINTS}/directory-{self.id.hex()}.idx"


def digest_of(segments: Sequence[SegmentInfo]) -> bytes:
    """The digest of a run of segments: of the id and chain of each, in log order."""
    return digest128(b"".join([info.id + info.chain for info in segments]))


def id_in(file: str) -> bytes | None:
    """The id of the part whose file has this name in ``hints/``, None for other files."""
    found = compiled(_NAME).match(file)
    return None if found is None else bytes.fromhex(found.group(1))


def encode_part(
    image: IndexImage, part: PartInfo, store_id: bytes, clock: int, last_lsn: int
) -> list[Buffer]:
    """Return the buffers of the file of a part."""
    from mldb.log.file_header import encode_file_header
    from mldb.log.index.footer import encode_index

    header = encode_file_header(fmt.FILE_HINT, store_id, clock, segment_id=part.id)
    seed = fmt.file_seed(store_id, part.id)
    fields = {"covers": part.covers}
    return [header, *encode_index(image, fields, last_lsn, seed, fmt.FILE_HEADER_SIZE)]


class Part:
    """A part of the directory, mapped when first asked. Any thread.

    What it returns is copied out of the mapping and lives for ever. When the file is missing,
    damaged or another one, *lost* is told once, and the segments answer for themselves: the same,
    only slower.
    """

    def __init__(
        self,
        files: Files,
        info: PartInfo,
        sealed: Sequence[SealedPart],
        lost: Callable[[Part, MldbError], None],
    ) -> None:
        """*sealed* are the segments of the manifest that the part covers."""
        self.info = info
        self.sealed = tuple(sealed)
        self.first_lsn = next((part.first_lsn for part in sealed if part.last_lsn), 0)
        self.last_lsn = next((part.last_lsn for part in reversed(sealed) if part.last_lsn), 0)
        self.is_lost = False
        self._files = files
        self._lost = lost
        self._index: MappedIndex | None = None

    @property
    def lookup(self) -> Part:
        """What single questions are asked of: the part, which knows what to do about damage."""
        return self

    @property
    def index(self) -> MappedIndex | Part:
        """The mapped index for listings, or where it is no good the part itself."""
        return self.mapped or self

    @property
    def mapped(self) -> MappedIndex | None:
        """The mapped index; None when the file is no good, and the segments are to be asked.

        What is read of it may still raise CorruptError; then call :meth:`distrust`.
        """
        if self._index is None and not self.is_lost:
            try:
                self._index = self._open()
            except MldbError as error:
                self.distrust(error)
            else:
                self._files.budget.note(self)
        return self._index

    def _open(self) -> MappedIndex:
        from mldb.log.index.mapped import MappedIndex
        from mldb.log.index.opened import index_source, open_index

        info, files = self.info, self._files
        source = index_source(files.fs, info.name, files.store_id, info.id, fmt.FILE_HINT)
        index, fields = open_index(source, fmt.FILE_HEADER_SIZE, files.verify)
        if fields.get("covers") != info.covers:
            raise CorruptError("this part covers other segments", file=info.name)
        return MappedIndex(index.reader, *(part.info.id for part in self.sealed))

    def distrust(self, error: MldbError) -> bool:
        """Ask the segments from now on; True, since they can be asked."""
        self._index = None
        if not self.is_lost:
            self.is_lost = True
            self._lost(self, error)
        return True

    def release(self) -> None:
        """Let the mapping go; the next question maps it again."""
        self._index = None

    @property
    def mapped_bytes(self) -> int:
        """How much of it is mapped now."""
        return 0 if self._index is None else self._index.reader.length

    # --- what every index part answers ------------------------------------------------------------

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version inside the intervals."""
        mapped = self._index or self.mapped
        if mapped is not None:
            try:
                return mapped.newest(key, intervals)
            except MldbError as error:
                self.distrust(error)
        for part in reversed(self.sealed):
            found = part.lookup.newest(key, intervals)
            if found is not None:
                return found
        return None

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions, oldest first."""
        mapped = self.mapped
        if mapped is not None:
            try:
                return mapped.versions(key)
            except MldbError as error:
                self.distrust(error)
        return [entry for part in self.sealed for entry in part.lookup.versions(key)]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix in order: those of the segments."""
        from mldb.log.index.listing import all_keys

        return all_keys(self.sealed, prefix)

    def keys_from(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield those of them that do not stand before *start*; read at the call."""
        mapped = self.mapped
        if mapped is not None:
            try:
                return iter(list(mapped.keys_from(prefix, start)))
            except MldbError as error:
                self.distrust(error)
        return (key for key in self.keys(prefix) if key >= start)

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit with this LSN."""
        mapped = self.mapped
        if mapped is not None:
            try:
                return mapped.commit_at(lsn)
            except MldbError as error:
                self.distrust(error)
        for part in self.sealed:
            if part.first_lsn <= lsn <= part.last_lsn:
                return part.lookup.commit_at(lsn)
        return None

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit in the range with field <= limit."""
        mapped = self.mapped
        if mapped is not None:
            try:
                return mapped.last_commit(low, high, field, limit)
            except MldbError as error:
                self.distrust(error)
        for part in reversed(self.sealed):
            if part.last_lsn >= low and part.first_lsn <= high:
                row = part.lookup.last_commit(low, high, field, limit)
                if row is not None:
                    return row
        return None

    def with_digest(self, digest: bytes, most: int) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, version) of versions whose bytes have this digest; none of a lost part.

        At most *most* of them: a value may have been stored any number of times. Segments without a
        part are not asked: this is for who can do without the answer.
        """
        mapped = self.mapped
        if mapped is None:
            return
        try:
            yield from list(islice(mapped.with_digest(digest), most))
        except MldbError as error:
            self.distrust(error)

    def entry_count(self) -> int:
        """How many versions it holds."""
        return self.info.versions
