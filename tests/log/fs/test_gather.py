"""Gathered writes: the bytes of any buffers come out once, in order, in small groups."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.fs.gather import IOV_MAX, byte_count, groups, skip
from mldb.log.fs.protocol import Buffer

buffers = st.lists(
    st.binary(max_size=40)
    | st.binary(max_size=40).map(bytearray)
    | st.lists(st.integers(0, 2**32 - 1), max_size=9).map(
        lambda items: memoryview(np.array(items, "u4").data)
    )
    | st.sampled_from([(2, 3), (0, 3)]).map(lambda shape: np.ones(shape, "f8").data),
    max_size=8,
)


def joined(parts: list[Buffer]) -> bytes:
    return b"".join(bytes(part) for part in parts)


@given(buffers, st.integers(1, 50))
def test_groups_hold_all_bytes_in_order_and_none_is_larger_than_a_step(
    parts: list[Buffer], step: int
) -> None:
    found = groups(parts, step)
    assert b"".join(map(joined, found)) == joined(parts)
    assert all(0 < sum(map(len, group)) <= step for group in found)
    assert all(sum(map(len, group)) == step for group in found[:-1])


@given(buffers, st.integers(0, 400))
def test_what_is_left_of_a_group_is_all_but_its_first_bytes(parts: list[Buffer], done: int) -> None:
    for group in groups(parts, 1 << 20):
        assert joined(skip(group, done)) == joined(group)[done:]


@given(buffers)
def test_bytes_are_counted_and_not_items(parts: list[Buffer]) -> None:
    assert byte_count(parts) == sum(len(bytes(part)) for part in parts)


def test_no_group_has_more_parts_than_the_kernel_takes() -> None:
    parts: list[Buffer] = [b"x"] * (2 * IOV_MAX + 3)
    assert [len(group) for group in groups(parts, 1 << 20)] == [IOV_MAX, IOV_MAX, 3]
