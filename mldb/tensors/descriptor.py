"""What a stored tensor is: dtype, shape, layout, and where the parts of a sparse one lie.

Packed form, a msgpack array:

    [2, dtype, shape]                                           dense, from NumPy
    [2, dtype, shape, framework]                                dense, from torch
    [2, dtype, shape, framework, layout, variant, components]   sparse

where a component is ``[name, dtype, shape, offset]``. The first element is the version of the form.
What stands behind the elements of this version is read over, what may not be read over has a higher
version. Version 1 had the same elements without the number. Everything read back is checked before
use.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeAlias

import msgpack

from mldb.deferred import dataclass, field
from mldb.errors import (
    CorruptError,
    FormatVersionError,
    InvalidTypeError,
    InvalidValueError,
    LimitError,
)
from mldb.tensors.dtypes import dtype_of, itemsize_of

MAX_NDIM: Final = 64
MAX_DESCRIPTOR_BYTES: Final = 64 << 10
DESCRIPTOR_VERSION: Final = 2
COMPONENT_ALIGN: Final = 64

_MAX_BYTES = (1 << 63) - 1
_CACHE_LIMIT = 8192
_FIELDS = 7  # of the longest form of this version
_COMPRESSED_ROWS = ("crow_indices", "col_indices", "values")
_COMPRESSED_COLUMNS = ("ccol_indices", "row_indices", "values")
_SCIPY_COMPRESSED = ("indptr", "indices", "data")
# The parts of each sparse layout, in stored order; "coords" repeats once per axis.
_PARTS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("torch", "coo"): ("indices", "values"),
    ("torch", "csr"): _COMPRESSED_ROWS,
    ("torch", "bsr"): _COMPRESSED_ROWS,
    ("torch", "csc"): _COMPRESSED_COLUMNS,
    ("torch", "bsc"): _COMPRESSED_COLUMNS,
    ("scipy", "csr"): _SCIPY_COMPRESSED,
    ("scipy", "csc"): _SCIPY_COMPRESSED,
    ("scipy", "bsr"): _SCIPY_COMPRESSED,
    ("scipy", "dia"): ("offsets", "data"),
    ("scipy", "coo"): ("coords", "data"),
    ("scipy", "lil"): ("coords", "data"),
    ("scipy", "dok"): ("coords", "data"),
}
_VARIANTS: Final = {"torch": ("", "coalesced"), "scipy": ("array", "matrix")}

_Key: TypeAlias = tuple[str, tuple[int, ...], str]
# Only ever read, added to or emptied as a whole, so threads need no lock.
_packed: dict[_Key, bytes] = {}


def dense_nbytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes of a dense tensor.

    Raises LimitError for more than 64 axes, a negative axis, or 2**63 bytes and more. Empty axes
    count as one for the limit, as they do in NumPy.
    """
    if len(shape) > MAX_NDIM:
        raise LimitError(f"a tensor of {len(shape)} axes is beyond the limit of {MAX_NDIM}.")
    room = _MAX_BYTES // max(itemsize, 1)
    for axis in shape:
        if axis < 0:
            raise LimitError(f"shape {shape} has a negative axis.")
        room //= max(axis, 1)
    if room == 0:
        raise LimitError(f"shape {shape} with {itemsize} bytes an element is beyond 2**63 bytes.")
    return math.prod(shape) * itemsize


@dataclass(frozen=True, slots=True)
class Component:
    """One dense part of a sparse tensor; ``offset`` is in bytes from the start of the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of this part."""
        return dense_nbytes(self.shape, itemsize_of(self.dtype))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The type of one stored tensor, immutable and hashable.

    ``framework`` is who gave it ("numpy", "torch", "scipy"); ``layout`` is "dense" or a sparse
    format. ``variant`` is "coalesced" for such torch COO tensors, "array" or "matrix" for SciPy,
    otherwise empty. ``nbytes`` is the length of the payload with its padding, ``itemsize`` the
    bytes of one element. Raises LimitError or InvalidValueError for values that cannot be.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = "dense"
    framework: str = "numpy"
    components: tuple[Component, ...] = ()
    variant: str = ""
    nbytes: int = field(init=False, repr=False, compare=False)
    itemsize: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        itemsize = itemsize_of(self.dtype)
        nbytes = dense_nbytes(self.shape, itemsize)
        if self.layout != "dense":
            last = self.components[-1]
            nbytes = last.offset + last.nbytes
        object.__setattr__(self, "itemsize", itemsize)
        object.__setattr__(self, "nbytes", nbytes)


def dense_descriptor(shape: Sequence[int], dtype: str, *, framework: str = "numpy") -> Descriptor:
    """Return the descriptor of a dense tensor of *shape* and dtype code *dtype*.

    Raises InvalidTypeError for a shape that is not a sequence of integers, LimitError for one too
    large, InvalidValueError for an unknown code; nothing is allocated.
    """
    try:
        axes = tuple(operator.index(axis) for axis in shape)
    except TypeError as error:
        raise InvalidTypeError(f"a shape is a sequence of integers, not {shape!r:.80}.") from error
    dtype_of(dtype)
    return Descriptor(dtype, axes, framework=framework)


def part_names(framework: str, layout: str, ndim: int) -> tuple[str, ...]:
    """Return the component names of a sparse layout; raises InvalidValueError if there is none."""
    names = _PARTS.get((framework, layout))
    if names is None:
        raise InvalidValueError(f"{framework!r} has no sparse layout {layout!r} that mldb stores.")
    if names[0] == "coords":
        return (*(f"coords{axis}" for axis in range(ndim)), *names[1:])
    return names


def pack_descriptor(descriptor: Descriptor) -> bytes:
    """Return the stored form of *descriptor*; dense ones are remembered by dtype and shape."""
    if descriptor.layout != "dense":
        return _pack_sparse(descriptor)
    key = (descriptor.dtype, descriptor.shape, descriptor.framework)
    data = _packed.get(key)
    if data is None:
        fields: list[object] = [DESCRIPTOR_VERSION, descriptor.dtype, descriptor.shape]
        if descriptor.framework != "numpy":
            fields.append(descriptor.framework)
        data = bytes(msgpack.packb(fields))
        if len(_packed) >= _CACHE_LIMIT:
            _packed.clear()
        _packed[key] = data
    return data


@lru_cache(maxsize=_CACHE_LIMIT)
def unpack_descriptor(data: bytes) -> Descriptor:
    """Return the descriptor stored as *data*, in this version of the form or the one before.

    Raises CorruptError for anything that no :func:`pack_descriptor` can have written,
    FormatVersionError for a higher version, and UsageError for a dtype that needs a newer
    ml_dtypes. Thread-safe; remembered per *data*.
    """
    if len(data) > MAX_DESCRIPTOR_BYTES:
        raise _corrupt(f"{len(data)} bytes, at most {MAX_DESCRIPTOR_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(data, strict_map_key=False)  # it may be of a newer version
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise _corrupt(f"no msgpack ({type(error).__name__})") from error
    try:
        return _descriptor_of(fields)
    except (InvalidValueError, LimitError) as error:
        raise _corrupt(str(error)) from error


def _pack_sparse(descriptor: Descriptor) -> bytes:
    parts = [[part.name, part.dtype, part.shape, part.offset] for part in descriptor.components]
    fields = [DESCRIPTOR_VERSION, descriptor.dtype, descriptor.shape, descriptor.framework]
    return bytes(msgpack.packb([*fields, descriptor.layout, descriptor.variant, parts]))


def _descriptor_of(fields: object) -> Descriptor:
    if not isinstance(fields, list) or not fields:
        raise _corrupt("no array of fields")
    version = fields[0]
    if isinstance(version, str):  # version 1, which has no number
        if len(fields) not in (2, 3, 6):
            raise _corrupt("not an array of 2, 3 or 6 fields")
        if fields[2:3] == ["numpy"] or fields[3:4] == ["dense"]:
            raise _corrupt("fields that no writer of version 1 put there")
        return _checked(*fields)
    if type(version) is int and version > DESCRIPTOR_VERSION:
        raise FormatVersionError(
            f"the description of a tensor has version {version}; this mldb reads up to "
            f"{DESCRIPTOR_VERSION}. Other tensors stay readable; use a newer mldb."
        )
    if type(version) is not int or version != DESCRIPTOR_VERSION or len(fields) < 3:
        raise _corrupt("neither an array of version 2 nor one of version 1")
    return _checked(*fields[1:_FIELDS])


def _checked(
    dtype: object,
    shape: object,
    framework: object = "numpy",
    layout: object = "dense",
    variant: object = "",
    components: object = (),
) -> Descriptor:
    dtype, axes = _text(dtype, "dtype"), _axes(shape)
    framework, layout = _text(framework, "framework"), _text(layout, "layout")
    itemsize_of(dtype)
    if layout == "dense":
        if framework not in ("numpy", "torch") or variant != "" or components not in ((), []):
            raise _corrupt(f"a dense tensor of {framework!r:.40} with parts")
        return Descriptor(dtype, axes, framework=framework)
    variant = _text(variant, "variant")
    parts = _components_of(components)
    if tuple(part.name for part in parts) != part_names(framework, layout, len(axes)):
        raise _corrupt(f"the components are not those of {framework} {layout}")
    if variant not in _VARIANTS[framework] or parts[-1].dtype != dtype:
        raise _corrupt("layout, variant and components disagree")
    return Descriptor(dtype, axes, layout, framework, parts, variant)


def _components_of(value: object) -> tuple[Component, ...]:
    if not isinstance(value, list) or not value:
        raise _corrupt("no components")
    components: list[Component] = []
    end = 0
    for item in value:
        if not isinstance(item, list) or len(item) < 4:
            raise _corrupt("a component is not an array of 4 fields")
        offset = item[3]
        if (
            type(offset) is not int
            or offset % COMPONENT_ALIGN
            or not end <= offset < end + COMPONENT_ALIGN
        ):
            raise _corrupt(f"a component lies at {offset!r:.40}")
        part = Component(_text(item[0], "name"), _text(item[1], "dtype"), _axes(item[2]), offset)
        end = offset + part.nbytes
        if end > _MAX_BYTES:
            raise _corrupt("the components are beyond 2**63 bytes")
        components.append(part)
    return tuple(components)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _corrupt(f"{what} is no text")
    return value


def _axes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(axis) is int for axis in value):
        raise _corrupt("the shape is no array of integers")
    return tuple(value)


def _corrupt(problem: str) -> CorruptError:
    return CorruptError(
        f"the stored description of a tensor is damaged: {problem}. Other tensors stay readable; "
        "run db.verify() to see what is affected."
    )
