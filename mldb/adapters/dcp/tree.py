"""The nested state of a distributed checkpoint as a skeleton, so that ``db.load`` takes it."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from mldb.adapters.dcp.document import Document
from mldb.adapters.dcp.layout import BoxedTensor
from mldb.adapters.dcp.values import value_node
from mldb.errors import LimitError
from mldb.state.leaves import text_node
from mldb.state.skeleton import DICT, FORMAT, LIST, STATE_DEPTH_MAX, TENSOR

_Branch = dict[Any, Any]
_LISTS: Final = int


class _Leaf:
    """The node of an entry, told apart from a branch."""

    __slots__ = ("node",)

    def __init__(self, node: Any) -> None:
        self.node = node


def skeleton_of_document(document: Document) -> bytes:
    """Return the skeleton of the state that was saved. Raises LimitError when it is too deep."""
    leaves = {fqn: _Leaf(_tensor_node(what)) for fqn, what in document.tensors.items()}
    leaves.update({fqn: _Leaf(value_node(data)) for fqn, data in document.values.items()})
    root: _Branch = {}
    for fqn, leaf in leaves.items():
        path = (document.paths or {}).get(fqn, (fqn,))
        branch = root
        for key in path[:-1]:
            below = branch.setdefault(key, {})
            if not isinstance(below, dict):
                break  # a planner of its own kind: the entry stands beside
            branch = below
        branch[path[-1]] = leaf
    return bytes(msgpack.packb([FORMAT, _node(root, 0), {}, []]))


def _tensor_node(what: BoxedTensor) -> Any:
    if what.is_whole:
        return [TENSOR, what.boxes[0][1]]
    node: list[Any] = [DICT]
    for box, name in what.boxes:
        node += [".".join(map(str, box.offsets)), [TENSOR, name]]
    return node


def _node(value: _Branch | _Leaf, depth: int) -> Any:
    if isinstance(value, _Leaf):
        return value.node
    if depth >= STATE_DEPTH_MAX:
        raise LimitError(f"the state is nested deeper than {STATE_DEPTH_MAX}. Nothing was stored.")
    if value and all(type(key) is _LISTS for key in value):
        parts = [value.get(index) for index in range(max(value) + 1)]
        return [LIST, *(None if part is None else _node(part, depth + 1) for part in parts)]
    node: list[Any] = [DICT]
    for key, part in value.items():
        node += [text_node(str(key)), _node(part, depth + 1)]
    return node
