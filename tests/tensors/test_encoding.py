"""Encoded payloads: what is worth it, and that nothing hostile comes out of them."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction.deltas import encode_delta
from mldb.compaction.zstd import zstd_module
from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.chain import Stored
from mldb.tensors.encoding import ENCODING_ZSTD, decode_bytes, decode_stored, encode_bytes


def decode(data: bytes, size: int, encoding: int = ENCODING_ZSTD) -> memoryview:
    return decode_bytes(memoryview(data), encoding, size, "segments/1.seg", 128, "layer/weight")


@given(
    st.lists(st.binary(max_size=300), max_size=4),
    st.integers(0, 40),
    st.integers(1, 200),
)
def test_what_is_encoded_is_smaller_and_comes_back(
    pieces: list[bytes], itemsize: int, repeat: int
) -> None:
    buffers = [piece * repeat for piece in pieces]
    whole = b"".join(buffers)
    packed = encode_bytes(buffers, itemsize)
    if packed is None:
        return
    assert len(packed) <= 0.95 * len(whole)
    found = decode(packed, len(whole))
    assert found.tobytes() == whole
    assert found.readonly


def test_noise_and_nothing_are_left_alone(rng: np.random.Generator) -> None:
    assert encode_bytes([rng.bytes(10_000)], 4) is None
    assert encode_bytes([], 4) is None
    assert encode_bytes([b""], 1) is None


def test_alike_bytes_of_floats_lie_together(rng: np.random.Generator) -> None:
    """The planes are what makes noise of one scale compressible at all."""
    floats = rng.uniform(1, 2, 50_000).astype("<f4").tobytes()
    planes, plain = encode_bytes([floats], 4), encode_bytes([floats], 1)
    assert planes is not None
    assert plain is None or len(planes) < len(plain)
    assert decode(planes, len(floats)).tobytes() == floats


GOOD = encode_bytes([np.arange(3000, dtype="<i4").tobytes()], 4) or b""


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_any_bytes_give_corrupt_or_exactly_the_size(data: bytes, size: int) -> None:
    try:
        assert len(decode(data, size)) == size
    except CorruptError as error:
        assert (error.file, error.offset, error.key) == ("segments/1.seg", 128, "layer/weight")


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_a_flipped_bit_gives_corrupt_or_the_size(bit: int) -> None:
    data = bytearray(GOOD)
    data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(CorruptError):
        assert len(decode(bytes(data), 12_000)) == 12_000


@pytest.mark.parametrize("size", [0, 1, 11_996, 11_999, 12_001, 12_004, 1 << 30])
def test_another_size_than_declared_is_corrupt(size: int) -> None:
    with pytest.raises(CorruptError, match=r"'layer/weight'.*stay readable.*segments/1\.seg"):
        decode(GOOD, size)


@pytest.mark.parametrize(
    "data", [b"", b"\x04", b"\0" + GOOD[1:], b"\x07" + GOOD[1:], GOOD[:-1], GOOD[1:]]
)
def test_a_frame_that_is_not_whole_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(data, 12_000)


def test_a_frame_without_its_end_is_corrupt_although_every_byte_came_out() -> None:
    """The checksum of the frame stands at its end; without it nothing was verified."""
    zstd = zstd_module()
    options = {zstd.CompressionParameter.checksum_flag: 1}
    whole = b"\x01" + zstd.compress(bytes(1000), options=options)
    assert len(decode(whole, 1000)) == 1000
    for cut in range(1, 5):
        with pytest.raises(CorruptError):
            decode(whole[:-cut], 1000)


def test_an_unknown_encoding_asks_for_a_newer_version() -> None:
    for encoding in (fmt.ENCODING_RAW + 2, 255):
        with pytest.raises(
            FormatVersionError, match=rf"'layer/weight'.*encoding {encoding}.*newer"
        ):
            decode(GOOD, 12_000, encoding)


def test_a_delta_is_read_on_its_base_and_damage_of_it_is_named(rng: np.random.Generator) -> None:
    before = rng.standard_normal(5000).astype(np.float32)
    after = before + np.float32(1e-4)
    base = before.data.cast("B")
    stored = encode_delta(after.data.cast("B"), base, 4)
    assert stored is not None
    where = ("segments/1.seg", 128, "layer/weight")
    found = decode_bytes(memoryview(stored), fmt.ENCODING_DELTA, 20000, *where, base)
    assert found == after.tobytes()
    with pytest.raises(CorruptError, match="'layer/weight' cannot be unpacked") as caught:
        decode_bytes(memoryview(stored)[:-1], fmt.ENCODING_DELTA, 20000, *where, base)
    assert (caught.value.file, caught.value.offset, caught.value.key) == where


def test_a_chain_is_decoded_at_once_and_names_what_is_damaged(rng: np.random.Generator) -> None:
    """A version compressed by itself, and deltas on it: in one go, each error with its own file."""
    steps = [rng.standard_normal(5000).astype(np.float32)]
    for _ in range(3):
        steps.append(steps[-1] + np.float32(1e-4))
    datas = [step.data.cast("B") for step in steps]
    forms = [encode_bytes((datas[0],), 4)]
    forms += [encode_delta(after, before, 4) for before, after in pairwise(datas)]
    encodings = [ENCODING_ZSTD, *[fmt.ENCODING_DELTA] * 3]
    chain = [
        Stored(memoryview(form or b""), encoding, "f", number)
        for number, (form, encoding) in enumerate(zip(forms, encodings, strict=True))
    ]
    found = decode_stored(chain, 20000, "w")
    assert found.readonly
    assert found == datas[3]
    assert decode_stored(chain[1:], 20000, "w", datas[0]) == datas[3]
    assert decode_stored(chain[1:], 20000, "w", datas[0][800:1600], 800) == datas[3][800:1600]
    assert steps[0].tobytes() == bytes(datas[0])
    for number, item in enumerate(chain):
        bad = [*chain]
        bad[number] = item._replace(data=item.data[:-1])
        with pytest.raises(CorruptError, match="'w' cannot be unpacked") as caught:
            decode_stored(bad, 20000, "w")
        assert caught.value.offset == number
        bad[number] = item._replace(encoding=99)
        with pytest.raises(FormatVersionError, match=rf"encoding 99.*offset {number}"):
            decode_stored(bad, 20000, "w")


def test_a_size_that_no_frame_of_that_length_gives_takes_no_memory() -> None:
    for size in (1 << 36, 1 << 50):
        with pytest.raises(CorruptError, match="are declared"):
            decode(GOOD, size)
