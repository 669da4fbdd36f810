"""Patches of tensors: TensorPatched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mldb import keys
from mldb.history.kinds import TENSOR_PATCHED
from mldb.log import format as fmt
from mldb.log.checksum import block_checks
from mldb.log.frame import Draft, Record
from mldb.log.patch import Patch, encode_patch
from mldb.tensors.codec import unpack_descriptor


class PatchedVersion(NamedTuple):
    """The version that a patch builds on: its commit, and its key where that is another one."""

    commit_lsn: int
    owner: bytes
    attr: bytes
    """The descriptor, which a patch does not change."""


def tensor_patched(key: bytes, below: PatchedVersion, patch: Patch) -> Record:
    """A record of rows that change; hashed here, outside the commit lock.

    There is no digest of the decoded bytes, which would cost a read of all of them.
    """
    payload = encode_patch(patch)
    length = sum(map(len, payload))
    checks = block_checks(payload, fmt.BLOCK_LOG2)
    base, owner, attr = below
    draft = (key, 0, fmt.ENCODING_PATCH, 0, length, b"", base, attr, owner)
    return Record(
        TENSOR_PATCHED,
        (draft,),
        payload,
        length,
        [len(patch.rows)],
        align_log2=fmt.payload_align_log2(length),
        checks=checks,
    )


def read_tensor_patched(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name, dtype, shape of the tensor, and the number of rows that changed."""
    for draft, rows in zip(drafts, extra, strict=True):
        what = unpack_descriptor(draft.attr)
        yield keys.name_of(draft.key), what.dtype, what.shape, int(rows)
