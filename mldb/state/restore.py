"""A skeleton and its tensors put together to a nested state again.

The skeleton comes from disk: whatever it holds, the outcome is a state, CorruptError, or
FormatVersionError for one of a newer mldb; with registered classes also InvalidValueError.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from mldb.errors import InvalidValueError
from mldb.state.load import is_live
from mldb.state.skeleton import (
    BIG_INTEGER,
    COMPLEX,
    COUNTER,
    DICT,
    GENERATOR,
    LIST,
    MODULE,
    ORDERED_DICT,
    SCALAR,
    SIZE,
    STATE_DEPTH_MAX,
    STATE_DICT,
    STATEFUL,
    TENSOR,
    TEXT,
    TUPLE,
    Skeleton,
    StateType,
    StorageGroup,
    StorageView,
    checked_name,
    corrupt,
    is_affordable,
    parse_skeleton,
)
from mldb.state.structs import parts_of, put_together
from mldb.tensors.decode import plain_mode
from mldb.tensors.dtypes import dtype_of

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_KEYS: Final = frozenset({type(None), bool, int, str})
_CONTAINERS: Final = frozenset({LIST, TUPLE, DICT, ORDERED_DICT, COUNTER, STATE_DICT})
# Integers of the size of an element: copying as these keeps every bit and works for every dtype.
_BITS_OF_SIZE: Final = {1: "uint8", 2: "int16", 4: "int32", 8: "int64", 16: "complex128"}


def unflatten(skeleton: bytes, load: Callable[[str], object], *, part: Any = None) -> Any:
    """Return the state that ``mldb.state.tree.flatten`` took apart, its tensors from *load*.

    *load* is called once for every stored name and gives the tensor; modules and other live objects
    come back as their state. torch tensors that shared a storage are copied into one, provided
    *load* gives torch tensors; all others are put in as they are. With *part*, a tree that holds
    live objects, the state has only what is named there, and no other tensor is loaded; of a shared
    storage the views in the part share one.

    Raises CorruptError for a damaged skeleton, InvalidValueError for a registered class whose
    fields are not the stored ones, and what *load* raises.
    """
    parsed = parse_skeleton(skeleton)
    if part is not None:
        parsed = _cut(parsed, part)
    return build(parsed, parsed.root, load, is_part=part is not None)


def build(
    skeleton: Skeleton,
    node: Any,
    load: Callable[[str], object],
    *,
    is_part: bool = False,
    makes_types: bool = True,
) -> Any:
    """Return the state of one *node* of *skeleton*; see :func:`unflatten`.

    Without *makes_types* no registered class is made, so that none can refuse its fields.
    """
    return _Builder(skeleton, load, is_part=is_part, makes_types=makes_types).node(node, 0)


class _Builder:
    """One rebuild: remembers what was loaded, so that aliases get the same object."""

    def __init__(
        self,
        skeleton: Skeleton,
        load: Callable[[str], object],
        *,
        is_part: bool,
        makes_types: bool,
    ) -> None:
        self._load = load
        self._makes_types = makes_types
        self._types = skeleton.types
        self._is_part = is_part
        self._aliases = skeleton.aliases
        self._loaded: dict[str, Any] = {}
        self._groups = {view.name: group for group in skeleton.groups for view in group.views}

    def node(self, node: Any, depth: int) -> Any:
        """Return the value of one node."""
        if type(node) in _PLAIN:
            return node
        if type(node) is not list or not node or type(node[0]) is not int:
            raise corrupt("a node without a tag")
        if depth > 2 * STATE_DEPTH_MAX + 2:
            raise corrupt("nested too deep")
        tag = node[0]
        if tag == TENSOR:
            return self._tensor(node)
        if tag in _CONTAINERS:
            return self._container(tag, node, depth + 1)
        if tag in (MODULE, STATEFUL):
            return self.node(_fields(node, 1)[0], depth + 1)
        if tag == GENERATOR:
            return self._tensor(_fields(node, 2)[1])
        return _leaf(tag, node)

    def _container(self, tag: int, node: list[Any], depth: int) -> Any:
        if tag == LIST:
            return [self.node(item, depth) for item in node[1:]]
        if tag == TUPLE:
            items = tuple([self.node(item, depth) for item in node[1:]])
            return self._typed(node, items, items)
        if tag == DICT:
            fields = self._items(node[1:], depth)
            return self._typed(node, fields, tuple(fields.values()), tuple(fields))
        if tag == COUNTER:
            return Counter(self._items(node[1:], depth))
        if tag == ORDERED_DICT:
            return OrderedDict(self._items(node[1:], depth))
        if len(node) < 2:
            raise corrupt("a state dict without its metadata")
        result = OrderedDict(self._items(node[2:], depth))
        # torch reads the versions of modules from this attribute.
        result._metadata = self.node(node[1], depth)  # type: ignore[attr-defined]
        return result

    def _typed(
        self, node: list[Any], plain: Any, values: tuple[Any, ...], names: Any = None
    ) -> Any:
        """Return what *plain* stands for: itself where no type or no registered one is given."""
        found = self._types.get(id(node))
        if found is None:
            return plain
        if len(values) != len(found.fields) or names not in (None, found.fields):
            raise corrupt("a type with other fields than its node")
        if not self._makes_types:
            return plain
        made = put_together(found.name, dict(zip(found.fields, values, strict=True)))
        return plain if made is None else made

    def _items(self, items: list[Any], depth: int) -> dict[Any, Any]:
        if len(items) % 2:
            raise corrupt("a key without a value")
        result = {
            key_of(key): self.node(value, depth)
            for key, value in zip(items[::2], items[1::2], strict=True)
        }
        if len(result) * 2 != len(items):
            raise corrupt("a key stands twice")
        return result

    def _tensor(self, node: Any) -> Any:
        if type(node) is not list or len(node) != 2 or node[0] != TENSOR:
            raise corrupt("a tensor node without a name")
        name = checked_name(node[1])
        name = self._aliases.get(name, name)
        if name not in self._loaded:
            group = self._groups.get(name)
            if group is None:
                self._loaded[name] = self._load(name)
            else:
                loaded = {view.name: self._load(view.name) for view in group.views}
                self._loaded.update(_share(loaded, group, is_part=self._is_part))
        return self._loaded[name]


def _leaf(tag: int, node: list[Any]) -> Any:
    if tag == BIG_INTEGER:
        return int.from_bytes(_data(_fields(node, 1)[0]), "little", signed=True)
    if tag == TEXT:
        return _text(node)
    if tag == COMPLEX:
        real, imaginary = _fields(node, 2)
        if type(real) is not float or type(imaginary) is not float:
            raise corrupt("a complex number without two floats")
        return complex(real, imaginary)
    if tag == SCALAR:
        return _scalar(*_fields(node, 2))
    if tag == SIZE:
        return _size(node[1:])
    raise corrupt(f"unknown tag {tag}")


def key_of(node: Any, depth: int = 0) -> Any:
    """Return the dict key of a node that stands in the place of one. Raises CorruptError."""
    if type(node) in _KEYS:
        return node
    if type(node) is list and node and type(node[0]) is int and depth < STATE_DEPTH_MAX:
        if node[0] == TUPLE:
            return tuple([key_of(item, depth + 1) for item in node[1:]])
        if node[0] in (BIG_INTEGER, TEXT):
            return _leaf(node[0], node)
    raise corrupt("a key of a type that keys do not have")


def _fields(node: list[Any], count: int) -> list[Any]:
    if len(node) != count + 1:
        raise corrupt(f"a node of tag {node[0]} with {len(node) - 1} fields instead of {count}")
    return node[1:]


def _data(value: Any) -> bytes:
    if type(value) is not bytes:
        raise corrupt("bytes are missing")
    return value


def _text(node: list[Any]) -> str:
    try:
        return _data(_fields(node, 1)[0]).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise corrupt("a text is not UTF-8") from error


def _scalar(code: Any, data: Any) -> Any:
    try:
        dtype = dtype_of(code)
    except InvalidValueError as error:
        raise corrupt(str(error)) from error
    if dtype.itemsize != len(_data(data)) or dtype.kind in "SU":
        raise corrupt("a NumPy scalar of another size than its dtype")
    return np.frombuffer(data, dtype)[0]


def _size(axes: list[Any]) -> Any:
    if not all(type(axis) is int and 0 <= axis < 1 << 63 for axis in axes):
        raise corrupt("a torch.Size with something else than axes")
    torch = sys.modules.get("torch")
    return tuple(axes) if torch is None else torch.Size(axes)


def _share(loaded: dict[str, Any], group: StorageGroup, *, is_part: bool) -> dict[str, Any]:
    """Return the tensors of *group* as views of one new storage that holds their values.

    Those of a part may be few in a storage that was made for many: then they stay on their own.
    """
    torch = sys.modules.get("torch")
    if torch is None or not all(isinstance(item, torch.Tensor) for item in loaded.values()):
        return loaded
    if not all(tensor.layout is torch.strided for tensor in loaded.values()):
        raise corrupt("a sparse tensor in a shared storage")
    if not is_affordable(group.nbytes, sum(tensor.nbytes for tensor in loaded.values())):
        if is_part:
            return loaded
        raise corrupt(f"a storage of {group.nbytes} bytes for tensors far smaller")
    device = next(iter(loaded.values())).device
    with plain_mode():
        storage = torch.zeros(group.nbytes, dtype=torch.uint8, device=device)
        for view in group.views:
            loaded[view.name] = _place(torch, storage, view, loaded[view.name])
    return loaded


def _place(torch: Any, storage: Any, view: StorageView, tensor: Any) -> Any:
    itemsize = tensor.itemsize
    fits = view.offset % itemsize == 0 and view.end(itemsize) <= storage.numel()
    if not fits or tuple(tensor.shape) != view.shape:
        raise corrupt(f"the tensor {view.name!r} does not fit its place in a shared storage")
    bits = getattr(torch, _BITS_OF_SIZE[itemsize])
    start = view.offset // itemsize
    target = storage.view(bits).as_strided(view.shape, view.stride, start)
    # torch refuses to write one element twice, which an expanded axis (stride 0) would ask for.
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in view.stride)
    target[once].copy_(tensor.contiguous().view(bits)[once])
    return storage.view(tensor.dtype).as_strided(view.shape, view.stride, start)


# --- a part ---------------------------------------------------------------------------------------


def _cut(skeleton: Skeleton, part: Any) -> Skeleton:
    """Return what *part* names of a skeleton; shared storages keep the views that are left."""
    types = dict(skeleton.types)
    root = _named_in(part, skeleton.root, types)
    wanted = {skeleton.aliases.get(name, name) for name in _tensors_in(root)}
    groups = (
        group._replace(views=tuple(view for view in group.views if view.name in wanted))
        for group in skeleton.groups
    )
    left = tuple(group for group in groups if len(group.views) > 1)
    return skeleton._replace(root=root, groups=left, types=types)


def _named_in(part: Any, node: Any, types: dict[int, StateType]) -> Any:
    """Return *node* with those entries of its dicts that *part* has, where it holds live objects.

    What is damaged stays as it is, for who reads it. *types* gets those of the new nodes.
    """
    parts = parts_of(part)
    if parts is None or not is_live(part) or type(node) is not list or not node:
        return node
    tag = node[0]
    if tag in (MODULE, STATEFUL) and len(node) == 2:
        return [tag, _named_in(part, node[1], types)]
    start = 2 if tag == STATE_DICT else 1
    if tag in (LIST, TUPLE) and len(node) == len(parts) + 1:
        values = [_named_in(parts.get(at), item, types) for at, item in enumerate(node[1:])]
        cut = [tag, *values]
    elif tag in (DICT, ORDERED_DICT, STATE_DICT) and len(node) % 2 == start % 2:
        cut = node[:start]
        for key_node, value in zip(node[start::2], node[start + 1 :: 2], strict=True):
            key = key_of(key_node)
            if key in parts:
                cut += [key_node, _named_in(parts[key], value, types)]
    else:
        return node
    if id(node) in types and len(cut) == len(node):
        types[id(cut)] = types[id(node)]
    return cut


def _tensors_in(root: Any) -> set[str]:
    """Return the names that the tensor nodes under *root* mention."""
    found: set[str] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if type(node) is list and node:
            if node[0] == TENSOR and len(node) == 2 and type(node[1]) is str:
                found.add(node[1])
            stack += [item for item in node if type(item) is list]
    return found
