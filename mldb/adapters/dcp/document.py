"""What a store keeps of a distributed checkpoint beside its tensors, as msgpack.

    [format, {"torch": version, "ranks": n}, tensors, values, paths]
    tensors = {fqn: [dtype, shape, name] or [dtype, shape, [[offsets, sizes, name], ...]]}
    values  = {fqn: bytes of mldb.adapters.dcp.values}
    paths   = {fqn: [key or index, ...]}, or nil where the state was not flattened

It is the tensor ``dcp/metadata`` of the checkpoint's commit. What is read back is checked: every
length, shape, box and name, and what torch would make of the paths, before anything is allocated.
What stands behind the fields of the array is read over.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, NoReturn

import msgpack

from mldb.adapters.dcp.layout import Box, BoxedTensor
from mldb.errors import CorruptError, FormatVersionError, LimitError, MldbError
from mldb.log import format as fmt
from mldb.names import check_name
from mldb.tensors.dtypes import itemsize_of

DOCUMENT_FORMAT: Final = 1
DOCUMENT: Final = "dcp/metadata"  # the name of no tensor of a state: those have no slash
DOCUMENT_BYTES_MAX: Final = 64 << 20

_AXES_MAX: Final = 64
_PATH_MAX: Final = 256
_SPARE_PLACES: Final = 65_536


class Document(NamedTuple):
    """A distributed checkpoint: its tensors and values by fully qualified name, and their paths."""

    torch: str
    ranks: int
    tensors: dict[str, BoxedTensor]
    values: dict[str, bytes]
    paths: dict[str, tuple[str | int, ...]] | None


def encode_document(document: Document) -> bytes:
    """Return the bytes of a document. Raises LimitError where they are too many."""
    tensors = {
        fqn: [
            what.dtype,
            what.shape,
            what.boxes[0][1] if what.is_whole else [[*box, name] for box, name in what.boxes],
        ]
        for fqn, what in document.tensors.items()
    }
    about = {"torch": document.torch, "ranks": document.ranks}
    try:
        data: bytes = msgpack.packb(
            [DOCUMENT_FORMAT, about, tensors, document.values, document.paths]
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise LimitError(f"the plan of the save cannot be stored: {error}") from error
    if len(data) > DOCUMENT_BYTES_MAX:
        raise LimitError(
            f"what is no tensor in the state takes {len(data)} bytes, at most {DOCUMENT_BYTES_MAX} "
            "are stored. Make large values tensors. Nothing was stored."
        )
    return data


def decode_document(data: bytes) -> Document:
    """Return the document again. Raises CorruptError, FormatVersionError for a newer one."""
    if len(data) > DOCUMENT_BYTES_MAX:
        _refuse(f"{len(data)} bytes, at most {DOCUMENT_BYTES_MAX} are allowed")
    try:
        fields = msgpack.unpackb(data, max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        _refuse(f"no msgpack ({type(error).__name__})")
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        _refuse("not an array with a format")
    if fields[0] > DOCUMENT_FORMAT:
        raise FormatVersionError(
            f"the stored distributed checkpoint has format {fields[0]}; this mldb reads up to "
            f"{DOCUMENT_FORMAT}. Its tensors stay readable under their names; use a newer mldb to "
            "load it."
        )
    if fields[0] != DOCUMENT_FORMAT or len(fields) < 5:
        _refuse("not an array of 5 fields")
    about, tensors, values, paths = fields[1:5]
    if not isinstance(about, dict) or not isinstance(about.get("torch"), str):
        _refuse("it does not say which torch made it")
    ranks = about.get("ranks")
    if type(ranks) is not int or not 0 < ranks < 1 << 31:
        _refuse(f"it was made by {ranks!r:.40} ranks")
    found = {fqn: _tensor_of(fqn, value) for fqn, value in _texts(tensors, "tensors").items()}
    plain = _texts(values, "values")
    if not all(type(value) is bytes for value in plain.values()):
        _refuse("a value is no bytes")
    if not found.keys().isdisjoint(plain):
        _refuse("a tensor has the name of a value")
    names = [name for what in found.values() for _, name in what.boxes]
    if len(set(names)) != len(names):
        _refuse("two tensors are stored under one name")
    entries = len(found) + len(plain)
    return Document(
        about["torch"], ranks, found, plain, None if paths is None else _paths_of(paths, entries)
    )


def _texts(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(type(key) is str for key in value):
        _refuse(f"no dict of {what}")
    return value


def _tensor_of(fqn: str, value: object) -> BoxedTensor:
    if not isinstance(value, list) or len(value) < 3:
        _refuse(f"tensor {fqn!r:.200} is not an array of 3 fields")
    dtype, shape = value[0], _axes(fqn, value[1])
    try:
        size = itemsize_of(dtype) * math.prod(shape) if isinstance(dtype, str) else -1
    except MldbError:
        size = -1
    if not 0 <= size <= fmt.PAYLOAD_BYTES_MAX:
        _refuse(f"tensor {fqn!r:.200} has no dtype and shape that are stored")
    if not isinstance(value[2], list):
        return BoxedTensor(dtype, shape, ((Box((0,) * len(shape), shape), _name(fqn, value[2])),))
    boxes = tuple(_box_of(fqn, shape, item) for item in value[2])
    if not boxes or (len(boxes) == 1 and boxes[0][0].sizes == shape):
        _refuse(f"tensor {fqn!r:.200} has no parts")
    if sum(box.elements for box, _ in boxes) > math.prod(shape):
        _refuse(f"the parts of tensor {fqn!r:.200} overlap")
    return BoxedTensor(dtype, shape, boxes)


def _box_of(fqn: str, shape: tuple[int, ...], value: object) -> tuple[Box, str]:
    if not isinstance(value, list) or len(value) < 3:
        _refuse(f"a part of tensor {fqn!r:.200} is not an array of 3 fields")
    box = Box(_axes(fqn, value[0]), _axes(fqn, value[1]))
    if len(box.offsets) != len(shape) or len(box.sizes) != len(shape):
        _refuse(f"a part of tensor {fqn!r:.200} has another number of axes")
    if any(at + size > axis for at, size, axis in zip(*box, shape, strict=True)):
        _refuse(f"a part of tensor {fqn!r:.200} reaches out of it")
    return box, _name(fqn, value[2])


def _axes(fqn: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _AXES_MAX:
        _refuse(f"a shape of tensor {fqn!r:.200} is no short array")
    if not all(type(axis) is int and 0 <= axis <= fmt.PAYLOAD_BYTES_MAX for axis in value):
        _refuse(f"a shape of tensor {fqn!r:.200} holds a number out of range")
    return tuple(value)


def _name(fqn: str, value: object) -> str:
    try:
        check_name(value)  # type: ignore[arg-type]  # it refuses what is no text
    except MldbError as error:
        _refuse(f"tensor {fqn!r:.200} has a name that is not allowed: {error}")
    assert isinstance(value, str)
    return value


def _paths_of(value: object, entries: int) -> dict[str, tuple[str | int, ...]]:
    """The paths; torch fills a list up to every index in them, so their sum is bounded."""
    paths = {fqn: _path(fqn, keys) for fqn, keys in _texts(value, "paths").items()}
    if len(paths) > entries:
        _refuse("there are more paths than entries")
    longest: dict[tuple[str | int, ...], int] = {}
    for path in paths.values():
        for depth, key in enumerate(path):
            if isinstance(key, int):
                longest[path[:depth]] = max(longest.get(path[:depth], 0), key)
    if sum(longest.values()) > 16 * entries + _SPARE_PLACES:
        _refuse("its lists are far longer than what is in them")
    return paths


def _path(fqn: str, value: object) -> tuple[str | int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _PATH_MAX:
        _refuse(f"the path of {fqn!r:.200} is no short array")
    for key in value:
        if type(key) is not str and (type(key) is not int or key < 0):
            _refuse(f"the path of {fqn!r:.200} holds what is neither a key nor an index")
    if type(value[0]) is not str:
        _refuse(f"the path of {fqn!r:.200} begins with an index")
    return tuple(value)


def _refuse(problem: str) -> NoReturn:
    raise CorruptError(
        f"the metadata of a distributed checkpoint is damaged: {problem}. Its tensors stay "
        "readable one by one under their names; run db.verify() to see what is affected.",
        key=DOCUMENT,
    )
