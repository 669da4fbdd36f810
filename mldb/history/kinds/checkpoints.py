"""Model checkpoints: CheckpointTaken. Their tensors are TensorStored events of the same commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mldb import keys
from mldb.errors import CorruptError
from mldb.history.kinds import CHECKPOINT_TAKEN
from mldb.log import format as fmt
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.names import check_name
from mldb.tensors.codec import pack_metadata, unpack_metadata


class CheckpointInfo(NamedTuple):
    """What the attr of a checkpoint says; ``tensors`` counts them, ``nbytes`` their bytes.

    ``interrupted``: taken in the middle of a step; the attr mentions it only where it is so.
    """

    name: str
    step: int | None
    metrics: dict[str, Any]
    tensors: int
    nbytes: int
    interrupted: bool = False


def checkpoint_taken(info: CheckpointInfo, skeleton: bytes) -> Record:
    """The record of a checkpoint, under its name and as the newest of any name.

    Raises what its name and metrics raise.
    """
    fields = info._asdict()
    if not info.interrupted:
        del fields["interrupted"]
    attr = pack_metadata(fields)
    length = len(skeleton)
    drafts = [
        Draft(key, 0, fmt.ENCODING_RAW, 0, length, TO_BE_HASHED, 0, attr)
        for key in (keys.CHECKPOINTS + check_name(info.name), keys.LATEST_CHECKPOINT)
    ]
    return Record(CHECKPOINT_TAKEN, drafts, (skeleton,), length)


def unpack_checkpoint(key: bytes, attr: bytes) -> CheckpointInfo:
    """Decode the attr of the checkpoint at *key*. Raises CorruptError."""
    fields = unpack_metadata(attr)
    try:
        fields = {**fields, "interrupted": fields.get("interrupted") is True}
        return CheckpointInfo(*(fields[name] for name in CheckpointInfo._fields))
    except KeyError as error:
        name = keys.name_of(key)
        raise CorruptError(f"the checkpoint {name!r} lacks its {error}", key=name) from None


def read_checkpoint_taken(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name, step and metrics of each checkpoint."""
    for draft in drafts:
        if draft.key != keys.LATEST_CHECKPOINT:
            info = unpack_checkpoint(draft.key, draft.attr)
            yield keys.name_of(draft.key), info.step, info.metrics
