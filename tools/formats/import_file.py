"""Tensors of a file of others into a store, as one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mldb.errors import InvalidNameError, InvalidValueError, MissingError
from mldb.names import check_name, escape_key
from mldb.tools.formats.export_file import METADATA_OF_TENSORS, SHARED_NAMES, format_of
from mldb.tools.formats.npy import read_npy, read_npz
from mldb.tools.formats.safetensors import read_safetensors
from mldb.tools.formats.tensors import IncomingFile, IncomingTensor

if TYPE_CHECKING:
    from mldb.database import MLDatabase

SPILL_BYTES: Final = 256 << 10
"""Open a store with this ``spill_bytes`` to import more than memory holds."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was stored by commit ``lsn``: ``escaped`` maps names of the file to those stored."""

    path: str
    lsn: int
    epoch: int
    tensors: int
    bytes: int
    escaped: Mapping[str, str]


def import_file(
    db: MLDatabase,
    path: str,
    *,
    format: str | None = None,
    prefix: str = "",
    only: str = "",
    epoch: int | None = None,
    escape: bool = False,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Store the tensors of a file whose names start with *only*, under *prefix* and their names.

    One commit of *epoch*, or none: whatever is wrong with the file, nothing is stored. Metadata
    that an export wrote come back. *escape* writes names that mldb does not allow with ``%XX``;
    without it they are refused. Tensors go one at a time, from a mapping of the file; those of
    ``db.options.spill_bytes`` and more are written at once, so that all of them may take more than
    memory. Nobody may cut the file off meanwhile. *max_bytes* bounds what an npz may grow to.

    Raises MissingError, CorruptError, InvalidNameError, InvalidTypeError, InvalidValueError,
    LimitError, UsageError, and what a commit raises.
    """
    found = read_tensors(path, format=format, max_bytes=max_bytes)
    metadata = _json_of(found, METADATA_OF_TENSORS)
    shared = _json_of(found, SHARED_NAMES)
    by_name = {tensor.name: tensor for tensor in found.tensors}
    wanted: dict[str, IncomingTensor] = dict(by_name)
    for name, kept in shared.items():
        if isinstance(kept, str) and kept in by_name and name not in by_name:
            wanted[name] = by_name[kept]
    wanted = {name: tensor for name, tensor in wanted.items() if name.startswith(only)}
    if not wanted:
        raise MissingError(f"{path} has no tensor{f' of prefix {only!r:.80}' if only else ''}")
    stored = _stored_names(wanted, prefix, escape=escape)
    total = sum(tensor.nbytes for tensor in wanted.values())
    done = 0
    with db.transaction(epoch=epoch) as txn:
        for name, tensor in wanted.items():
            own = metadata.get(name)
            txn.store_tensor(stored[name], tensor.read(), own if isinstance(own, dict) else None)
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    lsn = txn.lsn
    assert lsn is not None
    with db.at(lsn=int(lsn)) as at:
        reached = at.epoch
    escaped = {name: key for name, key in stored.items() if key != prefix + name}
    return ImportReport(path, int(lsn), reached, len(wanted), total, escaped)


def read_tensors(
    path: str,
    *,
    format: str | None = None,
    max_bytes: int | None = None,
) -> IncomingFile:
    """Return what a file holds, checked; its tensors are read when asked. Raises as above."""
    chosen = format_of(path, format)
    if chosen == "safetensors":
        return read_safetensors(path)
    if chosen == "npz":
        return read_npz(path, limit=max_bytes)
    return read_npy(path, os.path.basename(path).removesuffix(".npy") or "tensor")


def _json_of(file: IncomingFile, key: str) -> dict[str, Any]:
    """What an export wrote under a key; nothing where it is something else."""
    try:
        found = json.loads(file.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _stored_names(
    wanted: Mapping[str, IncomingTensor], prefix: str, *, escape: bool
) -> dict[str, str]:
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in wanted:
        key = prefix + name
        try:
            check_name(key)
        except InvalidNameError as error:
            key = prefix + "/".join(map(escape_key, name.split("/")))
            if not escape:
                raise InvalidNameError(
                    f"{error} It stands in the file; --escape stores it as {key[:80]!r}."
                ) from None
            check_name(key)
        if key in taken:
            raise InvalidValueError(
                f"{name[:80]!r} and {taken[key][:80]!r} would both be {key[:80]!r}. Nothing was "
                "stored."
            )
        taken[key], found[name] = name, key
    return found
