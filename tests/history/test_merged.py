"""What is stored of merges and of undone ones: packed, read back, and refused when damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb import keys
from mldb.errors import FormatVersionError
from mldb.history import kinds, merged
from mldb.history.events import EVENT_KINDS
from mldb.history.kinds import lakes
from mldb.history.kinds.changes import records_of
from mldb.history.merged import MergeInfo, UndoInfo
from mldb.history.splats import (
    COLUMN_ALIGN,
    BlockInfo,
    LakeInfo,
    RemovalInfo,
    lay_out,
    pack_removal,
)
from mldb.log.frame import encode_body

LAKE = LakeInfo(bytes(16), 4, "sphere", 9)


def merge_of(rows: int, sources: int, stressed: int = 0) -> MergeInfo:
    block = BlockInfo(rows, 0, lay_out(rows, 4, labels=True), 3.0, 2.0, 1.0, 2.0)
    return MergeInfo(block if rows else None, sources, stressed, False, {"method": "sweep"})


@given(st.integers(1, 50), st.integers(2, 200), st.integers(0, 90))
def test_merges_are_read_as_they_were_packed(rows: int, sources: int, stressed: int) -> None:
    for info in (merge_of(rows, sources, stressed), merge_of(0, 0, stressed)):
        assert merged.unpack_change(merged.pack_merge(info), info.nbytes) == info
        places = [(part.offset, part.offset + part.row_bytes) for part in info.parts]
        start = 0 if info.block is None else info.block.nbytes
        for low, high in places:
            assert low >= start
            assert low % COLUMN_ALIGN == 0
            start = high
        assert start == info.nbytes
        with pytest.raises(ValueError):
            merged.unpack_change(merged.pack_merge(info), info.nbytes + 8)


def test_undone_merges_and_removals_are_read_as_they_were_packed() -> None:
    info = UndoInfo(17, 2, 5)
    assert merged.unpack_change(merged.pack_undo(info), 56) == info
    assert merged.unpack_change(pack_removal(RemovalInfo(3)), 24) == RemovalInfo(3)
    with pytest.raises(ValueError):
        merged.unpack_change(merged.pack_undo(info), 48)


GOOD = msgpack.unpackb(merged.pack_merge(merge_of(3, 7, 2)))


@pytest.mark.parametrize("place", range(1, 10))
@pytest.mark.parametrize("other", [None, -1, 1 << 62, "x", b"", [], {}, 2.5])
def test_merges_that_mean_nothing_are_refused(place: int, other: Any) -> None:
    length = merge_of(3, 7, 2).nbytes
    merged.unpack_change(msgpack.packb(GOOD), length)
    changed = [*GOOD[:place], other, *GOOD[place + 1 :]]
    if other == {} and place == 9:  # no settings are settings
        merged.unpack_change(msgpack.packb(changed), length)
        return
    with pytest.raises((ValueError, TypeError)):
        merged.unpack_change(msgpack.packb(changed), length)


def test_what_stands_behind_is_read_over_and_newer_versions_are_refused() -> None:
    length = merge_of(3, 7, 2).nbytes
    more = merged.unpack_change(msgpack.packb([*GOOD, "more"]), length)
    assert more == merged.unpack_change(msgpack.packb(GOOD), length)
    with pytest.raises(FormatVersionError):
        merged.unpack_change(msgpack.packb([2, *GOOD[1:]]), length)
    with pytest.raises(FormatVersionError):
        merged.unpack_policy(msgpack.packb([2, {}]))
    for attr in ([1], [1, 5], [1, {5: 1}], []):
        with pytest.raises(ValueError):
            merged.unpack_policy(msgpack.packb(attr))


def read(record: Any) -> Any:
    kind = EVENT_KINDS[record.kind]
    return list(kind.read(record.named_drafts(), record.extra))


@given(st.integers(0, 2**62), st.integers(0, 2**40))
def test_records_have_one_length_for_any_head_and_id(head: int, base: int) -> None:
    info = merge_of(3, 7, 2)
    assert info.block is not None
    first = lakes.splats_consolidated(b"l", 0, info, LAKE)
    placed = replace(info, block=replace(info.block, base=base))
    record = lakes.splats_consolidated(b"l", head, placed, replace(LAKE, next_id=base + 3))
    assert len(encode_body(first)) == len(encode_body(record))
    assert read(record) == [("l", 3, base, 7, 3.0, {"method": "sweep"})]
    assert record.named_drafts()[0].key == keys.splats_key(b"l", head)
    ids = np.arange(7, dtype="<u8").view(np.uint8).data
    undo = UndoInfo(head + 1, 2, 5)
    one, two = (lakes.consolidation_undone(b"l", at, undo, ids, LAKE) for at in (0, head))
    assert len(encode_body(one)) == len(encode_body(two))
    assert read(two) == [("l", head + 1, 2, 5)]


def test_policies_are_set_and_ended() -> None:
    changes = [lakes.lake_policy_set(b"l", {"k": 4}), lakes.lake_policy_set(b"m", None)]
    records = records_of(changes)
    assert {record.kind for record in records} == {kinds.LAKE_POLICY_SET}
    assert [fields for record in records for fields in read(record)] == [
        ("l", {"k": 4}),
        ("m", None),
    ]
