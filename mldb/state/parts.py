"""The part of a stored state that a prefix of names selects, as it was given.

A prefix goes down the state by keys, escaped as they are in names, each with a ``/`` behind it; the
rest of it, without a ``/`` behind it, selects keys that begin so: ``model/`` is the state of the
module stored there, ``model/encoder.`` that of its child.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

from mldb.state.leaves import component
from mldb.state.restore import build, key_of
from mldb.state.skeleton import (
    COUNTER,
    DICT,
    GENERATOR,
    LIST,
    MODULE,
    ORDERED_DICT,
    STATE_DICT,
    STATEFUL,
    TENSOR,
    TUPLE,
    Skeleton,
)

_FIRST_KEY: Final = {DICT: 1, ORDERED_DICT: 1, COUNTER: 1, STATE_DICT: 2}
_HOLDERS: Final = frozenset({*_FIRST_KEY, LIST, TUPLE, MODULE, STATEFUL, GENERATOR})
_EXTRA_STATE: Final = "_extra_state"


class _Found(NamedTuple):
    """Where a prefix leads: a node, what is left of the prefix, and whether an object was there."""

    node: Any
    rest: str
    is_object: bool


def state_at(
    skeleton: Skeleton,
    prefix: str,
    load: Callable[[str], object],
    load_plain: Callable[[str], object],
) -> Any | None:
    """Return the state dict that *prefix* selects, or None where it leads to no state dict.

    The state of a module, of another object with ``state_dict()`` and a dict with torch's versions
    of modules come back as they were given, their tensors from *load*. Of a plain dict without
    containers come the tensors, from *load_plain*, and extra state. What is left of the prefix is
    cut off keys and versions. Raises CorruptError for a damaged skeleton, InvalidValueError for a
    registered class in what was asked for whose fields are not the stored ones, and what *load*
    raises.
    """
    # Refuses a damaged one as a whole; of classes that lost fields only those asked for matter.
    build(skeleton, skeleton.root, lambda name: name, makes_types=False)
    found = _follow(skeleton.root, prefix)
    tag = _tag(found.node)
    if tag not in _FIRST_KEY:
        return None
    as_given = found.is_object or tag == STATE_DICT
    if not as_given and not _is_flat(found.node):
        return None
    node = _selected(found.node, found.rest, everything=as_given)
    plain = set() if as_given else _plain_names(skeleton, node)
    state = build(skeleton, node, lambda name: (load_plain if name in plain else load)(name))
    metadata = getattr(state, "_metadata", None)
    if found.rest and isinstance(metadata, dict):
        state._metadata = _under(metadata, found.rest)
    return state


def tensor_names(node: Any) -> list[str]:
    """Return the names of the tensors in *node*, in order, each once."""
    names: dict[str, None] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        tag = _tag(node)
        if tag == TENSOR:
            names[node[1]] = None
        elif tag in _HOLDERS:
            waiting.extend(reversed(node[1:]))
    return list(names)


def _follow(node: Any, prefix: str) -> _Found:
    """Go down from *node* as far as whole keys of *prefix* lead."""
    is_object = False
    while True:
        tag = _tag(node)
        if tag in (MODULE, STATEFUL):
            node, is_object = node[1], True
            continue
        step = next((step for step in _children(node, tag) if prefix.startswith(step[0])), None)
        if step is None or _tag(step[1]) not in _HOLDERS:
            return _Found(node, prefix, is_object)
        node, prefix, is_object = step[1], prefix.removeprefix(step[0]), False


def _children(node: Any, tag: int) -> list[tuple[str, Any]]:
    """The parts of *node*, each with the piece of a name that leads to it."""
    if tag in (LIST, TUPLE):
        return [(f"{index}/", item) for index, item in enumerate(node[1:])]
    return [(f"{component(key)}/", item) for key, item in _items(node, tag)]


def _items(node: Any, tag: int) -> list[tuple[Any, Any]]:
    first = _FIRST_KEY.get(tag)
    if first is None:
        return []
    return [(key_of(key, 0), item) for key, item in list(pairwise(node[first:]))[::2]]


def _plain_names(skeleton: Skeleton, node: Any) -> set[str]:
    """The stored names of tensors that are values of the dict *node* itself, not extra state."""
    items = _items(node, node[0])
    names = [item[1] for key, item in items if _tag(item) == TENSOR and not _is_extra(key)]
    return {skeleton.aliases.get(name, name) for name in names}


def _is_flat(node: Any) -> bool:
    return not any(
        _tag(item) in _HOLDERS for key, item in _items(node, node[0]) if not _is_extra(key)
    )


def _selected(node: Any, rest: str, *, everything: bool) -> Any:
    """Return the dict *node* with the keys that begin with *rest*, which is cut off them."""
    if not rest and everything:
        return node
    tag = node[0]
    result = node[: _FIRST_KEY[tag]]
    for key, item in _items(node, tag):
        fits = isinstance(key, str) and key.startswith(rest) if rest else True
        if fits and (everything or _tag(item) == TENSOR or _is_extra(key)):
            result += [key.removeprefix(rest) if rest else key, item]
    return result


def _under(metadata: Any, rest: str) -> Any:
    """Return the versions of the modules below the path *rest*, under their paths from there."""
    result = type(metadata)()
    if rest.endswith("."):
        for path, value in metadata.items():
            if isinstance(path, str) and f"{path}.".startswith(rest):
                result[path.removeprefix(rest[:-1]).removeprefix(".")] = value
    return result


def _is_extra(key: object) -> bool:
    return isinstance(key, str) and key.rpartition(".")[2] == _EXTRA_STATE


def _tag(node: Any) -> int:
    is_node = type(node) is list and node and type(node[0]) is int
    return node[0] if is_node else 0
