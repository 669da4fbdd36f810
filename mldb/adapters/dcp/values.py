"""What of a state is no tensor, as bytes and back: the skeletons of ``mldb.state``, no pickles."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final, NoReturn

from mldb.errors import CorruptError, InvalidTypeError, MldbError
from mldb.state.skeleton import MAX_SKELETON_BYTES, parse_skeleton
from mldb.state.tree import flatten, unflatten

_PLAIN: Final = b"V"
_BYTES_IO: Final = b"B"
_OPAQUE: Final = b"O"


def encode_value(fqn: str, value: Any) -> bytes:
    """Return a plain value as bytes, which do not change with it.

    Raises InvalidTypeError and LimitError that name *fqn* for what is none.
    """
    if isinstance(value, BytesIO):
        return _BYTES_IO + value.getvalue()
    try:
        flat = flatten({"value": value})
    except MldbError as error:
        error.args = (f"{fqn!r:.300} of the state: {error}", *error.args[1:])
        raise
    if flat.tensors:
        raise InvalidTypeError(
            f"{fqn!r:.300} of the state is a {type(value).__name__} that holds tensors, of which "
            "torch.distributed.checkpoint makes no entries of their own. Make it a dict or a list. "
            "Nothing was stored."
        )
    return _PLAIN + flat.skeleton


def encode_opaque(data: bytes) -> bytes:
    """Return what a planner made of a value itself; only a planner can tell what it is."""
    return _OPAQUE + data


def opaque_of(data: bytes) -> bytes | None:
    """Return what a planner made of a value itself; None where the value is known."""
    return data[1:] if data[:1] == _OPAQUE else None


def decode_value(fqn: str, data: bytes) -> Any:
    """Return the value again. Raises CorruptError that names *fqn*."""
    if data[:1] == _BYTES_IO:
        return BytesIO(data[1:])
    if data[:1] != _PLAIN or len(data) > MAX_SKELETON_BYTES:
        raise _damaged(fqn, "it has no known form")
    state = unflatten(data[1:], lambda name: _refuse_tensor(fqn))
    if type(state) is not dict or list(state) != ["value"]:
        raise _damaged(fqn, "it is not one value")
    return state["value"]


def value_node(data: bytes) -> Any:
    """Return the node of an encoded value in a skeleton; its named tuples are tuples there."""
    if data[:1] in (_BYTES_IO, _OPAQUE):
        return data[1:]
    root = parse_skeleton(data[1:]).root
    return root[2]  # behind the tag of the dict and its one key


def _refuse_tensor(fqn: str) -> NoReturn:
    raise _damaged(fqn, "it asks for a tensor")


def _damaged(fqn: str, problem: str) -> CorruptError:
    return CorruptError(
        f"the stored value {fqn!r:.300} of a distributed checkpoint is damaged: {problem}. Tensors "
        "stay readable under their names.",
        key=fqn,
    )
