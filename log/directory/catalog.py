"""The catalog: which parts the directory has, in log order. A value hint, ``hints/directory``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mldb.log import format as fmt
from mldb.log.active import HINTS
from mldb.log.directory.part import PartInfo, id_in
from mldb.log.fs.protocol import FileSystem
from mldb.log.lone import discard, publish_over

CATALOG: Final = "directory"
_VERSION: Final = 1


def load_catalog(fs: FileSystem) -> list[PartInfo]:
    """Return the parts; none when the catalog is absent, damaged or of another version."""
    from mldb.log.hints import load_hint

    value = load_hint(fs, CATALOG)
    if not isinstance(value, list) or len(value) < 2 or value[0] != _VERSION:
        return []
    try:
        return [_part(item) for item in value[1]]
    except (ValueError, TypeError):
        return []


def _part(item: Any) -> PartInfo:
    part = PartInfo._make(item[: len(PartInfo._fields)])
    plain = all(type(value) is int for value in (part.start, part.segments, part.versions))
    if not plain or part.start < 0 or part.segments < 1 or not 0 <= part.versions <= fmt.LSN_MAX:
        raise ValueError("a part of nothing")
    for value in (part.id, part.covers):
        if type(value) is not bytes or len(value) != fmt.DIGEST_SIZE:
            raise ValueError("no id or digest")
    return part


def save_catalog(fs: FileSystem, owner: str, parts: Sequence[PartInfo]) -> None:
    """Publish the catalog. Raises StorageFullError, StorageIOError; then the old one stands."""
    from mldb.log.hints import encode_hint

    buffers = encode_hint(fs, [_VERSION, [list(part) for part in parts]])
    publish_over(fs, owner, buffers, f"{HINTS}/{CATALOG}")


def remove_others(fs: FileSystem, parts: Sequence[PartInfo]) -> None:
    """Remove the files of parts that the catalog does not name. Who has one mapped keeps it."""
    stay = {part.id for part in parts}
    for file in fs.list(HINTS):
        part_id = id_in(file)
        if part_id is not None and part_id not in stay:
            discard(fs, f"{HINTS}/{file}")
