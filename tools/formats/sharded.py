"""Repositories of safetensors files: shards beside an index that says which holds which tensor.

``model.safetensors.index.json`` maps names to files of the same folder, ``weight_map``. Neither it
nor the shards are believed: what one says, the other must say as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mldb.errors import InvalidValueError, LimitError, MissingError
from mldb.tools.formats.safetensors import HEADER_BYTES_MAX, read_safetensors
from mldb.tools.formats.tensors import (
    TENSORS_MAX,
    IncomingFile,
    IncomingTensor,
    MappedFile,
    OutgoingTensor,
)

INDEX_SUFFIX: Final = ".safetensors.index.json"
WHOLE_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model" + INDEX_SUFFIX
_MERGED: Final = ("mldb.metadata", "mldb.shared")
_SHARDS_MAX: Final = 10_000


def is_repository(path: str) -> bool:
    """Whether a path means a folder of shards: it is a folder, or the index in one."""
    return path.endswith(INDEX_SUFFIX) or os.path.isdir(path)


def read_repository(path: str) -> IncomingFile:
    """Return the tensors of all shards of a folder, or of an index file; views of them.

    A folder without an index has one safetensors file. Raises MissingError that names a shard that
    is not there, CorruptError where index and shards do not agree or a file is called by a path,
    and what :func:`read_safetensors` raises.
    """
    index = path if path.endswith(INDEX_SUFFIX) else _index_in(path)
    if not index.endswith(INDEX_SUFFIX):
        return read_safetensors(index)
    file = MappedFile(index)
    stated = _weight_map(file)
    folder = os.path.dirname(index)
    shards: dict[str, set[str]] = {}
    for name, shard in stated.items():
        shards.setdefault(shard, set()).add(name)
    if len(shards) > _SHARDS_MAX:
        raise LimitError(f"{index} names {len(shards)} files, more than {_SHARDS_MAX}.")
    missing = [shard for shard in shards if not os.path.isfile(os.path.join(folder, shard))]
    if missing:
        more = f", nor are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingError(
            f"{index} names {missing[0]!r:.200}, which is not there{more}. Nothing was stored."
        )
    found: list[IncomingTensor] = []
    told: list[Mapping[str, str]] = []
    for shard, names in shards.items():
        part = read_safetensors(os.path.join(folder, shard))
        there = {tensor.name for tensor in part.tensors}
        if there != names:
            odd = min(there ^ names)
            where = "the shard alone" if odd in there else "the index alone"
            raise file.damaged(f"{odd[:80]!r} of {shard!r:.200} is in {where}")
        found += part.tensors
        told.append(part.metadata)
    return IncomingFile(tuple(found), _merged(told))


def _index_in(folder: str) -> str:
    """The index of a folder, else its one file of tensors."""
    names = sorted(os.listdir(folder))
    for suffix in (INDEX_SUFFIX, ".safetensors"):
        fitting = [name for name in names if name.endswith(suffix) and not name.startswith(".")]
        usual = INDEX_NAME if suffix == INDEX_SUFFIX else WHOLE_NAME
        if usual in fitting or len(fitting) == 1:
            return os.path.join(folder, usual if usual in fitting else fitting[0])
        if fitting:
            raise InvalidValueError(
                f"{folder} has {len(fitting)} files *{suffix} ({fitting[0]!r:.100}, "
                f"{fitting[1]!r:.100}); name one of them."
            )
    raise MissingError(f"{folder} has no file *.safetensors and no index of such")


def _weight_map(file: MappedFile) -> dict[str, str]:
    if file.size > HEADER_BYTES_MAX:
        raise file.damaged(f"an index takes {HEADER_BYTES_MAX} bytes at most, not {file.size}")
    try:
        index = json.loads(bytes(file.data).decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise file.damaged(f"the index is no JSON: {error!s:.200}") from None
    stated = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(stated, dict) or not stated:
        raise file.damaged("the index has no weight_map")
    if len(stated) > TENSORS_MAX:
        raise LimitError(f"{file.path} names {len(stated)} tensors, more than {TENSORS_MAX}.")
    for name, shard in stated.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or len(shard) > 255:
            raise file.damaged(f"{name[:80]!r} lies in {shard!r:.80}, which is no safetensors file")
        if os.path.basename(shard) != shard or "\\" in shard or "\0" in shard or shard[0] == ".":
            raise file.damaged(
                f"{name[:80]!r} lies in {shard!r:.80}; a shard lies beside its index, and a name "
                "that leads elsewhere is not followed"
            )
    return stated


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _merged(told: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The metadata of all shards: what an export wrote put together, of the rest the first."""
    found: dict[str, str] = {}
    for part in told:
        for key, text in part.items():
            if key in _MERGED and key in found:
                text = _joined(found[key], text)
                found[key] = text
            else:
                found.setdefault(key, text)
    return found


def _joined(one: str, other: str) -> str:
    try:
        first, second = json.loads(one), json.loads(other)
    except (ValueError, RecursionError):
        return one
    if not isinstance(first, dict) or not isinstance(second, dict):
        return one
    return json.dumps(first | second)


def split_into_shards(
    tensors: Sequence[OutgoingTensor], shard_bytes: int
) -> dict[str, list[OutgoingTensor]]:
    """Deal tensors out in their order to files of at most *shard_bytes*, by the usual names.

    A tensor that is larger has a file of its own. One file alone is ``model.safetensors``.
    """
    groups: list[list[OutgoingTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return {WHOLE_NAME: groups[0]}
    if len(groups) > _SHARDS_MAX:
        raise LimitError(
            f"shards of {shard_bytes} bytes would be {len(groups)} files, more than {_SHARDS_MAX}. "
            "Nothing was written."
        )
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, 1)
    }


def index_text(shards: Mapping[str, Iterable[OutgoingTensor]], total: int) -> bytes:
    """The index of shards, as others write it."""
    places = {tensor.name: shard for shard, group in shards.items() for tensor in group}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
