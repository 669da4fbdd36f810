"""A nested training state as a typed skeleton and named tensors, and back.

Taken apart are modules, optimizers, schedulers and whatever else has ``state_dict()``; ``dict``,
``OrderedDict``, ``Counter``, ``list``, ``tuple`` and ``torch.Size``; None, bool, integers of any
size, float, complex, str, bytes and NumPy scalars; tensors of NumPy, SciPy and torch, dense and
sparse; ``torch.Generator``; named tuples and registered dataclasses. Types come back exactly,
values bit for bit, with these exceptions: a named tuple or dataclass whose class is not registered
in the process that reads comes back as a tuple or dict (see :mod:`mldb.state.structs`), a
``Parameter`` as a tensor, and a live object (module, optimizer, generator) as its state, which
:func:`restore_into` loads into a live object again.

Names. The tensors of a bare module or a flat dict are named by their keys as they are. Elsewhere
the keys on the way down are escaped and joined by ``/``: ``optimizer/state/0/exp_avg``. Keys are
str, int, bool, None and tuples of these. The skeleton holds every name; none is parsed back.

Shared memory. Two torch tensors with the same storage, offset, shape and stride (tied weights), or
one NumPy array met twice, are stored once; the later names are *aliases*, and restoring gives one
object for all of them. Torch tensors that are *different* views of one storage are stored each
under its own name, and their places are recorded: restoring allocates one storage and puts them
back in it, so a write through one shows in the others; bytes of it that no view covers come back as
zero. Views that lie so far apart that the storage is beyond 16 times their bytes plus 1 MiB come
back independent, and so do views of one NumPy array and memory shared by NumPy and torch.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from dataclasses import field
from typing import Any, Final

import msgpack
import numpy as np

from mldb.deferred import dataclass
from mldb.errors import InvalidNameError, InvalidTypeError, LimitError
from mldb.log import native
from mldb.names import check_name, escape_key
from mldb.state.leaves import (
    advice,
    component,
    component_as_is,
    integer_node,
    key_node,
    scalar_node,
    text_node,
)
from mldb.state.load import restore_into
from mldb.state.restore import unflatten
from mldb.state.skeleton import (
    COMPLEX,
    COUNTER,
    DICT,
    FORMAT,
    GENERATOR,
    LIST,
    MAX_SKELETON_BYTES,
    MODULE,
    ORDERED_DICT,
    SIZE,
    STATE_DEPTH_MAX,
    STATE_DICT,
    STATEFUL,
    STORAGE_ALIGNMENT,
    STORAGE_UNIT,
    TENSOR,
    TUPLE,
    StorageView,
    is_affordable,
)
from mldb.state.structs import is_record, take_apart
from mldb.tensors.codec import Prepared
from mldb.tensors.sparse import is_scipy_sparse
from mldb.tensors.together import prepare_small

__all__ = ["FlatState", "flatten", "restore_into", "unflatten"]

_AS_THEY_ARE: Final = frozenset({type(None), bool, float, bytes})
_DICT_TAGS: Final[dict[type, int]] = {dict: DICT, OrderedDict: ORDERED_DICT, Counter: COUNTER}
_ROOT_NAME = "value"  # of a state that is nothing but one tensor


@dataclass(frozen=True, slots=True)
class FlatState:
    """A state taken apart; ``tensors`` (name to value, in order) alias the memory of the state.

    ``aliases`` maps each further name of a tensor met before to the name that holds its bytes.
    """

    skeleton: bytes
    tensors: dict[str, Any] = field(repr=False)
    aliases: dict[str, str]


def flatten(
    state: object, *, prefix: str = "", ready: dict[str, Prepared] | None = None
) -> FlatState:
    """Return *state* as a skeleton and its tensors, without copying one; see the module docstring.

    Every name starts with *prefix* and ``/`` when a prefix is given. *ready* takes those of the
    tensors that were prepared on the way, by name: small ones, with a copy of their bytes.

    Raises InvalidTypeError naming the path of what cannot be stored, InvalidNameError for a path
    that gives no name (over 255 bytes), LimitError for a state deeper than 64, one that holds
    itself, or more than 64 MiB of plain values. The state must not be changed by others meanwhile.
    """
    walk = _Walk()
    root = walk.root(state, prefix)
    walk.check_names()
    walk.find_shared({} if ready is None else ready)
    fields = [FORMAT, root, walk.aliases, walk.storage_groups()]
    types = walk.types(root)
    if types:
        fields.append(types)
    try:
        skeleton = bytes(msgpack.packb(fields))
    except ValueError as error:
        raise _too_large(str(error)) from error
    if len(skeleton) > MAX_SKELETON_BYTES:
        raise _too_large(f"{len(skeleton)} bytes")
    return FlatState(skeleton, walk.tensors, walk.aliases)


class _Walk:
    """One pass over a state. Every tensor met stays referenced, so no address is met twice.

    ``tensors`` has all of them until :meth:`find_shared` makes aliases of some.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        self._torch: Any = sys.modules.get("torch")
        self._tensor_type: Any = self._torch.Tensor if self._torch else ()
        self._seen: dict[object, str] = {}
        self._first: dict[int, str] = {}  # of each storage: the name of the first tensor in it
        self._storages: dict[int, list[tuple[str, Any]]] = {}  # those with more than one
        self._types: dict[int, tuple[str, tuple[str, ...]]] = {}  # by the id of the node
        self._twin = native.twin
        if self._twin is not None:
            kinds = (self._torch.Tensor, self._torch.nn.Parameter) if self._torch else ()
            self._twin.meet_tensors(kinds, (TENSOR, DICT, LIST, TUPLE), STATE_DEPTH_MAX)

    def root(self, state: Any, prefix: str) -> Any:
        """Return the node of the whole state."""
        if self._torch and isinstance(state, self._torch.nn.Module):
            return [MODULE, self._dict(state.state_dict(), prefix, 1, as_is=True)]
        flat = type(state) in _DICT_TAGS and not any(map(self._is_nested, state.values()))
        if flat:
            return self._dict(state, prefix, 1, as_is=True)
        return self.node(state, prefix, 0)

    def node(self, value: Any, path: str, depth: int) -> Any:
        """Return the node of *value*; *path* is the name of it so far."""
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is str:
            return value if value.isascii() else text_node(value)
        if kind is int:
            return integer_node(value)
        if isinstance(value, self._tensor_type):
            return self._tensor(value, path)
        if depth >= STATE_DEPTH_MAX:
            raise LimitError(
                f"the state at {path[:200]!r} is nested deeper than {STATE_DEPTH_MAX}, or holds "
                "itself."
            )
        if kind in _DICT_TAGS:
            return self._dict(value, path, depth + 1)
        if kind is list:
            return self._sequence(LIST, value, path, depth + 1)
        if kind is tuple:
            return self._sequence(TUPLE, value, path, depth + 1)
        return self._other(value, path, depth + 1)

    def check_names(self) -> None:
        """Raise InvalidNameError for a path that gives no name."""
        if self._twin is not None and self._twin.tensor_keys(self.tensors) is not None:
            return
        for name in self.tensors:
            try:
                check_name(name)
            except InvalidNameError as error:
                raise InvalidNameError(f"a tensor of the state gets no name: {error}") from error

    def find_shared(self, ready: dict[str, Prepared]) -> None:
        """Make aliases of the tensors that are one, and note which ones lie in one storage.

        Called once, when all are there. *ready* takes what was prepared on the way.
        """
        found, prepared = prepare_small(self.tensors)
        places: list[Any] = found  # the storage of each, or an id of its own
        if None in places:
            for number, value in enumerate(self.tensors.values()):
                if places[number] is None:
                    identity = self._identity(value)
                    places[number] = identity[0] if type(identity) is tuple else identity
        ready.update(prepared)
        if len(set(places)) == len(places):
            return  # mostly each is alone
        often = Counter(places)
        for (name, value), place in zip(list(self.tensors.items()), places, strict=True):
            if often[place] > 1 and self._is_alias(name, value):
                ready.pop(name, None)

    def storage_groups(self) -> list[Any]:
        """Return the packed groups of tensors that are different views of one storage."""
        groups: list[Any] = []
        for members in self._storages.values():
            groups.extend(_pack_group(members))
        return groups

    def types(self, root: Any) -> list[Any]:
        """Return the packed types of nodes: each with the places of its nodes in *root*."""
        found: dict[tuple[str, tuple[str, ...]], list[list[int]]] = {}
        stack: list[tuple[Any, list[int]]] = [(root, [])] if self._types else []
        while stack:
            node, place = stack.pop()
            state_type = self._types.get(id(node))
            if state_type is not None:
                found.setdefault(state_type, []).append(place)
            stack += [
                (item, [*place, number])
                for number, item in enumerate(node)
                if isinstance(item, list)
            ]
        return [[name, fields, places] for (name, fields), places in found.items()]

    def _dict(self, value: Any, path: str, depth: int, *, as_is: bool = False) -> list[Any]:
        node: list[Any] = [_DICT_TAGS.get(type(value), DICT)]
        metadata = getattr(value, "_metadata", None) if node[0] == ORDERED_DICT else None
        if metadata is not None:
            node = [STATE_DICT, self.node(metadata, f"{path}/_metadata", depth)]
        start = f"{path}/" if path else ""
        twin = self._twin
        if twin is not None and twin.add_items(value, start, as_is, node, depth, self.tensors):
            return node
        add, tensor_type = node.append, self._tensor_type
        for key, item in value.items():
            is_text = type(key) is str
            add(key if is_text and key.isascii() else key_node(key, path))
            if type(item) in _AS_THEY_ARE:
                add(item)
                continue
            if as_is:
                name = start + component_as_is(key)
            else:
                name = start + (escape_key(key) if is_text else component(key))
            if isinstance(item, tensor_type):  # most are; node() would come to the same
                add(self._tensor(item, name))
            else:
                add(self.node(item, name, depth))
        return node

    def _sequence(self, tag: int, value: Any, path: str, depth: int) -> list[Any]:
        start = f"{path}/" if path else ""
        return [
            tag,
            *(self.node(item, f"{start}{index}", depth) for index, item in enumerate(value)),
        ]

    def _struct(
        self, value: Any, name: str, fields: dict[str, Any], path: str, depth: int
    ) -> list[Any]:
        is_tuple = isinstance(value, tuple)
        node = (
            self._sequence(TUPLE, value, path, depth)
            if is_tuple
            else self._dict(fields, path, depth)
        )
        self._types[id(node)] = (name, tuple(fields))
        return node

    def _tensor(self, value: Any, path: str) -> list[Any]:
        name = path or _ROOT_NAME
        if name in self.tensors:
            name = self._free_name(name)
        self.tensors[name] = value
        return [TENSOR, name]

    def _is_alias(self, name: str, value: Any) -> bool:
        """Make an alias of a tensor that is one with an earlier one; return whether it is."""
        identity = self._identity(value)
        holder = self._seen.get(identity)
        if holder is not None and type(identity) is tuple:
            own, other = _view_of(value), _view_of(self.tensors[holder])
            if own != other:  # another view, which begins in the same place
                identity = (*identity, *own)
                holder = self._seen.get(identity)
        if holder is not None:
            self.aliases[name] = holder
            del self.tensors[name]
            return True
        self._seen[identity] = name
        if type(identity) is tuple:
            first = self._first.setdefault(identity[0], name)
            if first != name:
                members = self._storages.setdefault(identity[0], [(first, self.tensors[first])])
                members.append((name, value))
        return False

    def _identity(self, tensor: Any) -> object:
        """Return what two tensors share when they are one: of torch the storage and the place."""
        if not isinstance(tensor, self._tensor_type):
            return id(tensor)
        try:
            if tensor.layout is not self._torch.strided or not tensor.numel():
                return id(tensor)
            if tensor.is_neg() or tensor.is_conj():
                return id(tensor)  # the same memory stands for other values
            return tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        except (RuntimeError, NotImplementedError, ValueError):
            return id(tensor)  # nested, lazy, without memory; preparing them gives the reason

    def _free_name(self, name: str) -> str:
        """Return a name like one that is taken: 1 and "1" are two keys with one name."""
        wanted = name
        count = 1
        while name in self.tensors:
            count += 1
            name = f"{wanted}~{count}"
        return name

    def _is_nested(self, value: Any) -> bool:
        if isinstance(value, (self._tensor_type, np.ndarray, np.generic)):
            return False
        if isinstance(value, dict | list | tuple) or hasattr(value, "state_dict"):
            return True
        return is_record(value)

    def _other(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, np.generic):
            return scalar_node(value, path)
        if isinstance(value, np.ndarray) or is_scipy_sparse(value):
            return self._tensor(value, path)
        if type(value) is complex:
            return [COMPLEX, value.real, value.imag]
        if self._torch:
            if isinstance(value, self._torch.nn.Module):
                return [MODULE, self._dict(value.state_dict(), path, depth)]
            if isinstance(value, self._torch.Size):
                return [SIZE, *value]
            if isinstance(value, self._torch.Generator):
                return [GENERATOR, str(value.device), self._tensor(value.get_state(), path)]
        struct = take_apart(value, path)
        if struct is not None:
            return self._struct(value, *struct, path, depth)
        if not isinstance(value, type) and callable(getattr(value, "state_dict", None)):
            return [STATEFUL, self.node(value.state_dict(), path, depth)]
        raise InvalidTypeError(
            f"the state holds a {type(value).__name__} at {path[:200]!r}, which is not stored. "
            f"{advice(value)} Nothing was stored."
        )


def _view_of(tensor: Any) -> tuple[Any, Any, Any]:
    """Return what tells two views apart that begin in one place of a storage."""
    return tensor.dtype, tensor.shape, tensor.stride()


def _pack_group(members: list[tuple[str, Any]]) -> list[Any]:
    starts = [tensor.storage_offset() * tensor.itemsize for _, tensor in members]
    base = min(starts) // STORAGE_ALIGNMENT * STORAGE_ALIGNMENT
    views = [
        StorageView(name, start - base, tuple(tensor.shape), tensor.stride())
        for start, (name, tensor) in zip(starts, members, strict=True)
    ]
    end = max(view.end(tensor.itemsize) for view, (_, tensor) in zip(views, members, strict=True))
    nbytes = -(-end // STORAGE_UNIT) * STORAGE_UNIT
    if not is_affordable(nbytes, sum(tensor.nbytes for _, tensor in members)):
        return []
    return [[nbytes, views]]


def _too_large(what: str) -> LimitError:
    return LimitError(
        f"the plain values of the state are too large: {what}, at most {MAX_SKELETON_BYTES} "
        "bytes. Pass large bytes as np.frombuffer(value, np.uint8). Nothing was stored."
    )
