"""The nodes of a skeleton that hold no others: plain values, keys, and how keys become names."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np

from mldb.errors import InvalidNameError, InvalidTypeError, LimitError
from mldb.names import check_name, escape_key
from mldb.state.skeleton import BIG_INTEGER, SCALAR, STATE_DEPTH_MAX, TEXT, TUPLE
from mldb.tensors.dtypes import dtype_code


def integer_node(value: int) -> Any:
    """Return the node of an integer of any size."""
    if -(1 << 63) <= value < 1 << 64:
        return value
    return [BIG_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]


def text_node(value: str) -> Any:
    """Return the node of a text, also of one with lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return [TEXT, value.encode("utf-8", "surrogatepass")]
    return value


def scalar_node(value: np.generic, path: str) -> list[Any]:
    """Return the node of a NumPy scalar; raises InvalidTypeError for texts, bytes and void."""
    if isinstance(value, str | bytes | np.void):
        raise InvalidTypeError(
            f"the state holds a {type(value).__name__} at {path[:200]!r}, which is not stored. "
            "Convert it with .item()."
        )
    return [SCALAR, dtype_code(value.dtype), value.tobytes()]


def key_node(key: object, path: str, depth: int = 0) -> Any:
    """Return the node of a dict key at *path*; raises InvalidTypeError for a type not stored."""
    kind = type(key)
    if key is None or kind is bool:
        return key
    if type(key) is int:
        return integer_node(key)
    if type(key) is str:
        return text_node(key)
    if type(key) is tuple:
        if depth >= STATE_DEPTH_MAX:
            raise LimitError(
                f"a key of the state at {path[:200]!r} is deeper than {STATE_DEPTH_MAX}."
            )
        return [TUPLE, *(key_node(item, path, depth + 1) for item in key)]
    raise InvalidTypeError(
        f"the state has a key {key!r:.80} of type {kind.__name__} at {path[:200]!r}; keys are "
        "str, int, bool, None and tuples of these. Nothing was stored."
    )


def component(key: object) -> str:
    """Return *key* as one component of a name."""
    return escape_key(key if type(key) is str else _key_text(key))


def component_as_is(key: object) -> str:
    """Return *key* as the rest of a name, escaped only where it would give none."""
    text = key if type(key) is str else _key_text(key)
    try:
        check_name(text)
    except InvalidNameError:
        return escape_key(text)
    return text


def _key_text(key: object) -> str:
    if isinstance(key, tuple):
        return ",".join(_key_text(item) for item in key)
    return str(key)


def advice(value: object) -> str:
    """Return what to do instead of putting *value*, which is not stored, into a state."""
    if isinstance(value, set | frozenset):
        return "A set has no order: pass sorted(value), or list(value)."
    if isinstance(value, defaultdict):
        return "The factory of a defaultdict is code: pass dict(value)."
    if isinstance(value, dict | list | tuple | str | bytes | int | float):
        return (
            "Only the plain built-in types are stored, not classes derived from them: convert it."
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (
            "A dataclass is stored once its class is registered: "
            f"mldb.register_state_type({type(value).__name__})."
        )
    if isinstance(value, np.random.Generator | np.random.BitGenerator | np.random.RandomState):
        return "Pass the state of it: rng.bit_generator.state, or get_state()."
    return (
        "Pass its state as numbers, texts, arrays and containers of these, or give its class "
        "state_dict() and load_state_dict(). mldb never pickles objects."
    )
