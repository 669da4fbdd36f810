"""Deltas give back every byte, take what the noise of a step does, and trust nothing they read."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction import deltas
from mldb.compaction.deltas import HEADER, DeltaError, decode_delta, decode_deltas, encode_delta
from mldb.compaction.zstd import zstd_module

WIDTHS = st.sampled_from([0, 1, 2, 3, 4, 8, 16])


def raw(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def steps(
    rng: np.random.Generator, dtype: type, count: int, noise: float = 1e-3
) -> tuple[memoryview, memoryview]:
    """A tensor after a step of relative *noise*, and before."""
    before: Any = (rng.standard_normal(count) * 0.02).astype(dtype)
    after: Any = (before.astype(np.float64) * (1 + noise * rng.standard_normal(count))).astype(
        dtype
    )
    return raw(after), raw(before)


@given(st.data())
def test_what_was_encoded_comes_back_byte_for_byte(data: st.DataObject) -> None:
    base = data.draw(st.binary(max_size=400)) * data.draw(st.integers(1, 8))
    flips = data.draw(
        st.lists(st.tuples(st.integers(0, max(len(base) - 1, 0)), st.integers(0, 255)))
    )
    changed = bytearray(base)
    for place, value in flips if base else []:
        changed[place] = value
    width = data.draw(WIDTHS)
    stored = encode_delta(memoryview(bytes(changed)), memoryview(base), width)
    if stored is not None:
        assert len(stored) < len(base)
        found = decode_delta(memoryview(stored), memoryview(base))
        assert found.readonly
        assert found == bytes(changed)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 1000, (1 << 17) - 1, (1 << 17) + 1, 3 << 17])
def test_every_width_and_chunk_wraps_around_and_comes_back(
    rng: np.random.Generator, width: int, count: int
) -> None:
    base = rng.integers(0, 256, count * width, dtype=np.uint8)
    words = base.view(f"<u{width}").copy()
    words += rng.integers(0, 3, count).astype(words.dtype)
    words[: count // 50] = 0
    words[count // 50 : count // 25] = np.iinfo(words.dtype).max
    stored = encode_delta(raw(words), raw(base), width)
    assert count < 100 or stored is not None
    if stored is not None:
        assert decode_delta(memoryview(stored), raw(base)) == words.tobytes()


def test_planes_of_a_short_tensor_do_not_share_a_code(rng: np.random.Generator) -> None:
    # Four planes of 16 KiB fit in one block of zstd, which has one Huffman code: that took 0.516.
    after, before = steps(rng, np.float32, 1 << 14)
    stored = encode_delta(after, before, 4)
    assert stored is not None
    assert len(stored) <= 0.508 * len(after)


@pytest.mark.parametrize(
    ("dtype", "most"),
    # Entropy of the noise an element: log2(4.13 * 1e-3 * 2^23) and half a bit for the mantissa,
    # 15.6 bits of 32; of float64 44.6 of 64; of bfloat16 a step changes one element in ten.
    [(np.float32, 0.51), (np.float64, 0.71), (np.float16, 0.2), (ml_dtypes.bfloat16, 0.02)],
)
def test_a_step_takes_about_the_entropy_of_its_noise(
    rng: np.random.Generator, dtype: type, most: float
) -> None:
    after, before = steps(rng, dtype, 200_000)
    stored = encode_delta(after, before, np.dtype(dtype).itemsize)
    assert stored is not None
    assert len(stored) <= most * len(after)
    assert decode_delta(memoryview(stored), before) == after


def test_the_method_is_the_one_that_takes_least(rng: np.random.Generator) -> None:
    after, before = steps(rng, np.float32, 100_000)
    flipped = raw(np.frombuffer(before, "<u4") ^ np.uint32(0x00100400))
    for data, kind in ((after, deltas.SUBTRACT), (flipped, deltas.XOR)):
        stored = encode_delta(data, before, 4)
        assert stored is not None
        assert HEADER.unpack_from(stored)[0] == kind


def test_what_does_not_get_shorter_is_no_delta(rng: np.random.Generator) -> None:
    one, two = (raw(rng.integers(0, 256, 100_000, dtype=np.uint8)) for _ in range(2))
    assert encode_delta(one, two, 4) is None
    assert encode_delta(memoryview(b""), memoryview(b""), 4) is None


def test_a_sample_that_promises_too_much_is_not_believed(rng: np.random.Generator) -> None:
    """Only what is not looked at differs: all of it decides in the end."""
    count = 100 << 15
    base = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    noise = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    for start in np.linspace(0, count - (1 << 15), 4).astype(int):
        noise[start : start + (1 << 15)] = 0
    assert encode_delta(raw(base + noise), raw(base), 4) is None


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(DeltaError, match="4 bytes and a base of 8"):
        encode_delta(memoryview(bytes(4)), memoryview(bytes(8)), 4)


def chunk(frame: bytes, header: bytes = HEADER.pack(1, 4, 7, 16)) -> bytes:
    """A delta of one chunk."""
    return header + len(frame).to_bytes(4, "little") + frame


def damaged() -> dict[str, bytes]:
    zstd = zstd_module()
    planes = zstd.compress(bytes(4000))
    good = chunk(planes)
    return {
        "nothing": b"",
        "half a header": good[:3],
        "method": chunk(planes, HEADER.pack(3, 4, 7, 16)),
        "width": chunk(planes, HEADER.pack(1, 3, 7, 16)),
        "width of no number": chunk(planes, HEADER.pack(1, 0, 0, 16)),
        "bias": chunk(planes, HEADER.pack(1, 4, 32, 16)),
        "chunk": chunk(planes, HEADER.pack(1, 4, 7, 64)),
        "chunks of one": chunk(planes, HEADER.pack(1, 4, 7, 0)),
        "no lengths": good[:4],
        "a length too much": good[:4] + b"\xff" * 4 + planes,
        "no zstd": chunk(b"abc" * 9),
        "a bomb": chunk(zstd.compress(bytes(1 << 28))),
        "too short": chunk(zstd.compress(bytes(3996))),
        "cut": chunk(planes[:-3]),
        "two frames": chunk(planes + planes),
        "more behind": good + b"x",
    }


@pytest.mark.parametrize("kind", sorted(damaged()))
def test_damage_is_a_typed_error_and_takes_no_memory(kind: str) -> None:
    with pytest.raises(DeltaError):
        decode_delta(memoryview(damaged()[kind]), memoryview(bytes(4000)))


def test_a_base_whose_length_is_no_multiple_of_the_width_is_refused() -> None:
    stored = chunk(zstd_module().compress(bytes(4001)))
    with pytest.raises(DeltaError, match="its header"):
        decode_delta(memoryview(stored), memoryview(bytes(4001)))


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_any_bytes_are_a_delta_or_a_typed_error(stored: bytes, size: int) -> None:
    try:
        found = decode_delta(memoryview(stored), memoryview(bytes(size)))
    except DeltaError:
        return
    assert len(found) == size


# --- chains ---------------------------------------------------------------------------------------


def laid_out(data: memoryview, base: memoryview, width: int, kind: int, chunk_log2: int) -> bytes:
    """A delta in a layout that the encoder would not choose; the reader takes every one."""
    words, other = (np.frombuffer(part, f"<u{width}") for part in (data, base))
    with np.errstate(over="ignore"):
        change = words - other + words.dtype.type(2) if kind == deltas.SUBTRACT else words ^ other
    frames = []
    for low in range(0, len(change), 1 << chunk_log2):
        part = change[low : low + (1 << chunk_log2)].view(np.uint8).reshape(-1, width)
        frames.append(zstd_module().compress(part.T.tobytes()))
    lengths = np.array([len(frame) for frame in frames], "<u4").tobytes()
    header = HEADER.pack(kind, width, int(kind == deltas.SUBTRACT), chunk_log2)
    return header + lengths + b"".join(frames)


LAYOUTS = [
    [(4, deltas.SUBTRACT, 10)],
    [(4, deltas.SUBTRACT, 10), (4, deltas.XOR, 10), (4, deltas.SUBTRACT, 10)],
    [(8, deltas.XOR, 4), (1, deltas.SUBTRACT, 12), (2, deltas.SUBTRACT, 3), (4, deltas.XOR, 24)],
]


@pytest.mark.parametrize("layouts", LAYOUTS, ids=["one", "alike", "each another"])
def test_a_chain_gives_the_last_version_whatever_the_layout_of_each(
    rng: np.random.Generator, layouts: list[tuple[int, int, int]]
) -> None:
    """Whole, in the memory of the base, and any part of it."""
    size = 40_008
    versions = [raw(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(len(layouts) + 1)]
    stored = [
        memoryview(laid_out(after, before, *layout))
        for before, after, layout in zip(versions[:-1], versions[1:], layouts, strict=True)
    ]
    first, last = versions[0], versions[-1]
    made = bytearray(size)
    decode_deltas(stored, size, first, memoryview(made))
    assert made == last
    own = bytearray(first)
    decode_deltas(stored, size, memoryview(own), memoryview(own))
    assert own == last
    assert len(versions) == 2 or own != versions[1]
    for low, high in [(0, 8), (4096, 4104), (4088, 12_304), (39_992, size), (16, 16)]:
        part = bytearray(high - low)
        decode_deltas(stored, size, first[low:high], memoryview(part), low)
        assert part == last[low:high]


def test_a_part_is_decoded_from_the_chunks_that_it_touches_alone(
    rng: np.random.Generator,
) -> None:
    """Damage in another chunk does not keep it from being read."""
    before, after = (raw(rng.integers(0, 256, 4 << 12, dtype=np.uint8)) for _ in range(2))
    stored = bytearray(laid_out(after, before, 4, deltas.XOR, 10))
    last = int.from_bytes(stored[16:20], "little")
    stored[-last] ^= 1
    part = bytearray(4096)
    decode_deltas([memoryview(stored)], 4 << 12, before[4096:8192], memoryview(part), 4096)
    assert part == after[4096:8192]
    with pytest.raises(DeltaError):
        decode_deltas([memoryview(stored)], 4 << 12, before[12288:], memoryview(part), 12288)


def test_the_damaged_delta_of_a_chain_is_told(rng: np.random.Generator) -> None:
    data = raw(rng.integers(0, 256, 4000, dtype=np.uint8))
    good = memoryview(laid_out(data, data, 4, deltas.XOR, 10))
    for bad in (good[:-1], memoryview(b"x"), memoryview(bytes(good[:-9]) + b"\xff" * 9)):
        for number in range(3):
            chain = [good] * 3
            chain[number] = bad
            with pytest.raises(DeltaError) as caught:
                decode_deltas(chain, 4000, data, memoryview(bytearray(4000)))
            assert caught.value.number == number
