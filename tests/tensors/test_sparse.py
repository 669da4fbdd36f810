"""Sparse tensors: every layout comes back as given, damaged indices never reach native code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError
from mldb.tensors.codec import (
    Prepared,
    prepare,
    rebuild,
    unpack_descriptor,
)


def joined(prepared: Prepared) -> bytearray:
    """The payload as it would lie on disk, in memory of its own."""
    return bytearray(b"".join(prepared.buffers))


def scipy_matrix(rng: np.random.Generator, layout: str, kind: str) -> Any:
    dense = rng.random((6, 8)) * (rng.random((6, 8)) < 0.3)
    coo = getattr(sp, f"coo_{kind}")(dense)
    return coo.asformat(layout)


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_scipy_comes_back_in_the_layout_given(
    rng: np.random.Generator, layout: str, kind: str
) -> None:
    matrix = scipy_matrix(rng, layout, kind)
    prepared = prepare(matrix)
    descriptor = unpack_descriptor(prepared.attr)
    assert descriptor == prepared.descriptor
    assert all(part.offset % 64 == 0 for part in descriptor.components)
    for buffer in (joined(prepared), bytes(joined(prepared))):
        back = rebuild(descriptor, buffer)
        assert type(back) is type(matrix)
        assert (back.shape, back.dtype) == (matrix.shape, matrix.dtype)
        np.testing.assert_array_equal(back.toarray(), matrix.toarray())
        back[0, 0] if layout in ("csr", "csc", "lil", "dok") else back.tocsr().sum_duplicates()


def test_scipy_keeps_index_width_order_duplicates_and_explicit_zeros() -> None:
    columns = np.array([3, 1, 1, 0], np.int64)
    pointers = np.array([0, 3, 4], np.int64)
    matrix = sp.csr_array((np.array([0.0, 2, -0.0, 4]), columns, pointers), shape=(2, 4))
    back = rebuild(prepare(matrix).descriptor, joined(prepare(matrix)))
    for name in ("data", "indices", "indptr"):
        assert getattr(back, name).dtype == getattr(matrix, name).dtype
        assert getattr(back, name).tobytes() == getattr(matrix, name).tobytes()
    assert not prepare(matrix).owned
    line = sp.coo_array((np.array([1, 2], np.int8), (np.array([4, 0]),)), shape=(6,))
    cube = sp.coo_array(np.arange(8).reshape(2, 2, 2))
    for sparse in (line, cube):
        again = rebuild(prepare(sparse).descriptor, joined(prepare(sparse)))
        assert again.shape == sparse.shape
        np.testing.assert_array_equal(again.toarray(), sparse.toarray())


def checked_coo(indices: torch.Tensor, values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)


def torch_sparse(layout: str) -> torch.Tensor:
    dense = torch.tensor([[0.0, 2, 0, 0], [1, 0, 0, -0.0], [0, 0, 0, 7], [0, 0, 3, 0]])
    if layout == "coo":
        values = torch.tensor([1.0, 2.0, 3.0])
        return checked_coo(torch.tensor([[2, 0, 2], [1, 1, 1]]), values, (4, 4))
    if layout in ("bsr", "bsc"):
        return getattr(dense, f"to_sparse_{layout}")((2, 2))  # type: ignore[no-any-return]
    if layout == "hybrid":
        return checked_coo(torch.tensor([[1, 3]]), torch.ones(2, 5).bfloat16(), (4, 5))
    if layout == "coalesced":
        return dense.to_sparse().coalesce()
    if layout == "batched":
        return torch.stack([dense, dense.flip(0)]).to_sparse_csr()
    return getattr(dense, f"to_sparse_{layout}")()  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.parametrize(
    "layout", ["coo", "coalesced", "hybrid", "csr", "csc", "bsr", "bsc", "batched"]
)
def test_torch_sparse_comes_back_in_the_layout_given(layout: str) -> None:
    tensor = torch_sparse(layout).requires_grad_(layout == "coo")
    prepared = prepare(tensor)
    assert not prepared.owned
    for buffer in (joined(prepared), bytes(joined(prepared))):
        back = rebuild(unpack_descriptor(prepared.attr), buffer)
        assert (back.layout, back.dtype, back.shape) == (tensor.layout, tensor.dtype, tensor.shape)
        assert joined(prepare(back)) == joined(prepared)
        if tensor.layout is torch.sparse_coo:
            assert back.is_coalesced() == tensor.is_coalesced()


def test_empty_sparse_tensors_come_back() -> None:
    for sparse in (sp.csr_array((3, 0)), sp.coo_array((0, 4)), sp.dia_array((2, 2))):
        prepared = prepare(sparse)
        assert rebuild(prepared.descriptor, joined(prepared)).shape == sparse.shape
    empty = torch.zeros(0, 3).to_sparse()
    assert rebuild(prepare(empty).descriptor, joined(prepare(empty))).shape == (0, 3)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@given(st.data())
def test_damaged_index_arrays_give_corrupt_or_a_usable_tensor(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["scipy csr", "scipy coo", "scipy bsr", "scipy dia", "csr"]))
    sparse: Any
    if layout == "csr":
        sparse = torch_sparse("csr")
    else:
        sparse = sp.eye_array(6, format=layout.split()[1])
    prepared = prepare(sparse)
    payload = joined(prepared)
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] = data.draw(st.integers(0, 255))
    try:
        back = rebuild(prepared.descriptor, payload)
    except CorruptError:
        return
    dense = back.to_dense() if layout == "csr" else back.toarray()
    assert tuple(dense.shape) == tuple(sparse.shape)
