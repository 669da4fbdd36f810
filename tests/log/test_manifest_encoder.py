"""Manifests are joined of segments that were packed ahead, byte for byte as if packed at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from mldb.errors import CorruptError
from mldb.log.frame import pack
from mldb.log.manifest_codec import SegmentInfo, StoredManifest
from mldb.log.manifest_encoder import PackedSegments, encode_manifest, reads_as_meant
from tests.log.test_manifest_codec import FIRST, INFO, NAME, manifests


def infos(count: int) -> list[SegmentInfo]:
    return [replace(INFO, id=number.to_bytes(16, "big")) for number in range(count)]


def packed_by(packed: PackedSegments, monkeypatch: pytest.MonkeyPatch) -> list[SegmentInfo]:
    """A list that grows by each segment that is packed from now on, and not known as bytes."""
    found: list[SegmentInfo] = []

    def counted(value: object) -> bytes:
        found.append(value)  # type: ignore[arg-type]
        return pack(value)

    monkeypatch.setattr("mldb.log.manifest_encoder.pack", counted)
    return found


@given(manifests(), manifests())
def test_what_was_packed_before_changes_no_byte(one: StoredManifest, other: StoredManifest) -> None:
    packed = PackedSegments()
    for stored in (one, other, one):
        data = encode_manifest(stored, packed)
        assert data == encode_manifest(stored)
        assert reads_as_meant(data, NAME, stored)


def test_a_segment_that_is_described_anew_is_packed_anew() -> None:
    packed = PackedSegments()
    longer = replace(INFO, length=INFO.length + 8)
    assert packed.bytes_of(INFO) != packed.bytes_of(longer)
    assert packed.bytes_of(longer) == PackedSegments().bytes_of(longer)


def test_an_impossible_segment_is_refused() -> None:
    with pytest.raises(CorruptError, match="cannot be stored in a manifest"):
        PackedSegments().bytes_of(replace(INFO, first_lsn=9, last_lsn=3))


@pytest.mark.parametrize("turns", [1, 2, 7, 128])
def test_all_segments_are_packed_within_the_turns(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, segments = PackedSegments(), infos(100)
    found = packed_by(packed, monkeypatch)
    for left in range(turns, 0, -1):
        before = len(found)
        packed.make_ahead(segments, left)
        assert len(found) - before <= -(-100 // turns)
    assert len(found) == 100
    packed.make_ahead([*segments, *infos(101)[100:]], 0)
    assert len(found) == 101


def test_what_a_base_lacks_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, segments = PackedSegments(), infos(4)
    packed.make_ahead(segments, 1)
    packed.keep(segments[2:])
    found = packed_by(packed, monkeypatch)
    for info in segments[2:]:
        packed.bytes_of(info)
    assert found == []
    packed.bytes_of(segments[0])
    assert len(found) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(FIRST, lsn_floor=9),
        replace(FIRST, jumps=((9, 3),)),
        replace(FIRST, kept=None),
        replace(FIRST, number=8),
    ],
)
def test_bytes_of_another_manifest_do_not_read_as_meant(other: StoredManifest) -> None:
    data = encode_manifest(other)
    assert not reads_as_meant(data, NAME, FIRST)
    assert reads_as_meant(data, NAME, other)


def test_bytes_behind_its_frame_are_not_meant() -> None:
    data = encode_manifest(FIRST)
    assert reads_as_meant(data, NAME, FIRST)
    assert not reads_as_meant(data + bytes(8), NAME, FIRST)
