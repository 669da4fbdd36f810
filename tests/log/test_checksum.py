"""Checksums: the same for every way to cut a payload into buffers, and as the reference says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest, xxh3_128_digest

from mldb.log.checksum import (
    block_checks,
    check64,
    check_of_block,
    checks_and_digest,
    digest128,
    whole_digest,
)


def reference(data: bytes, block_log2: int) -> tuple[bytes, bytes]:
    size = 1 << block_log2
    parts = [data[low : low + size] for low in range(0, len(data), size)]
    return b"".join(map(xxh3_64_digest, parts)), xxh3_128_digest(data)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)), st.integers(2, 7))
def test_any_cut_gives_the_reference(data: bytes, cuts: list[int], block_log2: int) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    buffers = [data[low:high] for low, high in itertools.pairwise(edges)]
    assert checks_and_digest(buffers, block_log2) == reference(data, block_log2)
    assert (block_checks(buffers, block_log2), whole_digest(buffers)) == reference(data, block_log2)


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_block_the_checksum_is_in_the_digest(rng: np.random.Generator, count: int) -> None:
    """From 241 bytes on, whatever the length: one pass makes both (LONG of mldb.log.checksum)."""
    sizes = [*range(600), 1023, 1024, 1025, 4096, 65_537, (1 << 20) - 1, 1 << 20]
    data = rng.bytes(1 << 20)
    for size in sizes:
        part = data[:size]
        buffers = [part] if count == 1 else [part[: size // 3], part[size // 3 :]]
        assert checks_and_digest(buffers, 20) == reference(part, 20)
        if size:
            assert check_of_block(part, digest128(part)) == xxh3_64_digest(part)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_changed_bit_changes_digest_and_one_check(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    checks, digest = checks_and_digest([data], 4)
    other_checks, other_digest = checks_and_digest([bytes(changed)], 4)
    assert digest != other_digest
    differ = [
        at for at in range(0, len(checks), 8) if checks[at : at + 8] != other_checks[at : at + 8]
    ]
    assert differ == [8 * (bit // 8 // 16)]


@pytest.mark.parametrize("empty", [[], [b""], [b"", b""]])
def test_nothing_has_no_blocks_and_the_digest_of_nothing(empty: list[bytes]) -> None:
    assert checks_and_digest(empty, 20) == (b"", digest128(b""))


def test_blocks_are_big_endian_and_seeds_count() -> None:
    checks, _ = checks_and_digest([b"abc"], 20)
    assert int.from_bytes(checks, "big") == check64(b"abc")
    assert check64(b"abc", 1) != check64(b"abc")


def test_buffers_of_numpy_are_taken_without_a_copy(rng: np.random.Generator) -> None:
    array = rng.integers(0, 255, 10_000, dtype=np.uint8)
    expected = reference(array.tobytes(), 12)
    assert checks_and_digest([array[:5000].data, array[5000:].data], 12) == expected
    assert checks_and_digest([array.data], 12) == expected
