"""What can be seen of a store: through the interface, and in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mldb
from mldb.log.fs.posix import OsFileSystem
from tests.support.segments import segment_names


def contents(db: mldb.MLDatabase) -> dict[str, Any]:
    """All that a user can see of a small store."""
    return {
        "tensors": {name: (db[name].tolist(), db.metadata(name)) for name in db},
        "relationships": db.relationships(),
        "checkpoints": db.checkpoints(),
        "tags": db.tags(),
        "head": (db.lsn, db.epoch),
    }


def listing(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every name below a folder with mode, time of change and bytes; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_mtime_ns, data)
    return found


def segments_of(folder: Path) -> list[Path]:
    """The files of the segments of a store in log order, the active one last."""
    return [folder / name for name in segment_names(OsFileSystem(folder))]
