"""Splat lakes: what comes, goes, and is merged. Attrs are those of splats.py and merged.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mldb import keys
from mldb.history.kinds import (
    CONSOLIDATION_UNDONE,
    LAKE_CREATED,
    LAKE_POLICY_SET,
    SPLATS_ADDED,
    SPLATS_CONSOLIDATED,
    SPLATS_DELETED,
)
from mldb.history.kinds.changes import KeyChange, attr_draft
from mldb.history.merged import (
    MergeInfo,
    PlainRun,
    UndoInfo,
    pack_merge,
    pack_policy,
    pack_undo,
    unpack_change,
    unpack_policy,
)
from mldb.history.splats import (
    CHECK_LOG2,
    PAGE_LOG2,
    BlockInfo,
    LakeInfo,
    RemovalInfo,
    pack_block,
    pack_lake,
    pack_removal,
    unpack_lake,
)
from mldb.log import format as fmt
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import Lsn

SplatChange = BlockInfo | RemovalInfo | MergeInfo | UndoInfo

# --- LakeCreated ----------------------------------------------------------------------------------


def lake_created(lake: bytes, info: LakeInfo) -> KeyChange:
    """A lake exists from here on."""
    return KeyChange(LAKE_CREATED, keys.LAKES + lake, pack_lake(info))


def read_lake_created(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield name, dimension and geometry of each lake."""
    for draft in drafts:
        info = unpack_lake(draft.attr)
        yield keys.name_of(draft.key), info.dim, info.geometry


# --- SplatsAdded, SplatsDeleted -------------------------------------------------------------------
# What their entries say of commits and ids is known under the commit lock only. It has the same
# length whatever it is: a record made for head 0 has its place, and takes the entries of another
# one, made for the head that there is.


def splats_added(
    lake: bytes, head: int, block: BlockInfo, info: LakeInfo | None, digest: bytes = TO_BE_HASHED
) -> Record:
    """Rows added behind commit *head*, after which the lake is *info*; the payload is to come.

    None where the record of the lake's creation, in the same commit, says what the lake is.
    """
    length = block.nbytes
    drafts = _splat_drafts(lake, head, pack_block(block), length, digest, info)
    return Record(SPLATS_ADDED, drafts, (), length, align_log2=PAGE_LOG2, block_log2=CHECK_LOG2)


def splats_deleted(
    lake: bytes, head: int, ids: Buffer, info: LakeInfo, digest: bytes = TO_BE_HASHED
) -> Record:
    """Rows removed behind commit *head*; *ids* are ascending, 8 bytes each."""
    length = len(ids)
    attr = pack_removal(RemovalInfo(length // 8))
    drafts = _splat_drafts(lake, head, attr, length, digest, info)
    return Record(SPLATS_DELETED, drafts, (ids,), length)


def _splat_drafts(
    lake: bytes, head: int, attr: bytes, length: int, digest: bytes, info: LakeInfo | None
) -> list[Draft]:
    """The rows, and the state of the lake, which every commit that changes it tells once."""
    rows = Draft(keys.splats_key(lake, head), 0, fmt.ENCODING_RAW, 0, length, digest, 0, attr)
    return [rows] if info is None else [rows, attr_draft(keys.LAKES + lake, pack_lake(info))]


def read_splats_added(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield lake, number of rows, first id and sum of alpha of each block."""
    for lake, part in _splats(drafts):
        if isinstance(part, BlockInfo):
            yield lake, part.rows, part.base, part.alpha_sum


def read_splats_deleted(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield lake and number of rows of each removal."""
    for lake, part in _splats(drafts):
        if isinstance(part, RemovalInfo):
            yield lake, part.count


def _splats(drafts: list[Draft]) -> Iterator[tuple[str, SplatChange]]:
    for draft in drafts:
        if draft.key[:1] == keys.SPLATS:
            yield keys.lake_of(draft.key), unpack_change(draft.attr, draft.length)


# --- SplatsConsolidated, ConsolidationUndone ------------------------------------------------------


def splats_consolidated(
    lake: bytes, head: int, merge: MergeInfo, info: LakeInfo, digest: bytes = TO_BE_HASHED
) -> Record:
    """Rows merged behind commit *head*, after which the lake is *info*; the payload is to come."""
    length = merge.nbytes
    drafts = _splat_drafts(lake, head, pack_merge(merge), length, digest, info)
    return Record(SPLATS_CONSOLIDATED, drafts, (), length, align_log2=PAGE_LOG2,
                  block_log2=CHECK_LOG2)  # fmt: skip


def consolidation_undone(
    lake: bytes, head: int, undo: UndoInfo, ids: Buffer, info: LakeInfo,
    digest: bytes = TO_BE_HASHED,
) -> Record:  # fmt: skip
    """Merges taken back behind commit *head*; *ids* are those ended, then those live again."""
    drafts = _splat_drafts(lake, head, pack_undo(undo), undo.nbytes, digest, info)
    return Record(CONSOLIDATION_UNDONE, drafts, (ids,), undo.nbytes)


def read_splats_consolidated(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield lake, rows made, first id, their sources and mass, and the settings of the run."""
    for lake, part in _splats(drafts):
        if isinstance(part, MergeInfo):
            base, mass = (part.block.base, part.block.alpha_sum) if part.block else (0, 0.0)
            yield lake, part.rows, base, part.sources, mass, part.run


def read_consolidation_undone(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield lake, the commit taken back, and numbers of rows ended and restored."""
    for lake, part in _splats(drafts):
        if isinstance(part, UndoInfo):
            yield lake, Lsn(part.target), part.ended, part.restored


# --- LakePolicySet --------------------------------------------------------------------------------


def lake_policy_set(lake: bytes, policy: PlainRun | None) -> KeyChange:
    """A lake is to be consolidated by this policy from here on; by none."""
    attr = None if policy is None else pack_policy(policy)
    return KeyChange(LAKE_POLICY_SET, keys.POLICIES + lake, attr)


def read_lake_policy_set(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield lake and policy, None for none."""
    for draft in drafts:
        ends = draft.flags & fmt.ENTRY_TOMBSTONE
        yield keys.name_of(draft.key), None if ends else unpack_policy(draft.attr)
