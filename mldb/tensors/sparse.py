"""Sparse tensors taken apart into dense parts and put together again, in the layout given.

Nothing is converted on the way, so explicit zeros, duplicates, the order of entries and the index
width come back as they were. The two SciPy formats made of Python objects (``lil``, ``dok``) travel
as coordinates and are turned back into their format.

Index arrays come from disk and native code trusts them, so every join checks them against the
shape.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError, InvalidTypeError, UsageError
from mldb.tensors.descriptor import Descriptor, part_names

if TYPE_CHECKING:
    import torch

_SCIPY_NATIVE = ("csr", "csc", "bsr", "coo", "dia")
_SCIPY_OBJECTS = ("lil", "dok")


class Parts(NamedTuple):
    """A sparse tensor taken apart: dense ``arrays`` in the order of ``names``, the values last."""

    layout: str
    variant: str
    names: tuple[str, ...]
    arrays: tuple[Any, ...]


def is_scipy_sparse(data: object) -> bool:
    """Tell whether *data* is a SciPy sparse matrix or array, without importing SciPy."""
    module = sys.modules.get("scipy.sparse")
    return module is not None and bool(module.issparse(data))


def split_scipy(matrix: Any) -> Parts:
    """Return the parts of a SciPy sparse matrix or array; they alias it where its format allows."""
    import scipy.sparse

    layout = str(matrix.format)
    variant = "array" if isinstance(matrix, scipy.sparse.sparray) else "matrix"
    if layout in _SCIPY_OBJECTS:
        matrix = matrix.tocoo()
    elif layout not in _SCIPY_NATIVE:
        raise InvalidTypeError(
            f"SciPy format {layout!r} is not stored. Convert it with tocsr() or tocoo()."
        )
    arrays: tuple[np.ndarray[Any, Any], ...]
    if matrix.format == "coo":
        arrays = (*matrix.coords, matrix.data)
    elif matrix.format == "dia":
        arrays = (matrix.offsets, matrix.data)
    else:
        arrays = (matrix.indptr, matrix.indices, matrix.data)
    return Parts(layout, variant, part_names("scipy", layout, len(matrix.shape)), arrays)


def join_scipy(descriptor: Descriptor, arrays: Sequence[np.ndarray[Any, Any]]) -> Any:
    """Return the SciPy object of *descriptor* over *arrays*, which it keeps where SciPy does.

    Raises CorruptError when the parts contradict the shape, UsageError when SciPy is not installed.
    """
    try:
        import scipy.sparse
    except ImportError as error:
        raise UsageError(
            "this tensor was stored as a SciPy sparse matrix and SciPy is not installed. Install "
            "it with: pip install scipy"
        ) from error
    layout = descriptor.layout
    native = "coo" if layout in _SCIPY_OBJECTS else layout
    kind = getattr(scipy.sparse, f"{native}_{descriptor.variant}")
    try:
        matrix = kind(_scipy_arguments(native, arrays), shape=descriptor.shape, copy=False)
        if native in ("csr", "csc", "bsr"):
            matrix.check_format(full_check=True)
        return matrix if native == layout else matrix.asformat(layout)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise _contradiction(descriptor, error) from error


def split_torch(tensor: torch.Tensor) -> Parts:
    """Return the parts of a sparse torch tensor; they alias it and carry no gradient."""
    import torch

    tensor = tensor.detach()
    layout = tensor.layout
    if layout is torch.sparse_coo:
        variant = "coalesced" if tensor.is_coalesced() else ""
        # The public accessors refuse a tensor that is not coalesced.
        return Parts("coo", variant, ("indices", "values"), (tensor._indices(), tensor._values()))
    name = str(layout).removeprefix("torch.sparse_")
    if layout in (torch.sparse_csr, torch.sparse_bsr):
        arrays = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif layout in (torch.sparse_csc, torch.sparse_bsc):
        arrays = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        raise InvalidTypeError(
            f"torch layout {layout} is not stored. Convert the tensor with to_dense()."
        )
    return Parts(name, "", part_names("torch", name, tensor.dim()), arrays)


def join_torch(descriptor: Descriptor, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sparse torch tensor of *descriptor* over *arrays*, which it keeps.

    Raises CorruptError when the parts contradict the shape. torch itself warns once per process
    that compressed layouts are in beta.
    """
    import torch

    try:
        if descriptor.layout == "coo":
            return torch.sparse_coo_tensor(
                arrays[0],
                arrays[1],
                descriptor.shape,
                device=arrays[1].device,  # not that of torch.set_default_device
                is_coalesced=descriptor.variant == "coalesced",
                check_invariants=True,
            )
        return torch.sparse_compressed_tensor(
            arrays[0],
            arrays[1],
            arrays[2],
            descriptor.shape,
            device=arrays[2].device,
            layout=getattr(torch, f"sparse_{descriptor.layout}"),
            check_invariants=True,
        )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise _contradiction(descriptor, error) from error


def _scipy_arguments(native: str, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Any, ...]:
    if native == "coo":
        return (arrays[-1], tuple(arrays[:-1]))
    if native == "dia":
        return (arrays[1], arrays[0])
    return (arrays[2], arrays[1], arrays[0])


def _contradiction(descriptor: Descriptor, error: Exception) -> CorruptError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return CorruptError(
        f"a stored {descriptor.framework} {descriptor.layout} tensor of shape {descriptor.shape} "
        f"has index arrays that contradict it: {reason}. Other tensors stay readable."
    )
