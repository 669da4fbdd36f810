"""Key spaces of the index: one byte, then the name.

The log sorts and finds keys; what they mean is here.

===========  ====  =================================  =====================================
space        byte  key after the byte                 attr
===========  ====  =================================  =====================================
tensors      1     name                               packed descriptor
metadata     2     name                               packed metadata; a version of its own
relations    3     source NUL kind NUL target         packed metadata
reverse      4     target NUL kind NUL source         the same, for queries by target
checkpoints  5     name; "" is the newest of any      msgpack of name, step, metrics, sizes
tags         6     name                               msgpack of the LSN
pins         7     LSN, big-endian                    empty
retention    8     ""                                 msgpack of what is kept
lakes        9     lake                               what the lake is, and its next row id
splats       10    lake NUL sequence, big-endian      one change of the rows of a lake
metrics      11    name; or NUL and several, NUL between  points, row by row
branches     12    reserved
patches      13    reserved
policies     14    lake                               msgpack of a consolidation policy
===========  ====  =================================  =====================================

Tags, pins and retention belong to the store and are not rewound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

TENSORS: Final = b"\x01"
METADATA: Final = b"\x02"
RELATIONS: Final = b"\x03"
REVERSE: Final = b"\x04"
CHECKPOINTS: Final = b"\x05"
TAGS: Final = b"\x06"
PINS: Final = b"\x07"
RETENTION: Final = b"\x08"
LAKES: Final = b"\x09"
SPLATS: Final = b"\x0a"
METRICS: Final = b"\x0b"
BRANCHES: Final = b"\x0c"
PATCHES: Final = b"\x0d"
POLICIES: Final = b"\x0e"

NUL: Final = b"\x00"
LATEST_CHECKPOINT: Final = CHECKPOINTS


def relation_key(source: bytes, kind: bytes, target: bytes) -> bytes:
    """The key of a relationship by its source."""
    return RELATIONS + source + NUL + kind + NUL + target


def reverse_key(source: bytes, kind: bytes, target: bytes) -> bytes:
    """The key of the same relationship by its target."""
    return REVERSE + target + NUL + kind + NUL + source


def split_relation(key: bytes) -> tuple[str, str, str]:
    """Return (source, kind, target) of a RELATIONS or REVERSE key."""
    first, kind, second = key[1:].split(NUL)
    if key[:1] == REVERSE:
        first, second = second, first
    return first.decode(), kind.decode(), second.decode()


def metrics_key(names: Sequence[bytes]) -> bytes:
    """The key of the points of these metrics, which ascend; that of one alone is its name."""
    return METRICS + names[0] if len(names) == 1 else metric_sets_prefix() + NUL.join(names)


def metric_sets_prefix() -> bytes:
    """The prefix of the keys of several metrics."""
    return METRICS + NUL


def metrics_of(key: bytes) -> list[str]:
    """The metrics of a METRICS key, ascending."""
    if key[1:2] == NUL:
        return key[2:].decode().split("\0")
    return [name_of(key)]


def splats_prefix(lake: bytes) -> bytes:
    """The prefix of all blocks of a lake."""
    return SPLATS + lake + NUL


def splats_key(lake: bytes, head: int) -> bytes:
    """The key of the block whose commit follows commit *head* of the log.

    No two commits follow the same one, on whatever lineage, and keys sort as their commits do.
    """
    return splats_prefix(lake) + head.to_bytes(8, "big")


def lake_of(key: bytes) -> str:
    """The lake of a SPLATS key."""
    return key[1:-9].decode()


def pin_key(lsn: int) -> bytes:
    """The key of a pin."""
    return PINS + lsn.to_bytes(8, "big")


def pinned_by(key: bytes) -> int:
    """The commit of the key of a pin."""
    return int.from_bytes(key[1:], "big")


def name_of(key: bytes) -> str:
    """The name behind the space byte."""
    return key[1:].decode()


def plain_names(found: list[bytes]) -> list[str]:
    """The names behind the space bytes of keys of one space that have no NUL; all at once."""
    if not found:
        return []
    between = NUL + found[0][:1]
    return NUL.join(found)[1:].decode().split(between.decode())


def shown(key: bytes) -> str:
    """A key as a user would name it, for messages."""
    if key[:1] in (RELATIONS, REVERSE):
        return " -> ".join(split_relation(key))
    if key[:1] == SPLATS:
        return lake_of(key)
    if key[:1] == METRICS:
        return key[1:].removeprefix(NUL).decode("utf-8", "backslashreplace").replace("\0", ", ")
    return key[1:].decode("utf-8", "backslashreplace")
