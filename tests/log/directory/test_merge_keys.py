"""Merged keys are those of a set, sorted as bytes, whatever the keys and however they are cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.directory import key_records
from mldb.log.directory.key_records import KeyList, merge_lists
from mldb.log.directory.merge_keys import merge_keys
from mldb.log.index.columns import pack_heap
from tests.support.parts import examples


def key_list(keys: Sequence[bytes]) -> KeyList:
    """The columns of these keys, as they stand."""
    return KeyList(*pack_heap(keys))


def check_merged(lists: Sequence[Sequence[bytes]], range_cost: int) -> None:
    """Merge these, each sorted, and compare with Python's set and sort."""
    found = merge_keys([key_list(keys) for keys in lists], range_cost=range_cost)
    expected = sorted(set().union(*lists))
    offsets, heap = pack_heap(expected)
    assert (found.keys.offsets.dtype, found.keys.heap.dtype) == (offsets.dtype, heap.dtype)
    assert found.keys.offsets.tolist() == offsets.tolist()
    assert found.keys.heap.tobytes() == heap.tobytes()
    for keys, numbers in zip(lists, found.numbers, strict=True):
        assert numbers.dtype == np.dtype("<u4")
        assert [expected[number] for number in numbers] == list(keys)


# Few different bytes and many beginnings in common: keys that begin others, NULs at ends, and
# keys about as long as a record and far longer.
_ends = st.binary(max_size=3).map(lambda data: bytes(b"\0\1a\xff"[byte & 3] for byte in data))
_bodies = st.sampled_from([b"", b"\0", b"\0" * 20, b"run", b"\xff" * 18, b"k" * 253, b"k" * 900])
KEYS = st.builds(lambda body, first, second: first + body + second, _bodies, _ends, _ends)
LISTS = st.lists(st.lists(KEYS, max_size=30, unique=True).map(sorted), min_size=1, max_size=5)


@given(LISTS, st.sampled_from([1, 200, 4000, 1 << 20]), st.booleans())
@examples(400)
@example([[b"a", b"a\0"], [b"a\0", b"a\0\0"], [b"", b"\0"]], 1 << 20, True)
@example([[b"k" * 300 + b"a", b"k" * 300 + b"c"], [b"k" * 254, b"k" * 255, b"k" * 300]], 1, True)
def test_merged_keys_are_those_of_a_sorted_set(
    lists: list[list[bytes]], range_cost: int, by_numpy: bool
) -> None:
    with mock.patch.object(key_records, "_FEW", 0 if by_numpy else 1 << 30):
        check_merged(lists, range_cost)
        check_merged([lists[0], *lists], range_cost)


@given(st.integers(0, 2**32), st.sampled_from([1 << 12, 1 << 16, 1 << 20]))
@examples(10)
def test_thousands_of_names_are_merged_alike(seed: int, range_cost: int) -> None:
    rng = np.random.default_rng(seed)
    lists = []
    for run in range(4):
        own = [f"run{run}/layer{n}".encode() for n in rng.integers(0, 5000, 800)]
        common = [f"layer{n}/weight".encode() for n in rng.integers(0, 900, 700)]
        loud = [bytes(rng.integers(0, 256, rng.integers(0, 40), "u1")) for _ in range(100)]
        lists.append(sorted({*own, *common, *loud}))
    check_merged(lists, range_cost)


def test_a_range_holds_no_more_than_it_may() -> None:
    """A step of thousands of lists, or of long keys, is as long as one of two lists."""
    rng = np.random.default_rng(9)
    for count, length in ((2, 10), (300, 10), (8, 1000)):
        lists = [
            sorted({b"%06d" % n + b"k" * length for n in rng.integers(0, 10**6, 40_000 // count)})
            for _ in range(count)
        ]
        sizes: list[int] = []

        def noted(parts: Sequence[KeyList], sizes: list[int] = sizes) -> key_records.MergedList:
            sizes.append(sum(int(part.sizes().sum()) + 48 * len(part) for part in parts))
            return merge_lists(parts)

        limit = 1 << 18
        with mock.patch("mldb.log.directory.merge_keys.merge_lists", noted):
            merge_keys([key_list(keys) for keys in lists], range_cost=limit)
        assert max(sizes) <= limit + count * (length + 54)
        assert len(sizes) <= 4 * sum(sizes) / limit + 1


def test_one_long_key_among_many_short_ones_makes_no_wide_table() -> None:
    short = [b"%08d" % number for number in range(20_000)]
    long = b"0" * fmt.KEY_BYTES_MAX
    lists = [key_list(sorted([*short[::2], long])), key_list(sorted([*short, long + b"1"]))]
    tracemalloc.start()
    merge_lists(lists)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000 * 300  # with records of the greatest width it is more than 500


def test_pauses_come_behind_every_range() -> None:
    lists = [key_list([b"%d %05d" % (own, n) for n in range(5000)]) for own in range(2)]
    pauses = []
    merge_keys(lists, lambda: pauses.append(0), range_cost=1 << 14)
    assert len(pauses) > 2 * 5000 * 55 / (1 << 14)


@pytest.mark.parametrize(
    ("by_numpy", "range_cost"), [(False, 1), (False, 150), (False, 1 << 20), (True, 1 << 20)]
)
def test_keys_that_do_not_ascend_are_refused(by_numpy: bool, range_cost: int) -> None:
    good = [b"b", b"d", b"f", b"h"]
    with mock.patch.object(key_records, "_FEW", 0 if by_numpy else 1 << 30):
        for bad in ([b"c", b"a"], [b"f", b"f"], [b"a", b"z", b"c", b"d"], [b"z", b"a", b"e"]):
            with pytest.raises(CorruptError, match="ascend"):
                merge_keys([key_list(good), key_list(bad), key_list([])], range_cost=range_cost)


def test_a_list_that_comes_again_is_not_merged_again() -> None:
    lists = [key_list([b"a", b"b"]), key_list([b"a", b"b"])]
    with mock.patch("mldb.log.directory.merge_keys.merge_lists", side_effect=AssertionError):
        found = merge_keys(lists)
    assert [own.tolist() for own in found.numbers] == [[0, 1], [0, 1]]
    assert [found.keys[number] for number in range(2)] == [b"a", b"b"]
    assert all(low < high for low, high in pairwise(found.keys.items()))
