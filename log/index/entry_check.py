"""The bounds of index entries: of a few before they are written, of columns read from disk."""

from __future__ import annotations

from operator import add
from typing import Any, Final

from mldb.log import format as fmt

_KEY_MAX: Final = fmt.KEY_BYTES_MAX
_ATTR_MAX: Final = fmt.ATTR_BYTES_MAX
assert fmt.ENTRY_FLAGS_MAX == fmt.ENCODING_MAX == (1 << 8) - 1
assert fmt.LSN_MAX == (1 << 63) - 1

_BYTES_COLUMNS: Final = (0, 5, 7, 8)  # key, digest, attr, owner
_DIGEST_SIZES: Final = frozenset({0, fmt.DIGEST_SIZE})
_INT_COLUMNS: Final = (1, 2, 3, 4, 6)  # flags, encoding, offset, length, base


def are_sound(columns: tuple[tuple[Any, ...], ...], payload_length: int) -> bool:
    """Check all entries of a frame column by column; per entry it would cost most of a recovery."""
    if not columns[0]:
        return True
    if any(set(map(type, columns[index])) != {bytes} for index in _BYTES_COLUMNS):
        return False
    if any(set(map(type, columns[index])) != {int} for index in _INT_COLUMNS):
        return False
    return are_in_bounds(columns, payload_length)


def are_in_bounds(columns: tuple[tuple[Any, ...], ...], payload_length: int) -> bool:
    """Check entries, at least one, whose types are right."""
    keys, flags, encodings, offsets, lengths, digests, bases, attrs, owners = columns
    sizes = list(map(len, keys))
    return (
        min(sizes) > 0
        and max(sizes) <= _KEY_MAX
        and max(map(len, attrs)) <= _ATTR_MAX
        and max(map(len, owners)) <= _KEY_MAX
        and set(map(len, digests)) <= _DIGEST_SIZES
        and min(flags) >= 0
        and max(flags) <= fmt.ENTRY_FLAGS_MAX
        and min(encodings) >= 0
        and max(encodings) <= fmt.ENCODING_MAX
        and min(offsets) >= 0
        and min(lengths) >= 0
        and min(bases) >= 0
        and max(bases) <= fmt.LSN_MAX
        and max(map(add, offsets, lengths)) <= payload_length
    )


def is_sound(entry: tuple[Any, ...], payload_length: int) -> bool:
    """Check one entry as :func:`are_sound` checks many; for the few of a small commit.

    A shift leaves 0 of a number within its bits, and -1 of a negative one.
    """
    key, flags, encoding, offset, length, digest, base, attr, owner = entry
    return (
        0 < len(key) <= _KEY_MAX
        and len(attr) <= _ATTR_MAX
        and len(owner) <= _KEY_MAX
        and len(digest) in _DIGEST_SIZES
        and not (flags | encoding) >> 8
        and offset >= 0 <= length <= payload_length - offset
        and not base >> 63
    )
