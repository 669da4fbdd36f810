"""The bounds of index entries read from disk, checked a column at a time."""

from __future__ import annotations

from operator import add
from typing import Any, Final

from mldb.log import format as fmt

_BYTES_COLUMNS: Final = (0, 5, 7)  # key, digest, attr
_INT_COLUMNS: Final = (1, 2, 3, 4, 6)  # flags, encoding, offset, length, base


def are_sound(columns: tuple[tuple[Any, ...], ...], payload_length: int) -> bool:
    """Check all entries of a frame column by column; per entry it would cost most of a recovery."""
    keys, flags, encodings, offsets, lengths, digests, bases, attrs = columns
    if not keys:
        return True
    if any(set(map(type, columns[index])) != {bytes} for index in _BYTES_COLUMNS):
        return False
    if any(set(map(type, columns[index])) != {int} for index in _INT_COLUMNS):
        return False
    return (
        min(map(len, keys)) > 0
        and max(map(len, keys)) <= fmt.KEY_BYTES_MAX
        and max(map(len, attrs)) <= fmt.ATTR_BYTES_MAX
        and set(map(len, digests)) <= {0, fmt.DIGEST_SIZE}
        and not any(flag & ~fmt.ENTRY_FLAGS_KNOWN for flag in set(flags))
        and min(encodings) >= 0
        and max(encodings) <= 255
        and min(offsets) >= 0
        and min(lengths) >= 0
        and min(bases) >= 0
        and max(bases) <= fmt.LSN_MAX
        and max(map(add, offsets, lengths)) <= payload_length
    )
