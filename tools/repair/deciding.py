"""What of each commit can be had, and what is lost with what else.

A version is had when its bytes are whole and, where it has them or some of them from another
version, that one is had. In the place of a version that is lost, and whose name is known, its name
ends: who reads it from there on is told that it does not exist, and never gets the value before. A
lake of which one change is lost ends there for good, since its rows are the sum of its changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from mldb import keys
from mldb.errors import MldbError
from mldb.history.kinds import TENSOR_DELETED, TENSOR_STORED
from mldb.log import format as fmt
from mldb.log.blocks import payload_checks
from mldb.log.checksum import digest128
from mldb.log.frame import DamagedFrame, Draft, Record, decode_entries, unpack
from mldb.log.salvage import FoundCommit, FoundFile, FoundFrame, body_of
from mldb.tools.repair.report import Lost
from mldb.tools.replay.chosen import LeftEntry, assembled

SPACES: Final = {
    keys.TENSORS: "tensor",
    keys.METADATA: "metadata",
    keys.RELATIONS: "relationship",
    keys.CHECKPOINTS: "checkpoint",
    keys.TAGS: "tag",
    keys.PINS: "pin",
    keys.RETENTION: "retention",
    keys.LAKES: "lake",
    keys.SPLATS: "rows of a lake",
    keys.METRICS: "metric",
    keys.POLICIES: "policy of a lake",
}
_HIDDEN: Final = frozenset({keys.REVERSE})  # told with what it belongs to
_LAKE_SPACES: Final = frozenset({keys.LAKES, keys.SPLATS})


class Had(NamedTuple):
    """A version that is had: whether it has bytes that others may refer to, and their digest."""

    owns: bool
    digest: bytes


class Deciding:
    """Turns what was found of each commit into records. One thread, commits in log order."""

    def __init__(self) -> None:
        self.lost: list[Lost] = []
        self.versions = 0
        self._had: dict[tuple[bytes, int], Had] = {}
        self._ended_lakes: set[bytes] = set()

    def records(self, file: FoundFile, commit: FoundCommit) -> list[Record]:
        """Return what can be had of one commit, and note what cannot."""
        lost: dict[bytes, str] = {}
        frames = [
            (frame, record)
            for frame in sorted(commit.frames, key=lambda item: item.frame.header.lsn)
            if (record := self._read(file, commit, frame)) is not None
        ]
        for owns in (True, False):  # a reference may stand before its owner
            for frame, record in frames:
                for draft in record.named_drafts():
                    if (draft.encoding not in fmt.BUILT_ENCODINGS) == owns:
                        why = self._fault(frame, record, draft)
                        if why:
                            lost[draft.key] = why
                        else:
                            self._take(draft, commit.lsn)
            if owns:
                self._lose_together(frames, lost)
        read = {draft.key for _, record in frames for draft in record.named_drafts()}
        for key in (commit.stored or {}).keys() - read:
            lost[key] = "its frame is damaged"
        self._end_lakes(lost, read)
        self._note(file, commit, lost, frames)
        stones = self._stones(lost, commit.lsn)
        return list(self._left(frames, lost, stones))

    # --- reading ----------------------------------------------------------------------------------

    def _read(self, file: FoundFile, commit: FoundCommit, found: FoundFrame) -> Record | None:
        """The record of a frame whose body is whole; its payload may be damaged."""
        frame, body = found.frame, body_of(file.data, found.frame)
        if body is None:
            return None
        header = frame.header
        try:
            is_keyed = header.flags & fmt.FLAG_KEYED
            drafts, extra = decode_entries(body, frame) if is_keyed else ([], unpack(body))
        except (DamagedFrame, ValueError, MldbError):
            return None
        if found.bad and not drafts:
            return None  # nobody knows which of its bytes mean what
        data = file.data[frame.payload_offset : frame.payload_offset + header.payload_length]
        checks = None if found.bad else payload_checks(file.data, frame)
        return Record(
            *(header.kind, drafts, (data,) if len(data) else (), len(data), extra),
            *(header.body_version, header.align_log2, header.block_log2, checks),
        )

    def _fault(self, frame: FoundFrame, record: Record, draft: Draft) -> str:
        """Why a version cannot be had, "" when it can."""
        if not frame.has(draft.offset, draft.length) and not _is_intact(record, draft):
            return "its bytes are damaged"
        if draft.encoding not in fmt.BUILT_ENCODINGS:
            return ""
        base = self._had.get((draft.owner or draft.key, draft.base))
        if base is None or not base.owns:
            owner = keys.shown(draft.owner or draft.key)
            return f"it has its bytes from {owner!r} of commit {draft.base}, which is lost"
        if draft.encoding == fmt.ENCODING_REFERENCE and base.digest != draft.digest:
            return "what it has its bytes from has other ones"
        return ""

    def _take(self, draft: Draft, lsn: int) -> None:
        is_stone = bool(draft.flags & fmt.ENTRY_TOMBSTONE)
        owns = not is_stone and draft.encoding != fmt.ENCODING_REFERENCE
        self._had[draft.key, lsn] = Had(owns, draft.digest)

    @staticmethod
    def _lose_together(frames: list[tuple[FoundFrame, Record]], lost: dict[bytes, str]) -> None:
        """Only of a record of tensors a part is of use; of any other all is lost with one entry."""
        for _, record in frames:
            own = [draft.key for draft in record.named_drafts()]
            if record.kind != TENSOR_STORED and any(key in lost for key in own):
                for key in own:
                    lost.setdefault(key, "another part of its record is damaged")

    def _end_lakes(self, lost: dict[bytes, str], read: set[bytes]) -> None:
        """A lake with a change that is lost, now or before, is lost from here on."""
        for key in lost:
            if key[:1] == keys.SPLATS:
                self._ended_lakes.add(key[1:-9])
            elif key[:1] == keys.LAKES:
                self._ended_lakes.add(key[1:])
        for key in read:
            lake = key[1:-9] if key[:1] == keys.SPLATS else key[1:]
            if key[:1] in _LAKE_SPACES and lake in self._ended_lakes:
                lost.setdefault(key, "an earlier change of this lake is lost")

    # --- what is lost -----------------------------------------------------------------------------

    def _note(
        self,
        file: FoundFile,
        commit: FoundCommit,
        lost: dict[bytes, str],
        frames: list[tuple[FoundFrame, Record]],
    ) -> None:
        epoch = None if commit.row is None else commit.row.epoch
        places = {
            draft.key: frame.frame.offset
            for frame, record in frames
            for draft in record.named_drafts()
        }
        for key, why in sorted(lost.items()):
            if key[:1] in _HIDDEN or key == keys.LATEST_CHECKPOINT:
                continue
            entry = (commit.stored or {}).get(key)
            offset = places.get(key, 0 if entry is None else entry.frame)
            what = SPACES.get(key[:1], f"key of space {key[0]}")
            name = str(keys.pinned_by(key)) if key[:1] == keys.PINS else keys.shown(key)
            self.lost.append(Lost(what, name, epoch, commit.lsn, file.name, offset, why))
        self._note_nameless(file, commit, epoch, frames)

    def _note_nameless(
        self,
        file: FoundFile,
        commit: FoundCommit,
        epoch: int | None,
        frames: list[tuple[FoundFrame, Record]],
    ) -> None:
        """Note frames that are lost and that no index names: what they held, or that they were."""
        at = next((f.frame.offset for f in commit.frames if not f.is_readable), 0)
        count, stored = commit.count, commit.stored
        if stored is None:
            missing = 0 if count is None else count - len(frames)
            what, why = "unknown", "are damaged, and nothing else names them"
        elif count is not None:
            keyed = len({entry.frame for entry in stored.values()})
            missing = count - keyed - sum(not record.drafts for _, record in frames)
            what, why = "event", "without names are damaged: no tensor is lost with them"
        elif file.identity.kind == fmt.FILE_COMPACTED and commit.row is not None:
            missing = sum(
                item.offset < commit.row.end and commit.row.start < item.offset + item.length
                for item in file.damage
                if item.file == file.name
            )
            what, why = "event", "without names are damaged: no tensor is lost with them"
        else:
            return
        if missing > 0:
            why = f"{missing} frames of this commit {why}"
            self.lost.append(Lost(what, "", epoch, commit.lsn, file.name, at, why))

    def _stones(self, lost: dict[bytes, str], lsn: int) -> list[Draft]:
        """The ends of what is lost; with a change of a lake that of the lake."""
        ends = set(lost)
        for key in lost:
            if key[:1] == keys.SPLATS:
                ends.add(keys.LAKES + key[1:-9])
        for key in ends:
            self._had[key, lsn] = Had(False, b"")
        return [
            Draft(key, fmt.ENTRY_TOMBSTONE, fmt.ENCODING_RAW, 0, 0, b"", 0, b"")
            for key in sorted(ends)
        ]

    def _left(
        self,
        frames: list[tuple[FoundFrame, Record]],
        lost: dict[bytes, str],
        stones: list[Draft],
    ) -> Iterator[Record]:
        """The records of what is had, and the ends.

        A frame that lost something tells its ends itself: a batch has no room for one more.
        """
        ends = {draft.key for draft in stones}
        told = False
        for _, record in frames:
            drafts = record.named_drafts()
            left = [draft for draft in drafts if draft.key not in ends]
            if len(left) == len(drafts):
                self.versions += len(left)
                yield record
                continue
            more = [] if told else stones
            told = True
            self.versions += len(left)
            if not left:
                if more:
                    yield Record(TENSOR_DELETED, more)
                continue
            yield assembled(record, [*map(LeftEntry, left), *map(LeftEntry, more)])
        if stones and not told:
            yield Record(TENSOR_DELETED, stones)


def _is_intact(record: Record, draft: Draft) -> bool:
    """Whether the bytes of a version are whole though another part of their block is not."""
    if draft.encoding != fmt.ENCODING_RAW or len(draft.digest) != fmt.DIGEST_SIZE:
        return False
    data = memoryview(record.payload[0])[draft.offset : draft.offset + draft.length]
    return len(data) == draft.length and digest128(data) == draft.digest
