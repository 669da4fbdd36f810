"""Verified blocks: whatever is touched was right when it was touched, and is hashed once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.log import blocks as blocks_module
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.checksum import check64
from mldb.log.frame import TO_BE_HASHED, Draft, Frame, Record
from tests.support.logs import Built, build_segment, flip

BLOCK = 1 << fmt.BLOCK_LOG2_MIN


def payload_of(data: bytes) -> tuple[Built, Frame]:
    """A segment with this payload, in blocks of the smallest size."""
    drafts = [Draft(b"\x01x", 0, 0, 0, len(data), TO_BE_HASHED, 0, b"", b"")]
    record = Record(16, drafts, [data], len(data), block_log2=fmt.BLOCK_LOG2_MIN)
    built = build_segment([[record]])
    return built, built.scan()[0][0].frames[0][0]


@pytest.fixture
def pure() -> Iterator[None]:
    """Python hashes, where that can be counted."""
    with native.switched_off():
        yield


class Hashes:
    """Counts how often a block is hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        real = check64

        def counted(data: memoryview) -> int:
            self.sizes.append(len(data))
            return real(data)

        monkeypatch.setattr(blocks_module, "check64", counted)


RANGES = st.lists(st.tuples(st.integers(0, 5 * BLOCK), st.integers(0, 5 * BLOCK)), max_size=6)


@given(st.integers(1, 5 * BLOCK), RANGES, st.none() | st.integers(0, 8 * 5 * BLOCK - 1))
def test_a_range_is_refused_exactly_when_a_block_of_it_is_damaged(
    length: int, ranges: list[tuple[int, int]], bit: int | None
) -> None:
    built, frame = payload_of(bytes(length))
    start = frame.payload_offset
    data = built.data
    if bit is not None:
        bit %= 8 * length
        data = flip(data, 8 * start + bit)
    blocks = Blocks(frame, payload_checks(memoryview(built.data), frame), "segments/x.seg")
    for edges in ranges:
        low, high = (min(edge, length) for edge in sorted(edges))
        hit = (
            bit is not None
            and low < high
            and low // BLOCK <= bit // 8 // BLOCK <= (high - 1) // BLOCK
        )
        if not hit:
            blocks.touch(memoryview(data), start + low, start + high)
            continue
        with pytest.raises(CorruptError) as caught:
            blocks.touch(memoryview(data), start + low, start + high, "a name")
        assert bit is not None
        assert caught.value.offset == start + bit // 8 // BLOCK * BLOCK
        assert (caught.value.file, caught.value.key) == ("segments/x.seg", "a name")
        assert "stay readable" in str(caught.value)


@pytest.mark.usefixtures("pure")
def test_each_block_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built, frame = payload_of(bytes(3 * BLOCK + 5))
    data = memoryview(built.data)
    blocks = Blocks(frame, payload_checks(data, frame), "x")
    hashes = Hashes(monkeypatch)
    start = frame.payload_offset
    blocks.touch(data, start + 1, start + 2)
    blocks.touch(data, start, start + BLOCK)
    assert (hashes.sizes, blocks.complete) == ([BLOCK], False)
    blocks.touch(data, start + BLOCK - 1, start + 3 * BLOCK + 5)
    assert sorted(hashes.sizes) == [5, BLOCK, BLOCK, BLOCK]
    assert blocks.complete
    blocks.touch(data, start, start + 3 * BLOCK + 5)
    assert len(hashes.sizes) == 4


def test_a_damaged_block_stays_unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    built, frame = payload_of(bytes(2 * BLOCK))
    start = frame.payload_offset
    damaged = memoryview(flip(built.data, 8 * start))
    blocks = Blocks(frame, payload_checks(damaged, frame), "x")
    for _ in range(2):
        with pytest.raises(CorruptError, match="a stored block is damaged"):
            blocks.touch(damaged, start, start + 1)
    blocks.touch(damaged, start + BLOCK, start + 2 * BLOCK)
    assert not blocks.complete


def test_a_place_outside_the_payload_is_corrupt() -> None:
    """An index that contradicts the segment once led to the checksum of another block."""
    built, frame = payload_of(bytes(2 * BLOCK))
    data = memoryview(built.data)
    start = frame.payload_offset
    for low, high in ((start - 1, start + 1), (start, start + 2 * BLOCK + 1), (0, 8)):
        blocks = Blocks(frame, payload_checks(data, frame), "x")
        with pytest.raises(CorruptError, match="the index places bytes"):
            blocks.touch(data, low, high)
    blocks.touch(data, start - 5, start - 5)  # nothing is read


@pytest.mark.usefixtures("pure")
@pytest.mark.parametrize("bad", [None, 0, 7, 8, 15])
def test_large_ranges_are_split_over_two_threads(
    bad: int | None, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage is found in either half, and the other half is finished before the error is raised."""
    monkeypatch.setattr(blocks_module, "_SPLIT_BYTES", 8 * BLOCK)
    built, frame = payload_of(rng.bytes(16 * BLOCK))
    start = frame.payload_offset
    raw = built.data if bad is None else flip(built.data, 8 * (start + bad * BLOCK))
    data = memoryview(raw)
    blocks = Blocks(frame, payload_checks(data, frame), "x")
    threads: set[int] = set()
    real = check64

    def seen(part: memoryview) -> int:
        threads.add(threading.get_ident())
        return real(part)

    monkeypatch.setattr(blocks_module, "check64", seen)
    if bad is None:
        blocks.touch(data, start, start + 16 * BLOCK)
        assert blocks.complete
    else:
        with pytest.raises(CorruptError) as caught:
            blocks.touch(data, start, start + 16 * BLOCK)
        assert caught.value.offset == start + bad * BLOCK
    assert len(threads) == 2


def test_threads_may_touch_the_same_blocks_at_once(rng: np.random.Generator) -> None:
    built, frame = payload_of(rng.bytes(20 * BLOCK))
    data = memoryview(built.data)
    start = frame.payload_offset
    blocks = Blocks(frame, payload_checks(data, frame), "x")
    failures: list[BaseException] = []

    def read(shift: int) -> None:
        try:
            for number in range(20):
                low = start + (number + shift) % 20 * BLOCK
                blocks.touch(data, low, low + BLOCK)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=read, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert blocks.complete


@given(
    st.integers(1, 40),
    st.integers(1, 3 * BLOCK),
    st.integers(0, 2 * BLOCK),
    st.lists(st.integers(0, 10**6), max_size=20),
    st.none() | st.integers(0, 10**9),
)
def test_scattered_rows_are_refused_exactly_when_a_block_of_them_is_damaged(
    count: int, row_bytes: int, place: int, picks: list[int], bit: int | None
) -> None:
    """The column starts *place* bytes into the payload; rows may span blocks."""
    length = place + count * row_bytes
    built, frame = payload_of(bytes(length))
    start, data = frame.payload_offset, built.data
    damaged = None
    if bit is not None:
        bit %= 8 * length
        damaged = bit // 8 // BLOCK
        data = flip(data, 8 * start + bit)
    blocks = Blocks(frame, payload_checks(memoryview(built.data), frame), "segments/x.seg")
    rows = np.array([pick % count for pick in picks], np.int64)
    touched = {
        block
        for row in rows.tolist()
        for block in range(
            (place + row * row_bytes) // BLOCK, (place + (row + 1) * row_bytes - 1) // BLOCK + 1
        )
    }
    view = memoryview(data)
    if damaged in touched:
        with pytest.raises(CorruptError, match="'k'"):
            blocks.touch_rows(view, start + place, row_bytes, rows, "k")
        return
    blocks.touch_rows(view, start + place, row_bytes, rows, "k")
    total = -(-length // BLOCK)
    for block in range(total):
        low = start + block * BLOCK
        assert blocks.covers(low, min(low + BLOCK, start + length)) == (block in touched)
    if touched == set(range(total)):
        assert blocks.complete


def test_rows_outside_the_payload_are_refused() -> None:
    built, frame = payload_of(bytes(100))
    blocks = Blocks(frame, payload_checks(memoryview(built.data), frame), "segments/x.seg")
    for row in (-1, 2, 10**9):
        with pytest.raises(CorruptError, match="outside the payload"):
            blocks.touch_rows(
                memoryview(built.data), frame.payload_offset, 4096, np.array([row]), "k"
            )
