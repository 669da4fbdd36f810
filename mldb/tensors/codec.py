"""Tensors to bytes and back: the bytes are the tensor's own memory, in C order, and nothing else.

What the bytes mean is a :class:`~mldb.tensors.descriptor.Descriptor`. Sparse tensors are their
dense parts one after another, each at a multiple of 64 bytes, zeros between. Everything here is a
pure function and thread-safe; torch and SciPy are imported only where a value of theirs is met.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mldb.arrays import refuse_masks
from mldb.deferred import NamedTuple
from mldb.errors import InvalidTypeError, MldbError
from mldb.log.fs.protocol import Buffer
from mldb.tensors.decode import rebuild, view_numpy, view_torch
from mldb.tensors.descriptor import (
    COMPONENT_ALIGN,
    Component,
    Descriptor,
    dense_descriptor,
    pack_descriptor,
    unpack_descriptor,
)
from mldb.tensors.dtypes import code_of_torch, dtype_code
from mldb.tensors.metadata import pack_metadata, unpack_metadata
from mldb.tensors.refused import no_bytes
from mldb.tensors.sparse import Parts, is_scipy_sparse, split_scipy, split_torch

if TYPE_CHECKING:
    import torch

__all__ = [
    "Component",
    "Descriptor",
    "Prepared",
    "dense_descriptor",
    "pack_descriptor",
    "pack_metadata",
    "prepare",
    "prepare_named",
    "rebuild",
    "unpack_descriptor",
    "unpack_metadata",
    "view_numpy",
    "view_torch",
]

_ZEROS = memoryview(bytes(COMPONENT_ALIGN))
_EMPTY = memoryview(b"")
_CACHE_LIMIT = 8192
_NUMBER_KINDS = "biufc"


class Prepared(NamedTuple):
    """A value ready to be written: what it is, and its bytes in writing order.

    ``attr`` is the packed descriptor. ``buffers`` hold ``nbytes`` bytes together and keep their
    memory alive. ``owned`` tells that no memory of the caller is among them, so they cannot change.
    """

    descriptor: Descriptor
    attr: bytes
    buffers: tuple[Buffer, ...]
    nbytes: int
    owned: bool


make_prepared: Callable[[tuple[Descriptor, bytes, tuple[Buffer, ...], int, bool]], Prepared] = (
    partial(tuple.__new__, Prepared)
)
"""Make a Prepared of its fields in order, at half the cost of a call: once per tensor."""


_Dense = tuple[Descriptor, bytes, bool]
"""Of every dense tensor of one dtype and shape: what it is, its attr, and whether NumPy can export
such an array as a memoryview without a detour."""

# Keys are (NumPy or torch dtype, shape). Only ever read, added to or emptied as a whole.
known_arrays: dict[tuple[object, tuple[int, ...]], _Dense] = {}


def prepare(data: object) -> Prepared:
    """Return the bytes of *data*, from its own memory wherever that is C-contiguous on the host.

    Taken are NumPy arrays and scalars of any storable dtype (both byte orders, 0-d, empty,
    ml_dtypes), numbers and nested lists of them, bytes (as uint8), SciPy sparse, torch tensors of
    any strided or sparse layout and device, and what offers ``__array__`` or ``__dlpack__``.
    Raises InvalidTypeError for the rest, with the conversion to use; LimitError for a shape beyond
    the limits. Changes made to *data* later show in the buffers unless ``owned``.
    """
    if type(data) is np.ndarray:
        entry = known_arrays.get((data.dtype, data.shape))
        if entry is not None:
            descriptor, attr, exports = entry
            if exports and data.flags.c_contiguous:
                buffers = (data.data.cast("B"),)
                return make_prepared((descriptor, attr, buffers, descriptor.nbytes, False))
        return _prepare_array(data, owned=False)
    torch_module = sys.modules.get("torch")
    if torch_module is not None and isinstance(data, torch_module.Tensor):
        return _prepare_tensor(data, torch_module)
    if isinstance(data, np.ndarray):
        return _prepare_array(_plain_array(data), owned=False)
    if isinstance(data, np.generic | bool | int | float | complex):
        return _prepare_array(_as_array(data), owned=True)
    if isinstance(data, bytes | bytearray):
        return _prepare_array(np.frombuffer(data, np.uint8), owned=isinstance(data, bytes))
    if isinstance(data, list | tuple):
        return _prepare_array(_number_array(data), owned=True)
    if is_scipy_sparse(data):
        return _prepare_parts(split_scipy(data), tuple(data.shape), "scipy")  # type: ignore[attr-defined]
    return _prepare_array(_foreign_array(data), owned=False)


def prepare_named(name: str, data: object) -> Prepared:
    """Return :func:`prepare` of *data*; what it raises begins with the *name* of the tensor."""
    try:
        return prepare(data)
    except MldbError as error:
        error.args = (f"tensor {name!r:.300}: {error}", *error.args[1:])
        raise


def _prepare_array(array: np.ndarray[Any, Any], *, owned: bool) -> Prepared:
    entry = known_arrays.get((array.dtype, array.shape))
    if entry is None:
        entry = _learn((array.dtype, array.shape), dtype_code(array.dtype), "numpy")
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
        owned = True
    descriptor, attr, exports = entry
    if exports:
        buffer = array.data.cast("B")
    elif descriptor.nbytes:
        buffer = array.reshape(-1).view(np.uint8).data
    else:
        buffer = _EMPTY
    return Prepared(descriptor, attr, (buffer,), descriptor.nbytes, owned)


def _prepare_tensor(tensor: torch.Tensor, torch_module: Any) -> Prepared:
    if tensor.layout is not torch_module.strided:
        if tensor.is_nested:
            raise no_bytes(tensor)
        if tensor.layout is torch_module._mkldnn:
            return _prepare_tensor(tensor.to_dense(), torch_module)._replace(owned=True)
        return _prepare_parts(split_torch(tensor), tuple(tensor.shape), "torch")
    try:
        entry = known_arrays.get((tensor.dtype, tensor.shape))
        if entry is None:
            key = (tensor.dtype, tuple(tensor.shape))
            entry = _learn(key, code_of_torch(tensor.dtype), "torch")
        descriptor, attr, exports = entry
        buffer, owned = _tensor_bytes(tensor, plain=exports)
    except MldbError:
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise no_bytes(tensor, str(error)) from error
    return make_prepared((descriptor, attr, (buffer,), descriptor.nbytes, owned))


def _tensor_bytes(tensor: torch.Tensor, *, plain: bool) -> tuple[memoryview, bool]:
    if plain and not tensor.requires_grad and tensor.is_contiguous():
        try:
            return tensor.numpy().data.cast("B"), False
        except (RuntimeError, TypeError):
            pass  # needs a detour, which the checks below find out; asking first costs as much
    owned = False
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor, owned = _to_host(tensor), True
    if tensor.is_neg() or tensor.is_conj():
        tensor, owned = tensor.resolve_conj().resolve_neg(), True
    if not tensor.is_contiguous():
        tensor, owned = tensor.contiguous(), True
    if plain:
        return tensor.numpy().data.cast("B"), owned
    if not tensor.numel():
        return _EMPTY, owned
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data, owned


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu()
    # Page-locked memory lets the copy run at the full speed of the bus.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _learn(key: tuple[object, tuple[int, ...]], code: str, framework: str) -> _Dense:
    descriptor = dense_descriptor(key[1], code, framework=framework)
    entry = (descriptor, pack_descriptor(descriptor), _exports(descriptor))
    if len(known_arrays) >= _CACHE_LIMIT:
        known_arrays.clear()
    known_arrays[key] = entry
    return entry


def _exports(descriptor: Descriptor) -> bool:
    code = descriptor.dtype
    return descriptor.nbytes > 0 and code[0] in "<>|" and code[1] in _NUMBER_KINDS


def _prepare_parts(parts: Parts, shape: tuple[int, ...], framework: str) -> Prepared:
    components: list[Component] = []
    buffers: list[Buffer] = []
    offset = 0
    owned = True
    for name, array in zip(parts.names, parts.arrays, strict=True):
        part = prepare(array)
        padding = -offset % COMPONENT_ALIGN
        if padding:
            buffers.append(_ZEROS[:padding])
            offset += padding
        components.append(Component(name, part.descriptor.dtype, part.descriptor.shape, offset))
        buffers.extend(part.buffers)
        offset += part.nbytes
        owned = owned and part.owned
    dtype = components[-1].dtype
    descriptor = Descriptor(
        dtype, shape, parts.layout, framework, tuple(components), variant=parts.variant
    )
    return Prepared(descriptor, pack_descriptor(descriptor), tuple(buffers), offset, owned)


def _plain_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    refuse_masks(array)
    return np.asarray(array)


def _number_array(data: list[Any] | tuple[Any, ...]) -> np.ndarray[Any, Any]:
    refuse_masks(data)
    array = _as_array(data)
    if array.dtype.kind in "SUM" or array.dtype.kind == "m":
        raise InvalidTypeError(
            f"a list that NumPy reads as {array.dtype} is not taken for a tensor: only lists of "
            "numbers are. Pass np.asarray(data) to store it as such."
        )
    return array


def _foreign_array(data: object) -> np.ndarray[Any, Any]:
    known = isinstance(data, memoryview) or hasattr(data, "__array__")
    if known or hasattr(data, "__array_interface__") or hasattr(data, "__buffer__"):
        return _plain_array(_as_array(data))
    if hasattr(data, "__dlpack__"):
        try:
            return np.from_dlpack(data)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise InvalidTypeError(
                f"a {type(data).__name__} offers __dlpack__ and NumPy cannot take it: {error}. "
                "Copy it to the host first, or pass it as a torch tensor."
            ) from error
    raise InvalidTypeError(
        f"a {type(data).__name__} is not a tensor. Pass an array, a torch tensor, a sparse "
        "matrix, numbers or bytes; texts and other plain values belong into the metadata."
    )


def _as_array(data: object) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(data)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise InvalidTypeError(
            f"a {type(data).__name__} cannot be read as an array: {error}. Pass a rectangular "
            "array of numbers."
        ) from error
