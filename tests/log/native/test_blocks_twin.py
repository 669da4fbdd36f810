"""Blocks verified by the compiled twin: what Python accepts it accepts, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.log import native
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.checksum import block_checks
from tests.log.test_blocks import BLOCK, payload_of
from tests.support.logs import flip

twin = native.twin
pytestmark = pytest.mark.skipif(
    twin is None or not twin.HAS_XXHASH, reason="no compiled twin that hashes"
)

Outcome = tuple[str, int] | None


def outcome_of(call: Callable[[], object]) -> Outcome:
    """What a call raised, or None."""
    try:
        call()
    except CorruptError as error:
        assert error.offset is not None
        return str(error), error.offset
    return None


PLACES = st.integers(0, 6 * BLOCK)
CALLS = st.lists(
    st.tuples(st.just("touch"), PLACES, PLACES)
    | st.tuples(st.just("rows"), st.integers(1, 2 * BLOCK), st.lists(PLACES, max_size=9)),
    max_size=6,
)


@given(st.integers(1, 5 * BLOCK), CALLS, st.lists(st.integers(0, 10**6), max_size=2), PLACES)
def test_both_say_the_same_of_any_bytes(
    length: int, calls: list[Any], bits: list[int], place: int
) -> None:
    built, frame = payload_of(bytes(length))
    data, start = built.data, frame.payload_offset
    for bit in bits:
        data = flip(data, 8 * start + bit % (8 * length))
    checks = payload_checks(memoryview(built.data), frame)
    ours, pure = (Blocks(frame, checks, "segments/x.seg") for _ in range(2))
    whole = memoryview(data)
    call: tuple[str, tuple[Any, ...]]
    for kind, one, other in calls:
        if kind == "touch":  # beyond the end as well
            low, high = sorted((start + one, start + other))
            begin = ours.span(low, high)[0]
            begin -= begin % 7
            wanted = begin, whole[begin:]
            base, given_ = wanted if high <= start + length else (0, whole)
            call = "touch", (given_, low, high, "k", base)
        else:
            rows = np.array([row // one for row in other], np.int64)
            call = "touch_rows", (whole, start + place % length, one, rows, "k")
        found = outcome_of(lambda: getattr(ours, call[0])(*call[1]))  # noqa: B023 - called at once
        with native.switched_off():
            assert outcome_of(lambda: getattr(pure, call[0])(*call[1])) == found  # noqa: B023
        for block, mark in enumerate(ours._done):
            part = data[start + block * BLOCK :][: min(BLOCK, length - block * BLOCK)]
            assert not mark or block_checks((part,), 30) == checks[8 * block : 8 * block + 8]
        assert not [1 for mine, other in zip(ours._done, pure._done, strict=True) if mine < other]


def verified(whole: bytes, **changes: Any) -> Any:
    """One call over a payload of bytes 100 onwards of a file."""
    checks = block_checks((whole[100:],), 12)
    count = len(checks) // 8
    known: dict[str, Any] = {
        "data": whole,
        "base": 0,
        "start": 100,
        "stop": len(whole),
        "log2": 12,
        "checks": checks,
        "done": bytearray(count),
        "first": 0,
        "last": count - 1,
        "rows": None,
        "width": 0,
    }
    return twin.verify_blocks(*(known | changes).values())


def test_what_is_not_plain_is_not_its() -> None:
    data = np.random.default_rng(3).bytes(100 + 3 * BLOCK + 17)
    rows = np.array([0, 5, 40], np.int64)
    assert verified(data) is True
    assert verified(data, rows=rows, width=300) is True
    changes: list[dict[str, Any]] = [
        {"base": 101},
        {"base": -1},
        {"data": data[:-1]},
        {"start": 101},
        {"start": -1},
        {"stop": len(data) + BLOCK},
        {"stop": 100},
        {"log2": 11},
        {"log2": 63},
        {"log2": -1},
        {"first": -1},
        {"last": 4},
        {"checks": b"12345678"},
        {"done": bytearray(3)},
        {"rows": rows - 1, "width": 300},
        {"rows": rows, "width": 0},
        {"rows": rows, "width": -300},
        {"rows": rows, "width": 310},
        {"rows": rows, "width": 1 << 40},
        {"rows": rows, "width": 300, "first": 3 * BLOCK},
        {"rows": rows + (1 << 62), "width": 300},
        {"rows": np.arange(8)[::2], "width": 300},
        {"data": np.frombuffer(data, np.uint8)[::2]},
    ]
    for change in changes:
        assert verified(data, **change) is None, change


def test_what_was_verified_before_is_not_read() -> None:
    """It may not even be there: a piece of the file was given."""
    data = bytes(100 + 3 * BLOCK)
    done = bytearray(b"\1\1\0")
    checks, first = block_checks((data[100:],), 12), 2
    known = (data[100 + 2 * BLOCK :], 100 + 2 * BLOCK, 100, len(data), 12, checks, done)
    assert twin.verify_blocks(*known[:-1], bytearray(3), first - 1, 2) is None
    assert twin.verify_blocks(*known, first - 1, 2) is True
    assert done == b"\1\1\1"


def test_threads_verify_the_same_blocks_at_once() -> None:
    data = np.random.default_rng(4).bytes(100 + 500 * BLOCK)
    checks, done = block_checks((data[100:],), 12), bytearray(500)
    answers: list[Any] = []

    def verify(first: int) -> None:
        known = (data, 0, 100, len(data), 12, checks, done)
        answers.append(twin.verify_blocks(*known, first, 499))

    threads = [threading.Thread(target=verify, args=(first,)) for first in (0, 100, 0, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4
    assert done == b"\1" * 500
