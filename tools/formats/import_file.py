"""Tensors of a file of others into a store, as one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mldb.errors import InvalidNameError, InvalidValueError, MissingError
from mldb.names import check_name, escape_key
from mldb.tools.formats.ahead import tensors_ahead
from mldb.tools.formats.export_file import (
    METADATA_OF_TENSORS,
    PT_SUFFIXES,
    SHARED_NAMES,
    format_of,
)
from mldb.tools.formats.npy import read_npy, read_npz
from mldb.tools.formats.pt import read_pt
from mldb.tools.formats.safetensors import read_safetensors
from mldb.tools.formats.sharded import is_repository, read_repository
from mldb.tools.formats.tensors import IncomingFile, IncomingTensor

if TYPE_CHECKING:
    from mldb.database import MLDatabase

SPILL_BYTES: Final = 256 << 10
"""Open a store with this ``spill_bytes`` to import more than memory holds."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was stored by commit ``lsn``: ``escaped`` maps names of the file to those stored.

    ``shared`` maps names to the one whose bytes they are, stored once. ``left_out`` are the names
    of numbers, texts and the like that stood beside the tensors of a ``.pt`` file.
    """

    path: str
    lsn: int
    epoch: int
    tensors: int
    bytes: int
    escaped: Mapping[str, str]
    shared: Mapping[str, str]
    left_out: tuple[str, ...]


def import_file(
    store: MLDatabase | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    prefix: str = "",
    only: str = "",
    strip_prefix: str = "",
    epoch: int | None = None,
    escape: bool = False,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Store the tensors of a file whose names start with *only*, under *prefix* and their names.

    *store*: an open store, or the path of one, which is made where there is none. *path*: a
    safetensors, npz or npy file, a file of ``torch.save`` (.pt, .pth, .bin, .ckpt; the tensors in
    it alone, and nothing of it is run or unpickled), or a folder of sharded safetensors files or
    the index in it. *strip_prefix* is cut off the names of the file. One commit of *epoch*, or
    none: whatever is wrong with the file, nothing is stored. Metadata that an export wrote come
    back; tied weights are stored once. *escape* writes names that mldb does not allow with ``%XX``;
    without it they are refused.

    Tensors go one at a time, from a mapping of the file, and the next one is read and hashed
    meanwhile; those of ``db.options.spill_bytes`` and more are written at once, so that all of them
    may take more than memory. Nobody may change the file meanwhile. *max_bytes* bounds what an npz,
    or repeated elements of a .pt, may grow to. Takes as long as reading the bytes, hashing and
    writing them. Any thread.

    Raises MissingError, CorruptError, InvalidNameError, InvalidTypeError, InvalidValueError,
    LimitError, UsageError, and what a commit raises.
    """
    path = os.fspath(path)
    found = read_tensors(path, format=format, max_bytes=max_bytes)
    metadata = _json_of(found, METADATA_OF_TENSORS)
    wanted = _wanted(found, path, only)
    stored = _stored_names(wanted, prefix, strip_prefix, escape=escape)
    total = sum(tensor.nbytes for tensor in wanted.values())
    shared: dict[str, str] = {}
    with _opened(store) as db:
        with db.transaction(epoch=epoch) as txn:
            done = 0
            groups = _groups(wanted)
            coming = [(stored[names[0]], wanted[names[0]]) for names in groups]
            with closing(tensors_ahead(txn, coming)) as ready:
                for names, (prepared, looked) in zip(groups, ready, strict=True):
                    txn._store_prepared([stored[name] for name in names], prepared, looked)
                    for name in names:
                        own = metadata.get(name)
                        if isinstance(own, dict):
                            txn.set_metadata(stored[name], own)
                    shared |= dict.fromkeys(names[1:], names[0])
                    done += wanted[names[0]].nbytes * len(names)
                    if progress is not None:
                        progress(done, total)
        lsn = txn.lsn
        assert lsn is not None
        with db.at(lsn=int(lsn)) as at:
            reached = at.epoch
    escaped = {
        name: key for name, key in stored.items() if key != prefix + name.removeprefix(strip_prefix)
    }
    return ImportReport(
        path, int(lsn), reached, len(wanted), total, escaped, shared, found.left_out
    )


@contextmanager
def _opened(store: MLDatabase | str | os.PathLike[str]) -> Iterator[MLDatabase]:
    from mldb.database import MLDatabase

    if isinstance(store, MLDatabase):
        yield store
        return
    with MLDatabase(store, background_compaction=False, spill_bytes=SPILL_BYTES) as db:
        yield db


def _wanted(found: IncomingFile, path: str, only: str) -> dict[str, IncomingTensor]:
    """The tensors that are asked for; names that an export left out come back."""
    wanted = {tensor.name: tensor for tensor in found.tensors}
    for name, kept in _json_of(found, SHARED_NAMES).items():
        if isinstance(kept, str) and kept in wanted and name not in wanted:
            wanted[name] = wanted[kept]
    wanted = {name: tensor for name, tensor in wanted.items() if name.startswith(only)}
    if not wanted:
        raise MissingError(f"{path} has no tensor{f' of prefix {only!r:.80}' if only else ''}")
    return wanted


def _groups(wanted: Mapping[str, IncomingTensor]) -> list[list[str]]:
    """Names by the tensor that they share, in the order of the file."""
    found: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        found.setdefault(id(tensor.read), []).append(name)
    return list(found.values())


def read_tensors(
    path: str,
    *,
    format: str | None = None,
    max_bytes: int | None = None,
) -> IncomingFile:
    """Return what a file holds, checked; its tensors are read when asked. Raises as above."""
    if format in (None, "safetensors") and is_repository(path):
        return read_repository(path)
    suffix = format or path.rpartition(".")[2].lower()
    if suffix in PT_SUFFIXES:
        return read_pt(path, limit=max_bytes)
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
    wanted: Mapping[str, IncomingTensor], prefix: str, strip_prefix: str, *, escape: bool
) -> dict[str, str]:
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in wanted:
        short = name.removeprefix(strip_prefix)
        key = prefix + short
        try:
            check_name(key)
        except InvalidNameError as error:
            key = prefix + "/".join(map(escape_key, short.split("/")))
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
