"""Bytes back to tensors: zero-copy views of a buffer, dense or in the sparse layout given.

A buffer holds the bytes of one payload, C-contiguous, one-dimensional, format "B"; every view keeps
it alive. Pure functions, thread-safe; torch and SciPy are imported only
where a value of theirs is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.errors import CorruptError, InvalidTypeError, InvalidValueError
from mldb.log.fs.protocol import Buffer
from mldb.tensors.descriptor import Descriptor
from mldb.tensors.dtypes import dtype_of, torch_dtype
from mldb.tensors.sparse import join_scipy, join_torch

if TYPE_CHECKING:
    import torch


_AS_IT_IS: Final = nullcontext()


def plain_mode() -> AbstractContextManager[object]:
    """Return a context in which torch makes plain tensors, whatever mode is on around it.

    One made under ``inference_mode`` can never be trained, and a view made under ``no_grad`` is not
    to be written to outside.
    """
    torch = sys.modules.get("torch")
    if torch is None or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()):
        return _AS_IT_IS
    mode: AbstractContextManager[object] = torch.inference_mode(False)  # turns gradients on as well
    return mode


def view_numpy(descriptor: Descriptor, buffer: Buffer) -> np.ndarray[Any, Any]:
    """Return the dense tensor over *buffer* without a copy; read-only when the buffer is.

    The array keeps the buffer alive. Big-endian dtypes stay so; packed fp4 comes as uint8. Raises
    CorruptError when the length is not the descriptor's, InvalidTypeError for a sparse tensor.
    """
    if descriptor.layout != "dense":
        raise _not_dense(descriptor)
    if len(buffer) != descriptor.nbytes:
        raise _wrong_length(descriptor, len(buffer))
    return np.ndarray(descriptor.shape, dtype_of(descriptor.dtype), buffer)


def view_torch(descriptor: Descriptor, buffer: bytearray | memoryview) -> torch.Tensor:
    """Return the dense tensor as a torch tensor over the writable *buffer*, which it keeps alive.

    Only big-endian data is copied (torch has none). Raises InvalidValueError for a read-only
    buffer, because torch would write through it, InvalidTypeError for a dtype torch lacks,
    CorruptError when the length is not the descriptor's, UsageError without torch.
    """
    if descriptor.layout != "dense":
        raise _not_dense(descriptor)
    if len(buffer) != descriptor.nbytes:
        raise _wrong_length(descriptor, len(buffer))
    if memoryview(buffer).readonly:
        raise InvalidValueError(
            "a torch tensor needs a writable buffer of its own: torch ignores read-only memory "
            "and a write would end the process. Pass a private mapping or a bytearray."
        )
    code = descriptor.dtype
    if code[0] in "<>":
        native = dtype_of(code).newbyteorder("=")
        if native.str != code:
            torch_dtype(native.str)  # refuses what torch lacks in any byte order
            return _swapped_tensor(descriptor, buffer)
    dtype = torch_dtype(code)
    import torch

    with plain_mode():
        if not descriptor.nbytes:
            # frombuffer takes no empty buffer, and torch.empty warns about complex32.
            one = torch.frombuffer(bytearray(descriptor.itemsize), dtype=dtype)
            return one[:0].reshape(descriptor.shape)
        return torch.frombuffer(buffer, dtype=dtype).reshape(descriptor.shape)


def rebuild(descriptor: Descriptor, buffer: Buffer) -> Any:
    """Return the tensor in the framework and layout it was given in.

    Dense NumPy tensors are views over *buffer*. torch and sparse ones need writable memory of
    their own: they keep a writable *buffer* and copy a read-only one. Raises CorruptError when the
    bytes contradict the descriptor, UsageError when the framework is not installed.
    """
    if descriptor.framework == "numpy":
        return view_numpy(descriptor, buffer)
    if len(buffer) != descriptor.nbytes:
        raise _wrong_length(descriptor, len(buffer))
    private = bytearray(buffer) if memoryview(buffer).readonly else memoryview(buffer)
    if descriptor.layout == "dense":
        return view_torch(descriptor, private)
    if descriptor.framework == "torch":
        with plain_mode():
            return join_torch(descriptor, _parts_of(descriptor, private, view_torch))
    return join_scipy(descriptor, _parts_of(descriptor, private, view_numpy))


def _parts_of(
    descriptor: Descriptor,
    buffer: bytearray | memoryview,
    view: Callable[[Descriptor, memoryview], Any],
) -> list[Any]:
    data = memoryview(buffer)
    return [
        view(Descriptor(part.dtype, part.shape), data[part.offset : part.offset + part.nbytes])
        for part in descriptor.components
    ]


def _swapped_tensor(descriptor: Descriptor, buffer: Buffer) -> torch.Tensor:
    import torch

    array = view_numpy(descriptor, buffer)
    with plain_mode():
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _not_dense(descriptor: Descriptor) -> InvalidTypeError:
    return InvalidTypeError(
        f"this tensor is sparse ({descriptor.framework} {descriptor.layout}), not dense. Read it "
        "with query_tensor, which returns it in its layout."
    )


def _wrong_length(descriptor: Descriptor, found: int) -> CorruptError:
    return CorruptError(
        f"the payload of a {descriptor.dtype} tensor of shape {descriptor.shape} has {found} "
        f"bytes instead of {descriptor.nbytes}. Other tensors stay readable."
    )
