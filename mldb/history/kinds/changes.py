"""Events without a payload: each sets keys to attrs, or ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from mldb.deferred import NamedTuple
from mldb.log import format as fmt
from mldb.log.frame import Draft, DraftFields, Record

ReadFields: TypeAlias = Callable[[list[Draft], Any], Iterator[tuple[Any, ...]]]
"""From the entries of a record, and what its kind adds to them, to the fields of its events."""

_BODY_BYTES: Final = 4 << 20  # well below the limit of a frame
_ENTRY_BYTES: Final = 32  # of an entry beside its key and attr, about


class KeyChange(NamedTuple):
    """What an event of this kind says of a key: its attr from here on, or None for its end."""

    kind: int
    key: bytes
    attr: bytes | None


def attr_draft(key: bytes, attr: bytes) -> Draft:
    """An entry that has an attr and no payload."""
    return Draft(key, 0, fmt.ENCODING_RAW, 0, 0, b"", 0, attr)


def records_of(changes: Iterable[KeyChange]) -> list[Record]:
    """Return the records that carry *changes*: as few as kinds and limits allow, in order.

    One record either sets keys or ends them.
    """
    grouped: dict[tuple[int, bool], list[Draft]] = {}
    for kind, key, attr in changes:
        if attr is None:
            draft = Draft(key, fmt.ENTRY_TOMBSTONE, fmt.ENCODING_RAW, 0, 0, b"", 0, b"")
        else:
            draft = attr_draft(key, attr)
        grouped.setdefault((kind, attr is None), []).append(draft)
    return [
        Record(kind, part) for (kind, _), drafts in grouped.items() for part in portions(drafts)
    ]


def portions(drafts: Iterable[DraftFields]) -> Iterator[list[DraftFields]]:
    """Yield the drafts in portions that one record holds."""
    part: list[DraftFields] = []
    size = 0
    for draft in drafts:
        size += len(draft[0]) + len(draft[7]) + len(draft[8]) + _ENTRY_BYTES
        part.append(draft)
        if size > _BODY_BYTES or len(part) == fmt.ENTRIES_MAX:
            yield part
            part, size = [], 0
    if part:
        yield part
