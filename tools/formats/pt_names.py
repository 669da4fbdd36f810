"""What a file of ``torch.save`` may ask for by name: tensors, storages, and a few plain things.

The tables here are all there is: a name is looked up in them and never imported. What is called is
checked and gives a description of a tensor, or a plain value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

_AXES_MAX: Final = 64

STORAGE_CODES: Final = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "ComplexDoubleStorage": "<c16",
    "ComplexFloatStorage": "<c8",
}
DTYPE_CODES: Final = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "bfloat16",
    "uint8": "|u1",
    "int8": "|i1",
    "bool": "|b1",
    "complex32": "complex32",
    "complex64": "<c8",
    "complex128": "<c16",
    **{
        f"{kind}int{bits}": f"<{kind or 'i'}{bits // 8}"
        for kind in ("", "u")
        for bits in (16, 32, 64)
    },
    **{
        name: name
        for name in (
            *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
            *("float8_e8m0fnu", "float4_e2m1fn_x2"),
        )
    },
}
TENSOR_CLASSES: Final = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
)


class StoredBytes(NamedTuple):
    """A storage: which member of the archive has it, how many elements of which dtype."""

    key: str
    code: str | None
    """None where the tensor says it: then the count is in bytes."""
    elements: int


class StoredTensor(NamedTuple):
    """A tensor: a view of a storage, in elements of its dtype. Checked but for the storage."""

    storage: StoredBytes
    code: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class KnownName(NamedTuple):
    """A class or function that the tables here know, by its whole name."""

    dotted: str


def is_storage(dotted: str) -> bool:
    """Whether a name is that of a class of storages."""
    module, _, name = dotted.rpartition(".")
    return (module == "torch" and name in STORAGE_CODES) or dotted in (
        "torch.storage.UntypedStorage",
        "torch.UntypedStorage",
    )


def is_count(value: object) -> bool:
    """Whether a value is an integer that may count or place elements."""
    return type(value) is int and 0 <= value < 1 << 62


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, _more: Any = None
) -> StoredTensor:
    return _checked_tensor(storage, None, offset, shape, strides)


def _tensor_of_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    _more: Any = None,
) -> StoredTensor:
    code = (
        DTYPE_CODES.get(dtype.dotted.removeprefix("torch.")) if isinstance(dtype, KnownName) else ""
    )
    if not code:
        raise ValueError("a tensor has no dtype")
    return _checked_tensor(storage, code, offset, shape, strides)


def _checked_tensor(
    storage: Any, code: str | None, offset: Any, shape: Any, strides: Any
) -> StoredTensor:
    if not isinstance(storage, StoredBytes) or (code is None and storage.code is None):
        raise ValueError("a tensor has no storage")
    if not (
        is_count(offset)
        and type(shape) is tuple
        and type(strides) is tuple
        and len(shape) == len(strides) <= _AXES_MAX
        and all(map(is_count, shape))
        and all(map(is_count, strides))
    ):
        raise ValueError("a tensor has no offset, shape and strides")
    return StoredTensor(storage, str(code or storage.code), offset, shape, strides)


def _first_tensor(tensor: Any, *_more: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise ValueError("a parameter is no tensor")
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, _state: Any) -> StoredTensor:
    if not isinstance(function, KnownName) or not isinstance(kind, KnownName):
        raise ValueError("a tensor has no type")
    call = CALLS.get(function.dotted)
    if call not in (_tensor, _tensor_of_dtype) or kind.dotted not in TENSOR_CLASSES:
        raise ValueError("a tensor has another type")
    made: StoredTensor = call(*arguments)
    return made


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        if not isinstance(key, str | int | None):
            raise ValueError("a key is no text or number")
        found[key] = value
    return found


def _size(axes: Any) -> tuple[int, ...]:
    if type(axes) is not tuple or not all(map(is_count, axes)):
        raise ValueError("a size has no axes")
    return axes


def _device(kind: Any, number: Any = None) -> str:
    return f"{kind!s:.20}" if number is None else f"{kind!s:.20}:{number!s:.20}"


def _encoded(text: Any, codec: Any) -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise ValueError("bytes are no text of latin1")
    return text.encode("latin-1")


CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "_codecs.encode": _encoded,
}
