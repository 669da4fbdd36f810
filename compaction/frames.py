"""One frame of a segment on its way into a compacted one: what stays of it, and in which form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from mldb.compaction.folds import Anew
from mldb.compaction.table import VersionTable
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.blocks import payload_checks
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import (
    DamagedFrame,
    Draft,
    Frame,
    decode_entries,
    make_entries,
    pack,
)
from mldb.log.fs.protocol import Buffer
from mldb.log.segment import Segment

KindOf: TypeAlias = "Callable[[int, Sequence[bytes]], int]"
"""From a frame's kind and the keys that stay in it to the kind that says what is left."""


class StoredForm(NamedTuple):
    """How a version is stored; ``base`` and ``owner`` as in FORMAT.md section 4."""

    encoding: int
    data: bytes
    base: int = 0
    owner: bytes = b""


Recode: TypeAlias = "Callable[[VersionTable, Anew], StoredForm | None]"
"""Returns another form of a version; None when none pays, which is never so of a fold."""


@dataclass(slots=True)
class FrameCopy:
    """A frame as it will be written; ``length`` is that of the payload."""

    header: fmt.FrameHeader
    kind: int
    body: bytes
    checks: bytes
    payload: list[Buffer]
    length: int
    drafts: list[Draft] = field(default_factory=list)
    recoded: int = 0
    recoded_bytes: int = 0
    align_log2: int = -1

    def __post_init__(self) -> None:
        """The alignment is that of the frame it comes from, where none is given."""
        if self.align_log2 < 0:
            self.align_log2 = self.header.align_log2


def copy_frame(
    segment: Segment,
    offset: int,
    table: VersionTable,
    rows: Sequence[int],
    anew: Mapping[int, Anew],
    kind_of: KindOf,
    recode: Recode,
) -> FrameCopy:
    """Return what is left of the frame at *offset* when only *rows* of it stay.

    Where its payload stays whole it is copied with its checksums. Raises CorruptError.
    """
    frame, body = segment.frame(offset)
    header = frame.header
    try:
        drafts, extra = decode_entries(body, frame)
    except DamagedFrame as error:
        raise CorruptError(
            f"the frame is damaged: {error}", file=segment.name, offset=offset
        ) from None
    by_key = {table.key_of(row): row for row in rows}
    left = [draft for draft in drafts if draft.key in by_key]
    if len(left) != len(rows):
        raise CorruptError(
            f"the footer lists {len(rows)} versions here, the frame has {len(left)} of them",
            file=segment.name,
            offset=offset,
        )
    forms = _new_forms(left, by_key, table, anew, recode)
    kind = (
        kind_of(header.kind, [draft.key for draft in left])
        if len(left) < len(drafts)
        else header.kind
    )
    if not any(forms.values()) and _is_whole(left, header.payload_length):
        if forms:
            left = [_settled(draft, forms) for draft in left]
        if len(left) < len(drafts) or forms:
            body = pack((left, extra))
        checks, payload = _stored_payload(segment, frame)
        return FrameCopy(header, kind, body, checks, payload, header.payload_length, left)
    return _rebuilt(segment, frame, kind, left, extra, forms)


_Place: TypeAlias = tuple[int, int]
_Forms: TypeAlias = dict[_Place, StoredForm | None]


def _new_forms(
    left: Sequence[Draft],
    by_key: dict[bytes, int],
    table: VersionTable,
    anew: Mapping[int, Anew],
    recode: Recode,
) -> _Forms:
    """The new forms of what is to have one, by place in the payload; None where none pays."""
    forms: _Forms = {}
    for draft in left:
        wanted = anew.get(by_key[draft.key])
        if wanted is not None:
            forms[draft.offset, draft.length] = recode(table, wanted)
    return forms


def _is_whole(left: Sequence[Draft], length: int) -> bool:
    """Whether some version that stays has all of the payload."""
    return not length or any(not draft.offset and draft.length == length for draft in left)


def _settled(draft: Draft, forms: _Forms) -> Draft:
    """The entry, marked when another form of it was tried. A patch may be folded again."""
    if draft.encoding != fmt.ENCODING_PATCH and (draft.offset, draft.length) in forms:
        return draft._replace(flags=draft.flags | fmt.ENTRY_SETTLED)
    return draft


def _stored_payload(segment: Segment, frame: Frame) -> tuple[bytes, list[Buffer]]:
    """The block checksums and the payload of a frame, as they are."""
    header = frame.header
    if not header.payload_length:
        return b"", []
    start, stop = frame.payload_offset, frame.payload_offset + header.payload_length
    data = segment.view(stop)
    return payload_checks(data, frame), [data[start:stop]]


def _rebuilt(
    segment: Segment,
    frame: Frame,
    kind: int,
    left: Sequence[Draft],
    extra: object,
    forms: _Forms,
) -> FrameCopy:
    """The frame with a payload of only what stays, each part at a multiple of its alignment."""
    header = frame.header
    drafts: list[Draft] = []
    payload: list[Buffer] = []
    places: dict[_Place, int] = {}
    length = recoded = recoded_bytes = 0
    for draft in left:
        place = draft.offset, draft.length
        form = forms.get(place)
        if draft.length and place not in places:
            start = fmt.align_up(length, fmt.PAYLOAD_ALIGN_LOG2)
            part = form.data if form else _verified(segment, frame, draft)
            payload += [bytes(start - length), part] if start > length else [part]
            places[place], length = start, start + len(part)
            if form:
                recoded, recoded_bytes = recoded + 1, recoded_bytes + draft.length
        moved = _settled(draft, forms)._replace(offset=places.get(place, 0))
        if form:
            moved = moved._replace(
                encoding=form.encoding, length=len(form.data), base=form.base, owner=form.owner
            )
            if moved.owner == moved.key:
                moved = moved._replace(owner=b"")
        drafts.append(moved)
    checks = checks_and_digest(payload, header.block_log2)[0] if length else b""
    align = fmt.payload_align_log2(length) if len(places) == 1 else fmt.PAYLOAD_ALIGN_LOG2
    return FrameCopy(
        header,
        kind,
        pack((drafts, extra)),
        checks,
        payload,
        length,
        drafts,
        recoded,
        recoded_bytes,
        align,
    )


def _verified(segment: Segment, frame: Frame, draft: Draft) -> memoryview:
    """The stored bytes of one version, checked: their blocks get new checksums."""
    ((key, entry),) = make_entries(
        [draft], frame.header.commit_lsn, segment.id, frame.offset, frame.payload_offset
    )
    return segment.payload(entry, 0, entry.length, "first", key.decode("utf-8", "replace"))
