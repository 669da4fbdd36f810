"""What compaction is told of events, which only the layers above know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mldb.compaction.cold import CHAIN, SizeOf
from mldb.compaction.frames import KindOf
from mldb.compaction.retention import Retention, Roots
from mldb.log.door import Door
from mldb.log.index.columns import MetadataOf
from mldb.log.view import View

Encode: TypeAlias = "Callable[[bytes, memoryview, memoryview | None], tuple[int, bytes] | None]"
"""From attr, decoded bytes and those of the base to encoding and stored bytes; None: none pays.

Where it returns ENCODING_DELTA it built on the base.
"""

ColdAge: TypeAlias = int | Literal["all", "none"]
"""Nanoseconds after which a version may be cold; everything, whatever its age; nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRules:
    """What the database says of keys, attrs and events. All of it pure, but for views it reads.

    ``policy`` and ``roots`` read the retention of a view, and the commits that others name.
    ``is_store_wide`` holds for keys that no rewind touches. ``is_curve`` holds for keys of which a
    commit sees every version on the path that leads to it. ``anchors`` are keys of whose newest
    version the commit must be readable wherever the version is seen. ``size_of`` returns the
    decoded size of what may be encoded. ``kind_of`` is told of frames that lost entries.
    ``shown`` names a key for people. ``door_of`` makes a door over other views, with a cache of
    its own.
    """

    policy: Callable[[View], Retention]
    roots: Callable[[View], Roots]
    is_store_wide: Callable[[bytes], bool]
    is_curve: Callable[[bytes], bool]
    anchors: frozenset[bytes]
    size_of: SizeOf
    encode: Encode
    kind_of: KindOf
    shown: Callable[[bytes], str]
    door_of: Callable[[Callable[[], View]], Door]
    metadata_of: MetadataOf | None
    chain: int = CHAIN
