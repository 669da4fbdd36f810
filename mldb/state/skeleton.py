"""The skeleton of a nested state: everything but its tensors, typed, as one msgpack value.

    [format, root, {alias: holder, ...}, [group, ...], [type, ...]]
    group  = [bytes of the shared storage, [[name, byte offset, shape, stride], ...]]
    type   = [name of a class, [field, ...], [[place, ...], ...]]

A node is a plain value as it is (None, bool, integer of 64 bits, float, text, bytes) or an array
whose first element is one of the tags below. Dict nodes alternate keys and values. A named tuple is
a TUPLE node and a dataclass a DICT node; their types stand beside the tree, where who does not know
them reads over them, and are left out when there are none.

What stands behind the fields of the frame, of a type, a group or a view is read over; what may not
be read over has a higher format. Everything read back is checked; :func:`parse_skeleton` checks the
frame, ``mldb.state.restore`` the nodes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from mldb.errors import CorruptError, FormatVersionError, InvalidNameError
from mldb.names import check_name

FORMAT: Final = 1
MAX_SKELETON_BYTES: Final = 64 << 20
STATE_DEPTH_MAX: Final = 64

TENSOR: Final = 1  # name
DICT: Final = 2  # key, value, ...
ORDERED_DICT: Final = 3  # key, value, ...
STATE_DICT: Final = 4  # _metadata, key, value, ...: an OrderedDict with torch's versions of modules
COUNTER: Final = 5  # key, value, ...
LIST: Final = 6  # values
TUPLE: Final = 7  # values
SIZE: Final = 8  # axes of a torch.Size
MODULE: Final = 9  # the node of its state dict
STATEFUL: Final = 10  # the node of what state_dict() returned
GENERATOR: Final = 11  # device, tensor node of the state of a torch.Generator
BIG_INTEGER: Final = 12  # two's complement, little-endian
COMPLEX: Final = 13  # real, imaginary
SCALAR: Final = 14  # dtype code, bytes of a NumPy scalar
TEXT: Final = 15  # UTF-8 with surrogates, for text that plain UTF-8 cannot hold

STORAGE_ALIGNMENT: Final = 64  # bytes; where views of a rebuilt storage start
STORAGE_UNIT: Final = 16  # bytes; a storage is a multiple of it, so every dtype can view it

_MAX_SPREAD = 16
_SPREAD_FREE_BYTES = 1 << 20


class StorageView(NamedTuple):
    """One tensor's place in a storage it shares: offset in bytes, shape and stride in elements."""

    name: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def end(self, itemsize: int) -> int:
        """Return the offset behind the last byte that the view touches."""
        last = sum((axis - 1) * step for axis, step in zip(self.shape, self.stride, strict=True))
        return self.offset + (last + 1) * itemsize


class StorageGroup(NamedTuple):
    """Tensors that are views of one storage of ``nbytes`` bytes."""

    nbytes: int
    views: tuple[StorageView, ...]


class StateType(NamedTuple):
    """What a node stands for: the name of a class, and its fields in the order of the values."""

    name: str
    fields: tuple[str, ...]


class Skeleton(NamedTuple):
    """A parsed skeleton; ``root`` is not checked yet. ``types`` are by the id of their node."""

    root: Any
    aliases: dict[str, str]
    groups: tuple[StorageGroup, ...]
    types: dict[int, StateType]


def is_affordable(storage_bytes: int, tensor_bytes: int) -> bool:
    """Tell whether a storage may be rebuilt for views that hold *tensor_bytes* together.

    Far-apart views of a huge storage would cost its whole size again, and a hostile skeleton could
    ask for any amount of memory, so the storage may be 16 times the views plus 1 MiB.
    """
    return storage_bytes <= _MAX_SPREAD * tensor_bytes + _SPREAD_FREE_BYTES


def parse_skeleton(data: bytes) -> Skeleton:
    """Return the frame of a skeleton.

    Raises CorruptError for anything that is none, FormatVersionError for one of a newer mldb.
    """
    if len(data) > MAX_SKELETON_BYTES:
        raise corrupt(f"{len(data)} bytes, at most {MAX_SKELETON_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(data, max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise corrupt(f"no msgpack ({type(error).__name__})") from error
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise corrupt("not an array with a format")
    if fields[0] > FORMAT:
        raise FormatVersionError(
            f"the stored skeleton of a state has format {fields[0]}; this mldb reads up to "
            f"{FORMAT}. The tensors of the checkpoint stay readable one by one under their names; "
            "use a newer mldb to load the state."
        )
    if fields[0] != FORMAT or len(fields) < 4:
        raise corrupt("not an array of 4 fields")
    aliases = _aliases_of(fields[2])
    if not isinstance(fields[3], list):
        raise corrupt("no array of storages")
    groups = tuple(_group_of(item) for item in fields[3])
    names = [view.name for group in groups for view in group.views]
    if len(set(names)) != len(names):
        raise corrupt("a tensor lies in two storages")
    # What is no array there is a newer version's.
    types = fields[4] if len(fields) > 4 and isinstance(fields[4], list) else []
    return Skeleton(fields[1], aliases, groups, _types_of(types, fields[1]))


def checked_name(value: object) -> str:
    """Return *value* when it is an allowed tensor name; raises CorruptError otherwise."""
    if not isinstance(value, str):
        raise corrupt("a tensor name is no text")
    try:
        check_name(value)
    except InvalidNameError as error:
        raise corrupt(f"a tensor name is not allowed: {error}") from error
    return value


def corrupt(problem: str) -> CorruptError:
    """Return the error for a damaged skeleton, to be raised."""
    return CorruptError(
        f"the stored skeleton of a state is damaged: {problem}. The tensors of the checkpoint "
        "stay readable one by one under their names; run db.verify() to see what is affected."
    )


def _aliases_of(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise corrupt("no dict of aliases")
    aliases = {checked_name(name): checked_name(holder) for name, holder in value.items()}
    if not aliases.keys().isdisjoint(aliases.values()):
        raise corrupt("an alias of an alias")
    return aliases


def _types_of(values: list[Any], root: Any) -> dict[int, StateType]:
    found: dict[int, StateType] = {}
    for value in values:
        if not isinstance(value, list) or len(value) < 3 or not isinstance(value[2], list):
            raise corrupt("a type is not an array of 3 fields")
        name, fields, places = value[:3]
        if not isinstance(name, str) or not isinstance(fields, list):
            raise corrupt("a type without name and fields")
        if not all(isinstance(field, str) for field in fields) or len(set(fields)) != len(fields):
            raise corrupt("the fields of a type are not names")
        state_type = StateType(name, tuple(fields))
        for place in places:
            node = _node_at(root, place)
            if id(node) in found or node[0] not in (TUPLE, DICT):
                raise corrupt("a type of a node that has none")
            found[id(node)] = state_type
    return found


def _node_at(root: Any, place: object) -> list[Any]:
    node = root
    for index in place if isinstance(place, list) else [None]:
        if not isinstance(node, list) or type(index) is not int or not 0 <= index < len(node):
            raise corrupt("a type stands at no node")
        node = node[index]
    if not isinstance(node, list) or not node or type(node[0]) is not int:
        raise corrupt("a type stands at no node")
    return node


def _group_of(value: object) -> StorageGroup:
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[1], list):
        raise corrupt("a storage is not an array of 2 fields")
    nbytes = value[0]
    if type(nbytes) is not int or nbytes <= 0 or nbytes % STORAGE_UNIT:
        raise corrupt(f"a storage of {nbytes!r:.40} bytes")
    return StorageGroup(nbytes, tuple(_view_of(item) for item in value[1]))


def _view_of(value: object) -> StorageView:
    if not isinstance(value, list) or len(value) < 4:
        raise corrupt("a view of a storage is not an array of 4 fields")
    name, offset, shape, stride = value[:4]
    if type(offset) is not int or offset < 0:
        raise corrupt(f"a view starts at {offset!r:.40}")
    view = StorageView(checked_name(name), offset, _numbers(shape, 1), _numbers(stride, 0))
    if len(view.shape) != len(view.stride):
        raise corrupt("shape and stride of a view differ in length")
    return view


def _numbers(value: object, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise corrupt("a shape or stride is no short array")
    if not all(type(number) is int and number >= least for number in value):
        raise corrupt("a shape or stride holds a number out of range")
    return tuple(value)
