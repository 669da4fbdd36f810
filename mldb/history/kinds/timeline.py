"""Names for commits and moves of the head: TagSet, TagDeleted, PinSet, PinCleared, Rewound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mldb import keys
from mldb.errors import CorruptError
from mldb.history.kinds import PIN_CLEARED, PIN_SET, REWOUND, TAG_DELETED, TAG_SET
from mldb.history.kinds.changes import KeyChange
from mldb.log import format as fmt
from mldb.log.frame import Draft, Record, pack, unpack
from mldb.log.index.address import Lsn

# --- tags -----------------------------------------------------------------------------------------


def tag_set(name: bytes, target: int) -> KeyChange:
    """Tag *name* points at commit *target*."""
    return KeyChange(TAG_SET, keys.TAGS + name, pack([int(target)]))


def unpack_tag(key: bytes, attr: bytes) -> Lsn:
    """Return the commit that the tag at *key* points at. Raises CorruptError."""
    try:
        target = unpack(attr)[0]
    except (ValueError, TypeError, LookupError):
        target = None
    if type(target) is not int or not 0 <= target <= fmt.LSN_MAX:
        name = keys.shown(key)
        raise CorruptError(f"the tag {name!r} points at no commit", key=name)
    return Lsn(target)


def read_tag_set(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name and target of each tag."""
    for draft in drafts:
        yield keys.name_of(draft.key), unpack_tag(draft.key, draft.attr)


def tag_deleted(name: bytes) -> KeyChange:
    """The end of a tag."""
    return KeyChange(TAG_DELETED, keys.TAGS + name, None)


def read_tag_deleted(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the name of each tag."""
    for draft in drafts:
        yield (keys.name_of(draft.key),)


# --- pins -----------------------------------------------------------------------------------------


def pin_set(target: int) -> KeyChange:
    """Commit *target* stays readable whatever retention says."""
    return KeyChange(PIN_SET, keys.pin_key(target), b"")


def pin_cleared(target: int) -> KeyChange:
    """Commit *target* is no longer pinned."""
    return KeyChange(PIN_CLEARED, keys.pin_key(target), None)


def read_pin(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the commit of each pin, set or cleared."""
    for draft in drafts:
        yield (Lsn(keys.pinned_by(draft.key)),)


# --- rewinding ------------------------------------------------------------------------------------


def rewound(target: int) -> Record:
    """The head state becomes the state at commit *target*."""
    return Record(REWOUND, [], extra=[int(target)])


def read_rewound(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the commit."""
    yield (Lsn(extra[0]),)
