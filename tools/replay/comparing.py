"""The proof that a replay shows what it should, at every commit that was kept.

What a commit shows is a fold: the newest version of each key along its lineage. So it is enough to
compare, commit by commit, what each adds: the commits with their parents, each entry with what it
says and the digest of its bytes, and what is not keyed. Of every version that has bytes of its own
these are decoded from the target and hashed, so that the digest is more than a word; where none is
stored, as with patches, both sides are decoded. Both stores are read once, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from mldb import keys
from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.batches import StoredBatch
from mldb.log.checksum import digest128
from mldb.log.frame import Draft, Record, hash_record
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow
from mldb.tensors.codec import unpack_descriptor
from mldb.tools.replay.changed import TensorChange, Transform
from mldb.tools.replay.chosen import NameChoice
from mldb.tools.replay.records import records_as_they_are
from mldb.tools.replay.report import Comparison
from mldb.tools.replay.source import ReplaySource
from mldb.tools.replay.staying import Staying

DIFFERENCES_MAX: Final = 100
"""More are not listed: a store that differs in so many places differs."""

_Said = dict[bytes, tuple[int, bytes, bytes, int]]
"""What a commit says of each key: whether it ends, attr, digest, length of what is no tensor."""


def compare_stores(
    source: FileSystem,
    target: FileSystem,
    until: int,
    chosen: Callable[[str], bool] | None = None,
    transform: Transform | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare *target* with what a replay of *source* up to commit *until* has to be.

    Raises what reading the source raises; what cannot be read of the target is a difference.
    """
    with ReplaySource(source) as one, ReplaySource(target) as two:
        work = _Comparing(one, two, until, _choice(one, chosen, transform))
        try:
            work.run(progress)
        except _EnoughError:
            pass
        except MldbError as error:
            if not _is_of(error, target):
                raise
            work.differences.append(f"the target cannot be read: {error}")
        return Comparison(work.commits, work.versions, tuple(work.differences))


def _is_of(error: MldbError, fs: FileSystem) -> bool:
    """Whether damage is that of a file of *fs*: the other store may have files of the same name."""
    file = getattr(error, "file", None)
    return bool(file) and fs.exists(str(file))


def _choice(
    source: ReplaySource,
    chosen: Callable[[str], bool] | None,
    transform: Transform | None,
) -> NameChoice | None:
    if transform is not None:
        return TensorChange(source, chosen or (lambda name: True), transform, 0)
    return None if chosen is None else NameChoice(source, chosen)


class _EnoughError(Exception):
    """So many differences were found that no more are looked for."""


class _Comparing:
    """One comparison. One thread."""

    def __init__(
        self, source: ReplaySource, target: ReplaySource, until: int, choice: NameChoice | None
    ) -> None:
        self.source = source
        self.target = target
        self.until = until
        self.choice = choice
        self.commits = self.versions = 0
        self.differences: list[str] = []

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Go through both stores. Raises _EnoughError."""
        self._same("retention left", self.source.kept(self.until), self.target.kept(self.until))
        found = self.target.batches(1, fmt.LSN_MAX)
        last = 0
        jumps = dict(self.source.jumps(1, self.until))
        for row, records in self._expected():
            other = next(found, None)
            if other is None:
                self._differ(f"commit {row.lsn} is not in the target")
                return
            parent = row.parent if self.choice is None else jumps.get(row.lsn, last)
            wanted = row_without_place(row._replace(parent=parent))
            self._same(f"commit {row.lsn}", wanted, row_without_place(other.row))
            self._compare(row, records, other)
            last = row.lsn
            self.commits += 1
            progress(row.lsn, self.until)
        if (more := next(found, None)) is not None:
            self._differ(f"commit {more.row.lsn} of the target is not in the source")

    def _expected(self) -> Iterator[tuple[CommitRow, list[Record]]]:
        source, choice = self.source, self.choice
        staying, last = Staying(source, self.until), 0
        for batch in source.batches(1, self.until):
            row = batch.row
            if choice is None:
                yield row, records_as_they_are(source, batch)
                continue
            records = choice.records(batch)
            if records or staying.keeps(row.lsn, last):
                yield row, records
                last = row.lsn

    def _compare(self, row: CommitRow, records: list[Record], other: StoredBatch) -> None:
        """Compare what one commit says."""
        theirs = records_as_they_are(self.target, other)
        for record in records:
            hash_record(record)
        self._same(f"events of commit {row.lsn}", _unkeyed(records), _unkeyed(theirs))
        one, two = self._said(self.source, records, row), self._said(self.target, theirs, row)
        for key in one.keys() | two.keys():
            what = f"{keys.shown(key)!r:.80} (space {key[0]}) at commit {row.lsn}"
            self._same(what, one.get(key), two.get(key))

    def _said(self, store: ReplaySource, records: list[Record], row: CommitRow) -> _Said:
        found: _Said = {}
        is_target = store is self.target
        for record in records:
            for draft in record.named_drafts():
                digest = draft.digest
                if draft.key[:1] == keys.TENSORS and not draft.flags & fmt.ENTRY_TOMBSTONE:
                    digest = self._digest_of(store, draft, row.lsn, decoded=is_target)
                elif draft.length and (is_target or not digest):
                    whole = memoryview(record.payload[0])
                    digest = digest128(whole[draft.offset : draft.offset + draft.length])
                stone = draft.flags & fmt.ENTRY_TOMBSTONE
                size = draft.length if draft.key[:1] != keys.TENSORS else 0
                found[draft.key] = (stone, draft.attr, digest, size)
        return found

    def _digest_of(self, store: ReplaySource, draft: Draft, lsn: int, *, decoded: bool) -> bytes:
        """The digest of a tensor: as stored, or of its *decoded* bytes.

        A reference has those of its owner, which were decoded where it stands.
        """
        self.versions += decoded
        if draft.digest and (not decoded or draft.encoding == fmt.ENCODING_REFERENCE):
            if decoded:
                self._check_owner(store, draft)
            return draft.digest
        entry = store.view.version_at(draft.key, lsn)
        if entry is None:
            return b"missing"
        data = store.decoded(draft.key, entry, unpack_descriptor(draft.attr).nbytes)
        return digest128(data)

    def _check_owner(self, store: ReplaySource, draft: Draft) -> None:
        owner = store.view.version_at(draft.owner or draft.key, draft.base)
        if owner is None or owner.digest != draft.digest:
            self._differ(f"{keys.shown(draft.key)!r:.80}: the version that has its bytes differs")

    # --- differences ------------------------------------------------------------------------------

    def _same(self, what: str, wanted: object, found: object) -> None:
        if wanted != found:
            self._differ(f"{what}: {_short(wanted)} in the source, {_short(found)} in the target")

    def _differ(self, text: str) -> None:
        self.differences.append(text)
        if len(self.differences) >= DIFFERENCES_MAX:
            raise _EnoughError


def _unkeyed(records: list[Record]) -> list[Any]:
    return [
        (record.kind, record.extra, b"".join(map(bytes, record.payload)))
        for record in records
        if not record.drafts
    ]


def row_without_place(row: CommitRow) -> tuple[object, ...]:
    """What a commit is, wherever it lies."""
    return (row.lsn, row.parent, row.epoch, row.time, row.clock, row.id)


def _short(value: object) -> str:
    return f"{value!r:.120}"
