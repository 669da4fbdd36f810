"""Dense tensors to bytes and back, bit for bit and without a copy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mldb.errors import CorruptError, InvalidTypeError, InvalidValueError
from mldb.tensors.codec import (
    Descriptor,
    Prepared,
    dense_descriptor,
    pack_descriptor,
    prepare,
    rebuild,
    unpack_descriptor,
    view_numpy,
    view_torch,
)

ML_TYPES = [
    np.dtype(getattr(ml_dtypes, name))
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and name not in ("finfo", "iinfo")
]
DTYPES = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.unsigned_integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | hnp.complex_number_dtypes(endianness="?", sizes=(64, 128))
    | hnp.datetime64_dtypes(endianness="?")
    | hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=5)
    | st.sampled_from(ML_TYPES)
)
TORCH_DTYPES = [
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.bool),
    *(torch.float16, torch.float32, torch.float64, torch.bfloat16),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of any stored dtype and any bits, some of them strided, transposed or read-only."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind == "U":
        array = np.full(shape, draw(st.text(st.characters(codec="utf-8"), max_size=5)), dtype)
    else:
        data = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = data & 1 if dtype.kind == "b" else data
    if array.ndim and draw(st.booleans()):
        steps = draw(
            st.lists(st.sampled_from([1, 2, -1]), min_size=array.ndim, max_size=array.ndim)
        )
        array = array[tuple(slice(None, None, step) for step in steps)]
    if draw(st.booleans()):
        array = array.T
    array.flags.writeable = draw(st.booleans())
    return array


def joined(prepared: Prepared) -> bytearray:
    """The payload as it would lie on disk, in memory of its own."""
    data = bytearray(b"".join(prepared.buffers))
    assert len(data) == prepared.nbytes == prepared.descriptor.nbytes
    return data


def raw(array: np.ndarray[Any, Any]) -> bytes:
    return array.tobytes()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@given(arrays())
def test_every_array_comes_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    prepared = prepare(array)
    descriptor = unpack_descriptor(prepared.attr)
    assert descriptor == prepared.descriptor
    assert descriptor.itemsize == array.dtype.itemsize
    back = view_numpy(descriptor, joined(prepared))
    assert back.dtype == array.dtype
    assert back.dtype.byteorder == array.dtype.byteorder
    assert back.shape == array.shape
    assert raw(back) == raw(array)
    assert rebuild(descriptor, bytes(joined(prepared))).tobytes() == raw(array)


@given(arrays())
def test_contiguous_arrays_are_not_copied(array: np.ndarray[Any, Any]) -> None:
    prepared = prepare(array)
    (buffer,) = prepared.buffers
    assert isinstance(buffer, memoryview)
    assert (buffer.ndim, buffer.format, buffer.itemsize) == (1, "B", 1)
    assert prepared.owned is not array.flags.c_contiguous
    if array.size:
        seen = np.frombuffer(buffer, np.uint8)
        assert np.shares_memory(seen, array) is array.flags.c_contiguous


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@given(st.sampled_from(TORCH_DTYPES), SHAPES, st.booleans(), st.integers(0, 2**32 - 1))
def test_every_tensor_comes_back_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, ...], transposed: bool, seed: int
) -> None:
    size = math.prod(shape) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    if dtype is torch.bool:
        data &= 1
    tensor = torch.empty(shape, dtype=dtype)
    tensor.reshape(-1).view(torch.uint8)[:] = torch.from_numpy(data)
    # torch cannot copy packed fp4 into another order.
    tensor = tensor.mT if transposed and len(shape) > 1 and dtype.itemsize > 1 else tensor
    prepared = prepare(tensor)
    assert prepared.descriptor.framework == "torch"
    assert prepared.owned is not tensor.is_contiguous()
    back = view_torch(unpack_descriptor(prepared.attr), joined(prepared))
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert tensor_bytes(back) == tensor_bytes(tensor)
    assert raw(view_numpy(prepared.descriptor, joined(prepared))) == tensor_bytes(tensor)
    again = rebuild(prepared.descriptor, bytes(joined(prepared)))
    assert tensor_bytes(again) == tensor_bytes(tensor)
    # The tensor has memory of its own, or this write would end the process.
    again.reshape(-1).view(torch.uint8).fill_(1)


def test_tensors_alias_their_memory_and_views_their_buffer() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.zeros(4, dtype=dtype)
        prepared = prepare(tensor)
        data = joined(prepared)
        view = view_torch(prepared.descriptor, data)
        tensor.fill_(1)
        assert bytes(prepared.buffers[0]) == tensor_bytes(tensor) != bytes(data)
        data[:] = prepared.buffers[0]
        assert torch.equal(view, tensor)


def test_gradients_views_and_lazy_bits_do_not_matter() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    number = torch.complex(torch.ones(2), torch.full((2,), 3.0))
    cases = [
        (parameter, False),
        (parameter * 2, False),
        (parameter.detach().T, True),
        (torch.ones(1, 3).expand(2, 3), True),
        (number.conj(), True),
        (number.conj().imag, True),
        (torch._neg_view(torch.ones(3)), True),
        (parameter.detach().to_mkldnn(), True),
    ]
    for tensor, owned in cases:
        prepared = prepare(tensor)
        assert prepared.owned is owned
        dense = tensor.detach().to_dense() if tensor.is_mkldnn else tensor.detach()
        expected = dense.resolve_conj().resolve_neg()
        assert torch.equal(view_torch(prepared.descriptor, joined(prepared)), expected)


class OnlyArray:
    """Offers ``__array__`` alone, as the arrays of other libraries do."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.arange(3.0)


class OnlyDlpack:
    """Offers DLPack alone."""

    def __init__(self) -> None:
        self._array = np.arange(4, dtype=np.int16)

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (3, np.array(3)),
        (2.5, np.array(2.5)),
        (True, np.array(True)),
        (1 + 2j, np.array(1 + 2j)),
        (2**63, np.array(2**63, np.uint64)),
        (np.float16(1.5), np.array(1.5, np.float16)),
        (ml_dtypes.bfloat16(1.5), np.array(1.5, ml_dtypes.bfloat16)),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ((1.0, 2), np.array([1.0, 2.0])),
        ([], np.array([])),
        (b"ab\x00", np.array([97, 98, 0], np.uint8)),
        (bytearray(b"\x80"), np.array([128], np.uint8)),
        (np.arange(3, dtype=np.int16).data, np.arange(3, dtype=np.int16)),
        (OnlyArray(), np.arange(3.0)),
        (OnlyDlpack(), np.arange(4, dtype=np.int16)),
        (np.arange(6).reshape(2, 3).view(np.memmap), np.arange(6).reshape(2, 3)),
    ],
)
def test_other_values_are_read_as_arrays(data: object, expected: np.ndarray[Any, Any]) -> None:
    prepared = prepare(data)
    back = view_numpy(prepared.descriptor, joined(prepared))
    assert back.dtype == expected.dtype
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text", "metadata"),
        (None, "not a tensor"),
        ({}, "not a tensor"),
        (object(), "not a tensor"),
        (np.float32, "would need pickle, which mldb never loads"),
        ([None], "would need pickle, which mldb never loads"),
        ([1, [2, 3]], "rectangular"),
        (["a"], "only lists of numbers"),
        (2**70, "would need pickle, which mldb never loads"),
        (np.array([{}], object), "would need pickle, which mldb never loads"),
        (np.zeros(2, [("a", "i4")]), "store each field"),
        (np.ma.masked_array(np.ones(2), np.ones(2, bool)), "lose its mask"),
        (torch.empty(2, device="meta"), "gave no bytes"),
        (torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "torch.bits8 is not stored"),
    ],
)
def test_what_is_no_tensor_is_refused_with_a_remedy(data: object, words: str) -> None:
    with pytest.raises(InvalidTypeError, match=words):
        prepare(data)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(InvalidTypeError, match="each part"):
        prepare(nested)


def test_views_check_the_buffer() -> None:
    descriptor = dense_descriptor((2, 3), "<f4")
    with pytest.raises(CorruptError, match="23 bytes instead of 24"):
        view_numpy(descriptor, bytes(23))
    with pytest.raises(CorruptError, match="25 bytes instead of 24"):
        view_torch(descriptor, bytearray(25))
    with pytest.raises(InvalidValueError, match="writable buffer of its own"):
        view_torch(descriptor, memoryview(bytes(24)))
    assert not view_numpy(descriptor, bytes(24)).flags.writeable
    assert view_numpy(descriptor, bytearray(24)).flags.writeable
    sparse = prepare(sp.eye_array(3, format="csr")).descriptor
    with pytest.raises(InvalidTypeError, match="sparse"):
        view_numpy(sparse, bytes(sparse.nbytes))
    with pytest.raises(CorruptError, match="bytes instead of"):
        rebuild(sparse, bytes(3))


def test_torch_gets_big_endian_data_in_native_order() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    prepared = prepare(array)
    tensor = view_torch(prepared.descriptor, joined(prepared))
    assert tensor.dtype is torch.int32
    np.testing.assert_array_equal(tensor.numpy(), array)
    for text in (np.zeros(2, ">U3"), np.zeros(2, ">M8[s]")):
        with pytest.raises(InvalidTypeError, match="torch has no dtype"):
            view_torch(prepare(text).descriptor, joined(prepare(text)))


class Hot(NamedTuple):
    """The values that the hot paths meet: one 4 KiB array, prepared before."""

    array: np.ndarray[Any, Any]
    descriptor: Descriptor
    attr: bytes
    payload: memoryview


@pytest.fixture
def hot() -> Hot:
    array = np.zeros((32, 32), np.float32)
    prepared = prepare(array)
    return Hot(array, prepared.descriptor, prepared.attr, memoryview(joined(prepared)))


@pytest.mark.bench
def test_bench_prepare(benchmark: Any, hot: Hot) -> None:
    assert benchmark(prepare, hot.array).nbytes == 4096


@pytest.mark.bench
def test_bench_pack_descriptor(benchmark: Any, hot: Hot) -> None:
    assert benchmark(pack_descriptor, hot.descriptor) == hot.attr


@pytest.mark.bench
def test_bench_view_numpy(benchmark: Any, hot: Hot) -> None:
    assert benchmark(view_numpy, hot.descriptor, hot.payload).nbytes == 4096
