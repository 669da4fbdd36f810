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

from mldb.errors import (
    CorruptError,
    FormatVersionError,
    InvalidTypeError,
    InvalidValueError,
    LimitError,
)
from mldb.tensors.codec import (
    Component,
    Descriptor,
    dense_descriptor,
    pack_descriptor,
    prepare,
    unpack_descriptor,
)
from mldb.tensors.descriptor import DESCRIPTOR_VERSION


@given(st.binary(max_size=60))
def test_hostile_descriptors_give_only_corrupt(data: bytes) -> None:
    try:
        descriptor = unpack_descriptor(data)
    except CorruptError:
        return
    except FormatVersionError:
        assert msgpack.unpackb(data)[0] > DESCRIPTOR_VERSION
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
    except FormatVersionError:
        assert fields[0] > DESCRIPTOR_VERSION
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
        unpack_descriptor(msgpack.packb(fields))  # version 1
    if fields not in ONLY_IN_VERSION_1:
        with pytest.raises(CorruptError):
            unpack_descriptor(msgpack.packb([2, *fields]))


# Version 1 had no place for what is the default anyway; nobody wrote these.
ONLY_IN_VERSION_1 = (["<f4", [2], "numpy"], ["<f4", [2], "torch", "dense", "", []])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [2],
        [2, "<f4"],
        [1, "<f4", [2]],
        [0, "<f4", [2]],
        [-1, "<f4", [2]],
        [True, "<f4", [2]],
        [2.0, "<f4", [2]],
        [None, "<f4", [2]],
        [[2], "<f4", [2]],
        [2, "<f4", [2], "jax"],
        [2, "<f4", [2], "scipy"],
        [2, "<f4", [2], "torch", "dense", "coalesced"],
        [2, "<f4", [2], "torch", "dense", "", [["values", "<f4", [2], 0]]],
        [2, "<f4", [2], "torch", "dense", 0, []],
        [2, "<f4", [2], "torch", "coo", ""],
    ],
)
def test_what_is_of_no_version_is_corrupt(fields: list[Any]) -> None:
    with pytest.raises(CorruptError):
        unpack_descriptor(msgpack.packb(fields))


# --- versions -------------------------------------------------------------------------------------

EXAMPLES: dict[str, Any] = {
    "numpy": np.zeros((2, 3)),
    "torch": torch.zeros(4),
    "scalar": np.float32(1),
    "scipy": sp.eye_array(3, format="csr"),
    "torch sparse": torch.eye(3).to_sparse(),
}


def test_the_bytes_of_a_descriptor_are_these() -> None:
    assert pack_descriptor(Descriptor("<f4", (2,))) == b"\x93\x02\xa3<f4\x91\x02"
    of_torch = Descriptor("<f4", (2,), framework="torch")
    assert pack_descriptor(of_torch) == b"\x94\x02\xa3<f4\x91\x02\xa5torch"


@pytest.mark.parametrize("value", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_both_versions_of_a_descriptor_mean_the_same(value: Any) -> None:
    prepared = prepare(value)
    version, *fields = msgpack.unpackb(prepared.attr)
    assert version == DESCRIPTOR_VERSION == 2
    old = unpack_descriptor(msgpack.packb(fields))
    assert old == unpack_descriptor(prepared.attr) == prepared.descriptor
    assert hash(old) == hash(prepared.descriptor)
    assert (old.nbytes, old.itemsize) == (prepared.nbytes, prepared.descriptor.itemsize)
    assert pack_descriptor(old) == prepared.attr  # what is written is of the new version


@pytest.mark.parametrize("value", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_what_a_newer_version_adds_at_the_end_is_read_over(value: Any) -> None:
    prepared = prepare(value)
    fields = msgpack.unpackb(prepared.attr)
    defaults: list[Any] = [None, None, None, "numpy", "dense", "", []]
    fields += defaults[len(fields) :]
    assert unpack_descriptor(msgpack.packb(fields)) == prepared.descriptor
    for component in fields[6]:
        component.append({"more": 1})
    more = msgpack.packb([*fields, "more", {1: [msgpack.ExtType(5, b"x")]}])
    assert unpack_descriptor(more) == prepared.descriptor


@pytest.mark.parametrize("fields", [[3], [3, "<f4", [2]], [200, {"shape": 1}, {}], [2**40, []]])
def test_a_descriptor_of_a_higher_version_asks_for_a_newer_mldb(fields: list[Any]) -> None:
    with pytest.raises(FormatVersionError, match=rf"version {fields[0]};.*up to 2\..*newer mldb"):
        unpack_descriptor(msgpack.packb(fields))


def test_a_shape_is_checked_before_anything_is_allocated() -> None:
    with pytest.raises(LimitError, match=r"2\*\*63"):
        dense_descriptor((2**40, 2**40), "<f4")
    with pytest.raises(LimitError, match="negative"):
        dense_descriptor((3, -1), "<f4")
    with pytest.raises(LimitError, match="65 axes"):
        dense_descriptor((1,) * 65, "<f4")
    with pytest.raises(InvalidTypeError, match="sequence of integers"):
        dense_descriptor((1.5,), "<f4")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="dtype code"):
        dense_descriptor((1,), "O")
    descriptor = dense_descriptor(np.array([2, 3]), "<f4")  # type: ignore[arg-type]
    assert descriptor == Descriptor("<f4", (2, 3))
    assert (descriptor.nbytes, descriptor.itemsize) == (24, 4)
    assert Component("values", "<i8", (2, 2), 64).nbytes == 32


def test_a_dense_descriptor_is_small_and_remembered() -> None:
    first, second = prepare(np.zeros((32, 32), np.float32)), prepare(np.ones((32, 32), np.float32))
    assert first.attr is second.attr
    assert first.descriptor is second.descriptor
    assert len(first.attr) <= 16
    assert unpack_descriptor(first.attr) is unpack_descriptor(bytes(bytearray(first.attr)))
