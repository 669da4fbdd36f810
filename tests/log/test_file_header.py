"""File headers: what is written is read back, ids name files, newer and foreign files are named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.frame import DamagedFrame
from tests.support.logs import CLOCK, SEGMENT_ID, STORE_ID, flip

U64 = st.integers(0, 2**64 - 1)
BYTES_16 = st.binary(min_size=16, max_size=16)


def segment_header() -> bytes:
    return encode_file_header(
        fmt.FILE_SEGMENT, STORE_ID, CLOCK, segment_id=SEGMENT_ID, base_lsn=1, published=1
    )


@given(
    st.integers(1, 2**16 - 1), BYTES_16, U64, BYTES_16, U64, U64, st.integers(-(2**63), 2**63 - 1)
)
def test_file_headers_come_back(
    kind: int,
    store_id: bytes,
    number: int,
    segment_id: bytes,
    base_lsn: int,
    published: int,
    created: int,
) -> None:
    data = encode_file_header(
        kind,
        store_id,
        created,
        number=number,
        segment_id=segment_id,
        base_lsn=base_lsn,
        published=published,
    )
    assert len(data) == fmt.FILE_HEADER_SIZE
    header = decode_file_header(data, "x")
    assert (header.version, header.kind, header.store_id) == (fmt.FORMAT_VERSION, kind, store_id)
    assert (header.file_id, header.id, header.segment_id) == (number, segment_id, segment_id)
    assert (header.base_lsn, header.published) == (base_lsn, published)
    assert header.created == created
    assert header.writer.rstrip(b"\0") == fmt.WRITER


@given(U64)
def test_what_is_about_a_segment_of_version_1_is_of_version_1(number: int) -> None:
    """Its index and what was lost of it: they carry its number, and their seeds are made of it."""
    data = encode_file_header(fmt.FILE_INDEX, STORE_ID, CLOCK, segment_id=fmt.number_id(number))
    header = decode_file_header(data, "x")
    assert (header.version, header.file_id, header.id) == (fmt.FIRST_VERSION, number, fmt.NO_ID)
    assert header.segment_id == fmt.number_id(number)


def test_files_that_are_about_no_segment_have_no_id() -> None:
    header = decode_file_header(encode_file_header(fmt.FILE_READER, STORE_ID, CLOCK), "x")
    assert (header.id, header.file_id, header.base_lsn, header.published) == (fmt.NO_ID, 0, 0, 0)


@given(BYTES_16)
def test_names_of_ids_are_those_of_the_document(segment_id: bytes) -> None:
    assert fmt.id_text(segment_id) == segment_id.hex()
    assert len(fmt.id_text(segment_id)) == 32
    assert fmt.id_text(fmt.number_id(7)) == "0000000007"


def test_every_flipped_bit_and_cut_is_found() -> None:
    data = segment_header()
    for bit in range(8 * len(data)):
        with pytest.raises((DamagedFrame, FormatVersionError)):
            decode_file_header(flip(data, bit), "x")
    for length in range(len(data)):
        with pytest.raises(DamagedFrame):
            decode_file_header(data[:length], "x")


def header_with(**changes: int) -> bytes:
    """A file header with some fields changed and a right checksum."""
    header = decode_file_header(segment_header(), "x")
    raw = fmt.FILE_HEADER.pack(*{**header._asdict(), **changes}.values())[:-8]
    return raw + check64(raw).to_bytes(8, "little")


def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(FormatVersionError) as caught:
        decode_file_header(header_with(version=fmt.FORMAT_VERSION + 1), "segments/x.seg")
    for part in ("segments/x.seg", "version 3", "up to 2", "mldb 0.1.0", "Nothing was changed"):
        assert part in str(caught.value)


def test_damage_is_told_from_a_newer_format() -> None:
    """A flipped bit in the version is damage: the checksum comes first."""
    damaged = flip(segment_header(), 8 * 9)
    with pytest.raises(DamagedFrame, match="checksum"):
        decode_file_header(damaged, "x")


@pytest.mark.parametrize("place", range(96, 120))
def test_reserved_bytes_are_covered_by_the_checksum_and_not_read(place: int) -> None:
    raw = bytearray(segment_header()[:-8])
    raw[place] = 0xFF
    data = bytes(raw) + check64(bytes(raw)).to_bytes(8, "little")
    changed = decode_file_header(data, "x")._replace(check=0)
    assert changed == decode_file_header(segment_header(), "x")._replace(check=0)


@pytest.mark.parametrize("field", ["version", "kind"])
def test_version_0_and_kind_0_are_never_valid(field: str) -> None:
    with pytest.raises(DamagedFrame, match="never valid"):
        decode_file_header(header_with(**{field: 0}), "x")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_file_header(data: bytes) -> None:
    with pytest.raises((DamagedFrame, FormatVersionError)):
        decode_file_header(data, "x")
