"""Lightning's checkpoint as a state that mldb stores: long keys get short names.

The name of a stored tensor is the keys on the way to it, at most 255 bytes. The keys of callbacks
hold all their settings, and those of ``best_k_models`` are paths of files. Where a name would be
too long, the dict with the longest key on the way is stored as a :class:`LongKeys` instead, and
comes back as the dict that it was.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch

from mldb.names import MAX_NAME_BYTES, escape_key
from mldb.state.structs import is_named_tuple, register_state_type

_NUMBER_BYTES: Final = 12  # of a place in a list, with what tells two equal names apart
_ROOM: Final = MAX_NAME_BYTES - _NUMBER_BYTES
_DEPTH_MAX: Final = 64


class LongKeys(NamedTuple):
    """A dict by its keys and its values, in order."""

    keys: tuple[Any, ...]
    values: tuple[Any, ...]


register_state_type(LongKeys, name="mldb.adapters.lightning.LongKeys")


def with_short_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return *checkpoint* with every tensor at a path that fits; itself where all do.

    No tensor is copied or changed. Costs one walk over what is no tensor.
    """
    found: dict[str, Any] = _shortened(checkpoint, _ROOM, 0)
    return found


def with_long_keys(value: Any) -> Any:
    """Return what :func:`with_short_names` was given, after it was stored and loaded."""
    if isinstance(value, LongKeys):
        pairs = zip(value.keys, value.values, strict=True)
        return {key: with_long_keys(item) for key, item in pairs}
    if type(value) is dict:
        for key, item in value.items():
            changed = with_long_keys(item)
            if changed is not item:
                value[key] = changed
        return value
    if type(value) in (list, tuple):
        items = [with_long_keys(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return items if type(value) is list else tuple(items)
    return value


def _shortened(value: Any, room: int, depth: int) -> Any:
    """Return *value*, whose tensors have *room* bytes for their names below it."""
    if depth > _DEPTH_MAX or _longest(value, depth) <= room:
        return value  # deeper ones are refused where they are stored
    if type(value) is dict:
        keys = list(value)
        sizes = [_size(key) for key in keys]
        lengths = [_longest(part, depth + 1) for part in value.values()]
        # Keys that lead to no name that is too long stay where they are, however long.
        leading = [
            size
            for size, below in zip(sizes, lengths, strict=True)
            if below and below + size > room
        ]
        if max(leading, default=0) > 2 * _NUMBER_BYTES:
            below = room - 2 * _NUMBER_BYTES
            parts = tuple(_shortened(part, below, depth + 1) for part in value.values())
            return LongKeys(tuple(keys), parts)
        return {
            key: _shortened(part, room - size, depth + 1)
            for (key, part), size in zip(value.items(), sizes, strict=True)
        }
    if type(value) in (list, tuple):
        parts = tuple(_shortened(part, room - _NUMBER_BYTES, depth + 1) for part in value)
        return parts if type(value) is tuple else list(parts)
    return value


def _longest(value: Any, depth: int) -> int:
    """Return how many bytes the longest name of a tensor in *value* has from here; 0 for none."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return 1
    if depth > _DEPTH_MAX:
        return 0
    longest = 0
    if isinstance(value, dict):
        for key, part in value.items():
            below = _longest(part, depth + 1)
            if below:
                longest = max(longest, below + _size(key))
    elif isinstance(value, list | tuple) and not is_named_tuple(value):
        for part in value:
            below = _longest(part, depth + 1)
            if below:
                longest = max(longest, below + _NUMBER_BYTES)
    return longest


def _size(key: Any) -> int:
    text = key if type(key) is str else repr(key)
    return len(escape_key(text).encode("utf-8", "surrogatepass")) + 1
