"""Replay of some names: what stays of a frame, and where its bytes come from then.

Names of tensors and of lakes are chosen. With a tensor goes its metadata. A relationship stays
unless one of its ends is a tensor that is left out: ends that are no tensors (layers) are nobody's.
A checkpoint stays where every tensor of its state does, since half a state cannot be loaded; its
tensors that were chosen stay all the same. Tags, pins, retention, rewinds, metrics and whatever
later kinds there are belong to the run and stay.

A version that shares the bytes of another name, or is told as the difference to it, gets bytes of
its own where that name is left out; the next one with the same bytes refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from mldb import keys
from mldb.history.kinds import CHECKPOINT_TAKEN, TENSOR_PATCHED, TENSOR_STORED
from mldb.log import format as fmt
from mldb.log.batches import StoredBatch
from mldb.log.checksum import digest128
from mldb.log.frame import Draft, Record
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import Entry
from mldb.state.parts import tensor_names
from mldb.state.skeleton import parse_skeleton
from mldb.tensors.codec import unpack_descriptor
from mldb.tools.replay.records import records_as_they_are
from mldb.tools.replay.source import ReplaySource

ChosenName = Callable[[str], bool]
_NAMED: Final = frozenset({keys.TENSORS, keys.METADATA, keys.LAKES, keys.POLICIES})


class LeftEntry(NamedTuple):
    """An entry that stays. ``data``: its bytes where they are new, None where they are as stored.

    The offset of the draft is that in the old payload.
    """

    draft: Draft
    data: Buffer | None = None


class NameChoice:
    """Turns the records of each commit into those that stay. One thread, commits in log order."""

    def __init__(self, source: ReplaySource, chosen: ChosenName) -> None:
        self.source = source
        self.checkpoints_left_out: list[str] = []
        self._chosen = chosen
        self._known: dict[str, bool] = {}
        self._owners: dict[bytes, tuple[bytes, int]] = {}  # digest -> a version with these bytes

    def takes(self, name: str) -> bool:
        """Whether a name is chosen; asked once each."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = bool(self._chosen(name))
        return known

    def note_stored(self, entries: Iterable[tuple[bytes, Entry]]) -> None:
        """Learn what an earlier run has stored in the target already."""
        for key, entry in entries:
            if key[:1] == keys.TENSORS:
                self._note_owner(entry.digest, key, entry.commit_lsn, entry.encoding)

    def records(self, batch: StoredBatch) -> list[Record]:
        """Return what stays of a commit, in its order. Raises CorruptError."""
        found = []
        for record in records_as_they_are(self.source, batch):
            left = self.record(record, batch)
            if left is not None:
                found.append(left)
        return found

    def record(self, record: Record, batch: StoredBatch) -> Record | None:
        """Return what stays of one record, None for nothing."""
        drafts = record.named_drafts()
        if not drafts:
            return record
        left = [draft for draft in drafts if self._stays(draft)]
        if record.kind == CHECKPOINT_TAKEN and left and not self._is_whole_state(record, left[0]):
            return None
        parts = [self._with_bytes(draft, batch.row.lsn) for draft in left]
        for part in parts:
            draft = part.draft
            if draft.key[:1] == keys.TENSORS:
                self._note_owner(draft.digest, draft.key, batch.row.lsn, draft.encoding)
        return assembled(record, parts) if parts else None

    # --- what stays -------------------------------------------------------------------------------

    def _stays(self, draft: Draft) -> bool:
        space = draft.key[:1]
        if space in _NAMED:
            return self.takes(keys.name_of(draft.key))
        if space == keys.SPLATS:
            return self.takes(keys.lake_of(draft.key))
        if space in (keys.RELATIONS, keys.REVERSE):
            first, _, second = keys.split_relation(draft.key)
            return self._is_end(first) and self._is_end(second)
        return True

    def _is_end(self, name: str) -> bool:
        return self.takes(name) or not self.is_tensor(name)

    def is_tensor(self, name: str) -> bool:
        """Whether any commit of any lineage stored a tensor of this name."""
        high = self.source.view.commit.lsn
        found = self.source.view.newest(keys.TENSORS + name.encode(), ((1, high),))
        return found is not None

    def _is_whole_state(self, record: Record, draft: Draft) -> bool:
        """Whether every tensor that a checkpoint names is taken; otherwise notes its name."""
        if all(map(self.takes, names_in_state(record))):
            return True
        self.checkpoints_left_out.append(keys.name_of(draft.key))
        return False

    # --- bytes ------------------------------------------------------------------------------------

    def _with_bytes(self, draft: Draft, lsn: int) -> LeftEntry:
        if draft.encoding not in fmt.BUILT_ENCODINGS or self._keeps_base(draft):
            return LeftEntry(draft)
        nbytes = unpack_descriptor(draft.attr).nbytes
        entry = self.source.view.version_at(draft.key, lsn)
        assert entry is not None  # it was just read from there
        return self.own(draft, self.source.decoded(draft.key, entry, nbytes))

    def _keeps_base(self, draft: Draft) -> bool:
        """Whether the version that has the bytes of this one goes over as it is."""
        return self.takes(keys.name_of(draft.owner or draft.key))

    def own(self, draft: Draft, data: Buffer) -> LeftEntry:
        """Return an entry with these decoded bytes: stored, or referring to some that are.

        Others may build on a delta or a patch, and nothing builds on a reference.
        """
        digest = digest128(data)
        is_base = draft.encoding in (fmt.ENCODING_DELTA, fmt.ENCODING_PATCH)
        owner = None if is_base else self._owners.get(digest)
        plain = draft._replace(flags=0, digest=digest, base=0, owner=b"", offset=0, length=0)
        if owner is None:
            return LeftEntry(plain._replace(encoding=fmt.ENCODING_RAW, length=len(data)), data)
        key, lsn = owner
        own = b"" if key == draft.key else key
        return LeftEntry(plain._replace(encoding=fmt.ENCODING_REFERENCE, base=lsn, owner=own))

    def _note_owner(self, digest: bytes, key: bytes, lsn: int, encoding: int) -> None:
        if digest and encoding not in fmt.BUILT_ENCODINGS:
            self._owners.setdefault(digest, (key, lsn))


# --- records --------------------------------------------------------------------------------------


def names_in_state(record: Record) -> list[str]:
    """Every name of a tensor in the skeleton of a checkpoint. Raises CorruptError."""
    skeleton = parse_skeleton(b"".join(map(bytes, record.payload)))
    return [*tensor_names(skeleton.root), *skeleton.aliases]


def assembled(record: Record, parts: Sequence[LeftEntry]) -> Record:
    """Return the record with these entries in the place of those that it has.

    Where the payload stays whole it is taken over with its checksums.
    """
    length = record.payload_length
    is_new = any(part.data is not None for part in parts)
    kind, extra = record.kind, record.extra
    if kind == TENSOR_PATCHED and parts[0].draft.encoding != fmt.ENCODING_PATCH:
        kind, extra = TENSOR_STORED, None
    drafts = [part.draft for part in parts]
    is_whole = _has_all(drafts, length) or _places(drafts) == _places(record.named_drafts())
    if not is_new and is_whole:
        return Record(
            *(kind, drafts, record.payload, length, extra, record.body_version),
            *(record.align_log2, record.block_log2, record.checks),
        )
    return _packed(record, kind, extra, parts)


def _has_all(drafts: Sequence[Draft], length: int) -> bool:
    return not length or any(not draft.offset and draft.length == length for draft in drafts)


def _places(drafts: Sequence[Draft]) -> set[tuple[int, int]]:
    """Where the entries have bytes in the payload."""
    return {(draft.offset, draft.length) for draft in drafts if draft.length}


def _packed(record: Record, kind: int, extra: object, parts: Sequence[LeftEntry]) -> Record:
    """The record with a payload of only what stays, each part at a multiple of 64 bytes."""
    whole = memoryview(record.payload[0]) if record.payload else memoryview(b"")
    payload: list[Buffer] = []
    drafts: list[Draft] = []
    places: dict[object, int] = {}
    end = 0
    for draft, new in parts:
        if not draft.length:
            drafts.append(draft._replace(offset=0))
            continue
        place: object = (draft.offset, draft.length) if new is None else draft.digest
        if place not in places:
            data = whole[draft.offset : draft.offset + draft.length] if new is None else new
            start = fmt.align_up(end, fmt.PAYLOAD_ALIGN_LOG2)
            payload += [bytes(start - end), data] if start > end else [data]
            places[place], end = start, start + draft.length
        drafts.append(draft._replace(offset=places[place]))
    is_one = len(places) == 1
    align = fmt.payload_align_log2(end) if is_one else fmt.PAYLOAD_ALIGN_LOG2
    return Record(kind, drafts, payload, end, extra, record.body_version, align, record.block_log2)
