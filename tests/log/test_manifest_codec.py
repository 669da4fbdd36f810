"""Manifests as bytes: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.file_header import encode_file_header
from mldb.log.frame import pack, unpack
from mldb.log.lone import decode_lone, encode_lone
from mldb.log.manifest_codec import (
    Features,
    Mark,
    SegmentInfo,
    StoredManifest,
    decode_manifest,
    splice,
)
from mldb.log.manifest_encoder import encode_manifest
from tests.support.logs import CLOCK, OLD_SEGMENT_ID, SEGMENT_ID, STORE_ID, flip

NAME = "MANIFEST-0000000007"
KIND = fmt.KIND_MANIFEST | fmt.MUST_UNDERSTAND
NUMBERS = st.integers(0, fmt.LSN_MAX)
BYTES_16 = st.binary(min_size=16, max_size=16)
IDS = BYTES_16 | NUMBERS.map(fmt.number_id)
ASCENDING = st.lists(NUMBERS, unique=True, max_size=6).map(sorted)
TEXTS = st.lists(st.text(max_size=5), max_size=2).map(tuple)


@st.composite
def segments(draw: st.DrawFn) -> SegmentInfo:
    first, last = sorted((draw(NUMBERS), draw(NUMBERS)))
    index = ["", "segments/0000000007.idx", f"segments/{SEGMENT_ID.hex()}.idx"]
    return SegmentInfo(
        draw(IDS),
        draw(st.sampled_from([fmt.FILE_SEGMENT, fmt.FILE_COMPACTED])),
        draw(BYTES_16),
        draw(NUMBERS),
        draw(st.sampled_from(index)),
        draw(NUMBERS),
        first,
        last,
        draw(NUMBERS),
        draw(NUMBERS),
        draw(BYTES_16),
    )


@st.composite
def manifests(draw: st.DrawFn) -> StoredManifest:
    edges = draw(ASCENDING)
    ranges = tuple(zip(edges[::2], edges[1::2], strict=False))
    splices = st.tuples(NUMBERS, NUMBERS, st.lists(segments(), max_size=2).map(tuple))
    return StoredManifest(
        draw(NUMBERS),
        draw(BYTES_16),
        draw(st.integers(fmt.TIME_MIN, fmt.TIME_MAX)),
        draw(IDS),
        draw(BYTES_16),
        Mark(draw(IDS), draw(NUMBERS), draw(NUMBERS), draw(BYTES_16)),
        draw(NUMBERS),
        draw(NUMBERS),
        tuple(draw(st.lists(BYTES_16, max_size=2))),
        Features((), draw(TEXTS), draw(TEXTS)),
        draw(st.just(b"") | BYTES_16),
        draw(st.none() | st.tuples(NUMBERS, BYTES_16)),
        tuple(draw(st.lists(splices, max_size=3))),
        tuple((lsn, draw(st.integers(0, lsn - 1))) for lsn in draw(ASCENDING) if lsn),
        draw(st.none() | st.just(ranges)),
        fmt.FORMAT_VERSION,
    )


INFO = SegmentInfo(bytes([3]) * 16, 1, STORE_ID, 900, "", 800, 1, 5, 0, 2, bytes(16))
FIRST = StoredManifest(
    7,
    STORE_ID,
    CLOCK,
    SEGMENT_ID,
    STORE_ID,
    Mark(SEGMENT_ID, 128, 0, bytes(16)),
    0,
    1 + fmt.LSN_CEILING_STEP,
    (STORE_ID,),
    Features(),
    bytes(16),
    (6, bytes(range(16))),
    ((0, 0, (INFO,)),),
    ((9, 2),),
    ((1, 2),),
    fmt.FORMAT_VERSION,
)


@given(manifests())
def test_manifests_come_back(stored: StoredManifest) -> None:
    assert decode_manifest(encode_manifest(stored), NAME) == stored


def test_every_flipped_bit_is_found() -> None:
    data = encode_manifest(FIRST)
    for bit in range(8 * len(data)):
        with pytest.raises((CorruptError, FormatVersionError)):
            decode_manifest(flip(data, bit), NAME)


@given(manifests(), st.data())
def test_every_cut_and_every_byte_more_is_found(
    stored: StoredManifest, data: st.DataObject
) -> None:
    raw = encode_manifest(stored)
    with pytest.raises(CorruptError):
        decode_manifest(raw[: data.draw(st.integers(0, len(raw) - 1))], NAME)
    with pytest.raises(CorruptError, match="bytes follow"):
        decode_manifest(raw + data.draw(st.binary(min_size=1, max_size=9)), NAME)


def test_a_manifest_of_another_number_or_kind_is_refused() -> None:
    moved = encode_manifest(replace(FIRST, number=8))
    header = encode_file_header(fmt.FILE_MANIFEST, STORE_ID, CLOCK, number=7)
    with pytest.raises(CorruptError, match="header checksum"):
        decode_manifest(header + moved[fmt.FILE_HEADER_SIZE :], NAME)
    segment = encode_file_header(fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=SEGMENT_ID)
    with pytest.raises(CorruptError, match="a file of kind segment, expected manifest") as caught:
        decode_manifest(segment + moved[fmt.FILE_HEADER_SIZE :], NAME)
    assert caught.value.file == NAME


# --- splices --------------------------------------------------------------------------------------


def info(number: int) -> SegmentInfo:
    return replace(INFO, id=number.to_bytes(16, "big"))


@given(st.lists(st.integers(0, 99)), st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=4))
def test_splices_do_to_a_list_what_slices_do(start: list[int], steps: list[Any]) -> None:
    expected, fresh = list(start), 1000
    changes: list[tuple[int, int, tuple[SegmentInfo, ...]]] = []
    for at, gone, come in steps:
        position = min(at, len(expected))
        count = min(gone, len(expected) - position)
        new = list(range(fresh, fresh + come))
        fresh += come
        expected[position : position + count] = new
        changes.append((position, count, tuple(map(info, new))))
    assert splice(tuple(map(info, start)), changes) == tuple(map(info, expected))


@pytest.mark.parametrize("change", [(4, 0), (0, 4), (3, 1), (1 << 62, 1 << 62)])
def test_a_splice_of_places_that_are_not_there_is_refused(change: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of 3 segments"):
        splice(tuple(map(info, range(3))), [(*change, ())])


# --- the forward rule -----------------------------------------------------------------------------


def rewritten(body: dict[Any, Any], payload: object) -> bytes:
    header = encode_file_header(fmt.FILE_MANIFEST, STORE_ID, CLOCK, number=7)
    parts = encode_lone(header, KIND, pack(body), pack(payload), fmt.MANIFEST_BODY_VERSION)
    return b"".join(parts)


def parts_of(data: bytes) -> tuple[dict[Any, Any], Any]:
    file = decode_lone(memoryview(data), NAME, fmt.FILE_MANIFEST, fmt.KIND_MANIFEST)
    return unpack(file.body), unpack(bytes(file.payload))


def test_keys_and_elements_that_are_not_known_are_read_over() -> None:
    body, (changes, jumps, kept) = parts_of(encode_manifest(FIRST))
    for fields in (body, body["mark"], body["features"], changes[0][2][0]):
        fields |= {"new": 1, 7: "x", b"bytes": None}
    changes[0].append("more")
    body["base"] += ["more"]
    jumps = [[*jumps[0]]]
    found = decode_manifest(rewritten(body, [changes, jumps, kept, "more", 1]), NAME)
    assert found == FIRST


def test_a_feature_that_must_be_known_is_named_before_anything_else_is_looked_at() -> None:
    """What it is about may have another form, which would be damage to who does not know it.

    Damage is stepped over, so the store as it was before would have been opened.
    """
    body, payload = parts_of(encode_manifest(FIRST))
    body["features"]["read"] = ["blobs", "aaa"]
    lists: list[Any] = [payload, [], None, [[], [[3, 9]], None], ["x", "y", "z"]]
    for changed in lists:
        with pytest.raises(FormatVersionError, match=r"uses aaa, blobs, .* must to read it.*newer"):
            decode_manifest(rewritten(body, changed), NAME)
    for name in body.keys() - {"features"}:
        with pytest.raises(FormatVersionError, match="uses aaa, blobs"):
            decode_manifest(rewritten({**body, name: "of another form"}, payload), NAME)
        short = {key: value for key, value in body.items() if key != name}
        with pytest.raises(FormatVersionError, match="uses aaa, blobs"):
            decode_manifest(rewritten(short, payload), NAME)


def test_damage_is_damage_whatever_it_says_of_features() -> None:
    """The checksums come first: no flipped bit makes a store look like one of a newer mldb."""
    data = encode_manifest(replace(FIRST, features=Features((), ("x",), ())))
    place = data.index(b"\xa1x")
    with pytest.raises(CorruptError, match="body checksum"):
        decode_manifest(flip(data, 8 * place + 8), NAME)


def test_a_higher_version_of_file_or_body_is_refused_by_name() -> None:
    data = encode_manifest(FIRST)
    body, payload = parts_of(data)
    header = encode_file_header(fmt.FILE_MANIFEST, STORE_ID, CLOCK, number=7)
    newer_body = b"".join(encode_lone(header, KIND, pack(body), pack(payload), 3))
    with pytest.raises(FormatVersionError, match="body version 3"):
        decode_manifest(newer_body, NAME)
    head = bytearray(data[: fmt.FILE_HEADER_SIZE - 8])
    head[8] = fmt.FORMAT_VERSION + 1
    newer = bytes(head) + check64(bytes(head)).to_bytes(8, "little") + data[128:]
    with pytest.raises(FormatVersionError, match="format version 3"):
        decode_manifest(newer, NAME)


# --- version 1 ------------------------------------------------------------------------------------


def old_manifest(**changes: object) -> bytes:
    """Manifest 7 as version 1 wrote it: a map of everything, no payload."""
    mark = {"segment": 4, "offset": 300, "lsn": 6, "chain": bytes(16)}
    old = {key: value for key, value in asdict(INFO).items() if key != "id"}
    body = {
        "number": 7,
        "store_id": STORE_ID,
        "created": CLOCK,
        "segments": [{"number": 1, **old}],
        "active": 4,
        "active_origin": STORE_ID,
        "mark": mark,
        "lsn_floor": 5,
        "jumps": [[9, 2]],
        "kept": [2, 3, 9],
        **changes,
    }
    head = fmt.FILE_HEADER.pack(
        *(fmt.FILE_MAGIC, fmt.FIRST_VERSION, fmt.FILE_MANIFEST, fmt.FILE_HEADER_SIZE),
        *(STORE_ID, 7, 0, CLOCK, fmt.WRITER, fmt.NO_ID, 0, 0),
    )[:-8]
    header = head + check64(head).to_bytes(8, "little")
    return b"".join(encode_lone(header, KIND, pack(body), b"", 1))


def test_a_manifest_of_version_1_has_numbers_for_ids_and_no_ceiling() -> None:
    found = decode_manifest(old_manifest(), NAME)
    assert found == StoredManifest(
        7,
        STORE_ID,
        CLOCK,
        fmt.number_id(4),
        STORE_ID,
        Mark(fmt.number_id(4), 300, 6, bytes(16)),
        5,
        0,
        (),
        Features(),
        b"",
        None,
        ((0, 0, (replace(INFO, id=OLD_SEGMENT_ID),)),),
        ((9, 2),),
        ((2, 2), (3, 3), (9, 9)),
        fmt.FIRST_VERSION,
    )
    assert decode_manifest(old_manifest(kept=None), NAME).kept is None


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": None},
        {"segments": [{"number": 1}]},
        {"active": bytes(16)},
        {"active": -1},
        {"kept": [3, 3]},
        {"kept": [[1, 2]]},
        {"jumps": [(5, 7)]},
        {"mark": None},
        {"number": 8},
        {"store_id": bytes(16)},
    ],
)
def test_impossible_fields_of_version_1_are_damage(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptError, match="the manifest is damaged"):
        decode_manifest(old_manifest(**changes), NAME)
