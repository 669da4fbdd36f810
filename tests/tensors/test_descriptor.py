"""Descriptors: small, remembered, and checked in every field when they come from disk."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, InvalidTypeError, InvalidValueError, LimitError
from mldb.tensors.codec import (
    Component,
    Descriptor,
    describe,
    pack_descriptor,
    prepare,
    unpack_descriptor,
)


@given(st.binary(max_size=60))
def test_hostile_descriptors_give_only_corrupt(data: bytes) -> None:
    try:
        descriptor = unpack_descriptor(data)
    except CorruptError:
        return
    assert unpack_descriptor(pack_descriptor(descriptor)) == descriptor


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.data())
def test_descriptors_with_one_changed_field_give_corrupt_or_a_descriptor(
    data: st.DataObject,
) -> None:
    given_: Any = data.draw(
        st.sampled_from([np.zeros((2, 3)), torch.zeros(4), sp.eye_array(3, format="csr")])
    )
    fields = msgpack.unpackb(prepare(given_).attr)
    target: Any = fields
    while True:
        place = data.draw(st.integers(0, len(target) - 1))
        if not isinstance(target[place], list) or not target[place] or data.draw(st.booleans()):
            break
        target = target[place]
    target[place] = data.draw(PLAIN | st.sampled_from(["torch", "csr", "<i4", 64, 2**62, -1]))
    try:
        descriptor = unpack_descriptor(msgpack.packb(fields))
    except CorruptError:
        return
    assert 0 <= descriptor.nbytes < 2**63
    end = 0
    for part in descriptor.components:
        assert part.offset >= end
        end = part.offset + part.nbytes
    assert end in (0, descriptor.nbytes)


@pytest.mark.parametrize(
    "fields",
    [
        ["<f4", [2**62, 4]],
        ["<f4", [0, 2**62, 2**62]],
        ["<f4", [-1]],
        ["<f4", [True]],
        ["<f4", [1] * 65],
        ["<f4", [1.0]],
        ["O", [1]],
        ["<f4", [2], "numpy"],
        ["<f4", [2], "torch", "dense", "", []],
        ["<f4", [2, 2], "torch", "coo", "", [["indices", "<i8", [2, 1], 0]]],
        ["<f4", [2], "scipy", "dia", "", [["offsets", "<i4", [1], 0], ["data", "<f4", [1], 64]]],
        [
            "<f4",
            [2],
            "scipy",
            "dia",
            "array",
            [["offsets", "<i4", [1], 0], ["data", "<f4", [1], 8]],
        ],
        [
            "<f8",
            [2],
            "scipy",
            "dia",
            "array",
            [["offsets", "<i4", [1], 0], ["data", "<f4", [1], 64]],
        ],
        [
            "<f4",
            [2],
            "scipy",
            "dia",
            "array",
            [["offsets", "<i4", [1], 0], ["data", "<f4", [1], 0]],
        ],
    ],
)
def test_impossible_descriptors_are_corrupt(fields: list[Any]) -> None:
    with pytest.raises(CorruptError):
        unpack_descriptor(msgpack.packb(fields))


def test_a_shape_is_checked_before_anything_is_allocated() -> None:
    with pytest.raises(LimitError, match=r"2\*\*63"):
        describe((2**40, 2**40), "<f4")
    with pytest.raises(LimitError, match="negative"):
        describe((3, -1), "<f4")
    with pytest.raises(LimitError, match="65 axes"):
        describe((1,) * 65, "<f4")
    with pytest.raises(InvalidTypeError, match="sequence of integers"):
        describe((1.5,), "<f4")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="dtype code"):
        describe((1,), "O")
    descriptor = describe(np.array([2, 3]), "<f4")  # type: ignore[arg-type]
    assert descriptor == Descriptor("<f4", (2, 3))
    assert (descriptor.nbytes, descriptor.itemsize) == (24, 4)
    assert Component("values", "<i8", (2, 2), 64).nbytes == 32


def test_a_dense_descriptor_is_small_and_remembered() -> None:
    first, second = prepare(np.zeros((32, 32), np.float32)), prepare(np.ones((32, 32), np.float32))
    assert first.attr is second.attr
    assert first.descriptor is second.descriptor
    assert len(first.attr) <= 16
    assert unpack_descriptor(first.attr) is unpack_descriptor(bytes(bytearray(first.attr)))
