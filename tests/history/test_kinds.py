"""Kinds of events: their numbers, what is built and what is read of each, and times of commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb import keys
from mldb.compaction.retention import Retention
from mldb.errors import CorruptError, FormatVersionError
from mldb.history import kinds, splats
from mldb.history.events import EVENT_KINDS
from mldb.history.kinds import lakes, relationships, retention, tensors, timeline
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.history.kinds.checkpoints import CheckpointInfo, checkpoint_taken, unpack_checkpoint
from mldb.history.splats import BlockInfo, LakeInfo
from mldb.log import format as fmt
from mldb.log.frame import Draft, Record, encode_body, pack, unpack
from mldb.log.index.address import Lsn, to_time
from mldb.names import check_name
from mldb.tensors.codec import pack_metadata, prepare

NUMBERS = {
    name: value
    for name, value in vars(kinds).items()
    if name.isupper() and isinstance(value, int) and not name.startswith("_")
}


def test_every_kind_has_a_number_of_its_own_that_readers_must_understand() -> None:
    assert len(set(NUMBERS.values())) == len(NUMBERS) == 22
    for number in NUMBERS.values():
        assert number & fmt.MUST_UNDERSTAND
        assert number & ~fmt.MUST_UNDERSTAND >= fmt.KIND_FIRST_EVENT


def test_known_are_all_kinds_but_the_reserved_ones() -> None:
    """A reserved kind stops this version, as any other kind from a newer one does."""
    unknown = {
        name
        for name, number in NUMBERS.items()
        if number & ~fmt.MUST_UNDERSTAND not in kinds.KNOWN_KINDS
    }
    assert unknown == {
        *("BRANCH_SET", "BRANCH_DELETED"),
    }
    assert len(kinds.KNOWN_KINDS) == len(NUMBERS) - 2


def test_every_known_kind_is_read_as_an_event_of_its_own() -> None:
    assert {kind & ~fmt.MUST_UNDERSTAND for kind in EVENT_KINDS} == kinds.KNOWN_KINDS
    assert len({kind.event for kind in EVENT_KINDS.values()}) == len(EVENT_KINDS)
    assert {kind.event.__name__ for kind in EVENT_KINDS.values()} == {
        name.title().replace("_", "") for name, number in NUMBERS.items() if number in EVENT_KINDS
    }


# --- what is built is read ------------------------------------------------------------------------


def read(records: Iterable[Record]) -> list[tuple[int, tuple[Any, ...]]]:
    """Kind and fields of every event in *records*, by way of the bytes of their bodies."""
    found = []
    for record in records:
        if record.drafts:
            raw, extra = unpack(encode_body(record))
            drafts = [Draft(*fields) for fields in raw]
        else:
            drafts, extra = [], unpack(encode_body(record))
        kind = EVENT_KINDS[record.kind]
        found += [(record.kind, fields) for fields in kind.read(drafts, extra)]
    return found


NAMES = st.sampled_from(["a", "b/c", "\U0001f600", "x" * 255])
LSNS = st.integers(1, fmt.LSN_MAX)
METADATA = st.dictionaries(st.text(max_size=3), st.integers(-5, 5) | st.text(max_size=3))


@given(NAMES, NAMES, METADATA, st.booleans())
def test_tensors_are_read_as_they_were_built(
    name: str, alias: str, metadata: dict[str, Any], tell: bool
) -> None:
    value = np.arange(20_000, dtype="<i2").reshape(2, -1)
    key, prepared = check_name(name), prepare(value)
    packed = pack_metadata(metadata) if tell else None
    told = (name, "<i2", (2, 10_000), 40_000, metadata if tell else None)
    stored = (kinds.TENSOR_STORED, told)
    assert read([tensors.tensor_stored(key, prepared, metadata=packed)]) == [stored]
    assert read([tensors.tensor_reserved(key, prepared.descriptor, packed)]) == [stored]
    aliased = [(kinds.TENSOR_STORED, (item, *told[1:4], None)) for item in (name, alias)]
    for build in (tensors.tensor_stored, tensors.tensor_compressed):
        record = build(key, prepared, (check_name(alias),))
        assert record is not None
        assert read([record]) == aliased
        assert len({draft.digest for draft in record.named_drafts()}) == 1


@given(st.lists(NAMES, min_size=1, unique=True), METADATA, LSNS)
def test_changes_are_read_as_they_were_built(
    names: list[str], metadata: dict[str, Any], lsn: int
) -> None:
    packed = pack_metadata(metadata)
    keyed = [(name, check_name(name)) for name in names]

    def told(build: Callable[[bytes], Iterable[KeyChange]]) -> list[tuple[int, tuple[Any, ...]]]:
        return read(records_of([change for _, key in keyed for change in build(key)]))

    assert told(tensors.tensor_deleted) == [(kinds.TENSOR_DELETED, (name,)) for name in names]
    assert told(lambda key: [tensors.metadata_set(key, packed)]) == [
        (kinds.METADATA_SET, (name, metadata)) for name in names
    ]
    assert told(lambda key: [timeline.tag_set(key, lsn)]) == [
        (kinds.TAG_SET, (name, lsn)) for name in names
    ]
    assert told(lambda key: [timeline.tag_deleted(key)]) == [
        (kinds.TAG_DELETED, (name,)) for name in names
    ]
    assert told(lambda key: relationships.relationship_created(key, b"t", b"k", packed)) == [
        (kinds.RELATIONSHIP_CREATED, (name, "t", "k", metadata)) for name in names
    ]
    assert told(lambda key: relationships.relationship_deleted(b"s", key, b"k")) == [
        (kinds.RELATIONSHIP_DELETED, ("s", name, "k")) for name in names
    ]


@given(LSNS)
def test_pins_and_rewinds_are_read_as_they_were_built(lsn: int) -> None:
    assert read(records_of([timeline.pin_set(lsn)])) == [(kinds.PIN_SET, (lsn,))]
    assert read(records_of([timeline.pin_cleared(lsn)])) == [(kinds.PIN_CLEARED, (lsn,))]
    assert read([timeline.rewound(lsn)]) == [(kinds.REWOUND, (lsn,))]
    for found in (*read(records_of([timeline.pin_set(lsn)])), *read([timeline.rewound(lsn)])):
        assert type(found[1][0]) is Lsn


SPANS = st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=9999))


@given(st.none() | st.integers(1, 9), st.none() | st.integers(1, 9), SPANS, SPANS)
def test_a_retention_is_read_as_it_was_built(
    last: int | None, every: int | None, within: timedelta | None, abandoned: timedelta | None
) -> None:
    policy = Retention(last=last, every=every, within=within, abandoned=abandoned)
    assert read(records_of([retention.retention_set(policy)])) == [(kinds.RETENTION_SET, (policy,))]
    assert retention.retention_set(policy).key == keys.RETENTION
    longer = pack([*unpack(retention.pack_retention(policy)), "more"])
    assert retention.unpack_retention(longer) == policy


def test_a_retention_that_says_nothing_sensible_is_corrupt_and_a_newer_one_is_refused() -> None:
    for attr in (b"", b"\xc1", b"\x90", b"\x91\x01", pack([1, 0, None, None, None, None, None])):
        with pytest.raises(CorruptError, match="retention"):
            retention.unpack_retention(attr)
    with pytest.raises(FormatVersionError, match=r"version 2.*Nothing was dropped"):
        retention.unpack_retention(pack([2, None]))


@given(NAMES, st.none() | st.integers(0, 9), METADATA)
def test_checkpoints_are_read_as_they_were_built(
    name: str, step: int | None, metrics: dict[str, Any]
) -> None:
    info = CheckpointInfo(name, step, metrics, 3, 40)
    record = checkpoint_taken(info, b"skeleton")
    assert read([record]) == [(kinds.CHECKPOINT_TAKEN, (name, step, metrics))]
    assert [draft.key for draft in record.named_drafts()] == [
        keys.CHECKPOINTS + check_name(name),
        keys.LATEST_CHECKPOINT,
    ]
    for draft in record.named_drafts():
        assert unpack_checkpoint(draft.key, draft.attr) == info
    with pytest.raises(CorruptError, match="lacks its 'step'"):
        unpack_checkpoint(record.named_drafts()[0].key, pack_metadata({"name": name}))


@given(st.integers(0, fmt.LSN_MAX), st.integers(0, splats.ID_MAX), st.integers(1, 50))
def test_splats_are_read_as_they_were_built_and_numbered_in_place(
    head: int, base: int, rows: int
) -> None:
    """A record made for no commit has the length of the one that the commit lock decides."""
    before = LakeInfo(bytes(16), 4, "sphere", 0)
    after = LakeInfo(bytes(16), 4, "sphere", base)
    assert read(records_of([lakes.lake_created(b"l", before)])) == [
        (kinds.LAKE_CREATED, ("l", 4, "sphere"))
    ]
    block = BlockInfo(rows, 0, splats.lay_out(rows, 4, labels=False), 2.5, 1.0, 1.0, 1.0)
    first = lakes.splats_added(b"l", 0, block, before)
    placed = lakes.splats_added(b"l", head, replace(block, base=base), after, bytes(range(16)))
    assert read([placed]) == [(kinds.SPLATS_ADDED, ("l", rows, base, 2.5))]
    assert len(encode_body(first)) == len(encode_body(placed))
    assert placed.named_drafts()[0].digest == bytes(range(16))
    assert [draft.key for draft in placed.named_drafts()] == [
        keys.splats_key(b"l", head),
        keys.LAKES + b"l",
    ]
    assert splats.unpack_lake(placed.named_drafts()[1].attr) == after
    ids = np.arange(rows, dtype="<u8").view(np.uint8).data
    removal = lakes.splats_deleted(b"l", head, ids, after)
    assert read([removal]) == [(kinds.SPLATS_DELETED, ("l", rows))]
    assert len(encode_body(removal)) == len(encode_body(lakes.splats_deleted(b"l", 0, ids, before)))
    assert splats.unpack_lake(removal.named_drafts()[1].attr) == after


@pytest.mark.parametrize("attr", [b"", b"\xc1", b"\x90", b"\x91\xa1x", b"\x91\xff", b"\x05"])
def test_a_tag_that_points_nowhere_is_corrupt(attr: bytes) -> None:
    with pytest.raises(CorruptError, match="'best' points at no commit") as caught:
        timeline.unpack_tag(keys.TAGS + b"best", attr)
    assert caught.value.key == "best"
    assert timeline.unpack_tag(keys.TAGS + b"best", b"\x92\x07\xa4more") == 7


@given(st.integers(0, 2**63 - 1))
def test_times_are_exact_to_the_microsecond_and_cut_below(nanoseconds: int) -> None:
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
    assert to_time(nanoseconds) == expected
    assert to_time(nanoseconds).tzinfo is UTC
