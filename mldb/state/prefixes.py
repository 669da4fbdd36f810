"""The prefixes that wrappers put before the keys of a module, recognised and taken off.

``torch.compile`` puts ``_orig_mod.`` before them, ``DistributedDataParallel`` and its like
``module.``; both together, and around parts of a model. The target's own tree of modules tells
which of them belong there: a name that it has stays, one that it lacks is dropped, and one that a
wrapper of the target adds is put in; the reading that explains most of a key is taken. So keys of
old names, which load hooks translate, are found as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from mldb.errors import InvalidTypeError
from mldb.state.trial import with_own_metadata

AUTO: Final = "auto"
_MAKERS: Final = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or another wrapper",
}
_READINGS_MAX: Final = 64  # of one key; those of two wrappers and a child of their names are 8
_ANY_NAME: Final = "\0"  # of no parameter; stands for whatever a module holds itself


class _Renamed(NamedTuple):
    """A key as the target has it, and the prefixes that differ."""

    key: str
    dropped: tuple[str, ...]
    added: tuple[str, ...]


class _Reading(NamedTuple):
    """How far a key has been followed: to which module, under what name, and what is left of it."""

    module: Any
    rest: tuple[str, ...]
    name: tuple[str, ...]
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def check_prefix(strip_prefix: object) -> None:
    """Raise InvalidTypeError for what is no prefix."""
    if strip_prefix is not None and not isinstance(strip_prefix, str):
        raise InvalidTypeError(
            f"strip_prefix is a {type(strip_prefix).__name__}; pass 'auto', or the text to take "
            "off, such as 'module.'. Nothing was changed."
        )


def without_prefix(module: Any, state: dict[Any, Any], strip_prefix: str | None) -> dict[Any, Any]:
    """Return *state*, the saved state dict of *module*, under the keys that the module has.

    *strip_prefix* is None (as saved), "auto", or the text to take off wherever a key starts with
    it. A key whose new name is that of another keeps its own.
    """
    if not strip_prefix:
        return state
    if strip_prefix == AUTO:
        names = {key: _renamed(module, key).key for key in _texts(state)}
    else:
        names = {key: key.removeprefix(strip_prefix) for key in _texts(state)}
    result = with_own_metadata(state, _under(names, state))
    metadata = getattr(result, "_metadata", None)
    if isinstance(metadata, dict):
        vars(result)["_metadata"] = _moved_metadata(module, metadata, strip_prefix)
    return result


def without_prefix_of_dict(
    target: dict[Any, Any], state: dict[Any, Any], strip_prefix: str | None
) -> dict[Any, Any]:
    """Return *state* under the keys of *target*, a state dict: here names alone can tell.

    With "auto" a key becomes the one of *target* that is equal but for prefixes of wrappers.
    """
    if not strip_prefix:
        return state
    if strip_prefix == AUTO:
        names = _names_but_for_wrappers(target, state)
    else:
        names = {key: key.removeprefix(strip_prefix) for key in _texts(state)}
    return _under(names, state)


def advice_on_prefixes(module: Any, state: dict[Any, Any]) -> str:
    """Return what to say in an error when prefixes of wrappers keep keys from matching, or ""."""
    wanted = set(module.state_dict())
    moves = [_renamed(module, key) for key in _texts(state) if key not in wanted]
    moves = [move for move in moves if move.key in wanted]
    return _advice({move.dropped for move in moves}, {move.added for move in moves})


def advice_on_prefixes_of_dict(target: dict[Any, Any], state: dict[Any, Any]) -> str:
    """Return the same for a target that is a state dict."""
    names = _names_but_for_wrappers(target, state)
    moves = [(key, name) for key, name in names.items() if key != name]
    dropped = {tuple(part for part in key.split(".") if part in _MAKERS) for key, _ in moves}
    added = {tuple(part for part in name.split(".") if part in _MAKERS) for _, name in moves}
    return _advice(dropped, added)


def _advice(dropped: set[tuple[str, ...]], added: set[tuple[str, ...]]) -> str:
    clauses = []
    for side, prefixes in (("the saved keys", dropped), ("those of the target", added)):
        parts = max(prefixes, key=len, default=())
        if parts:
            makers = ", ".join(dict.fromkeys(_MAKERS[part] for part in parts))
            clauses.append(f"{side} have the prefix {'.'.join(parts)}. ({makers})")
    if not clauses:
        return ""
    return f" The names differ by a prefix: {', '.join(clauses)}. Pass strip_prefix='auto'."


def _renamed(module: Any, key: str) -> _Renamed:
    """Return *key* as *module* has it: the reading that leaves least of it unexplained."""
    readings = _readings(_Reading(module, tuple(key.split(".")), (), (), ()))
    best = min(islice(readings, _READINGS_MAX), key=lambda reading: len(reading.rest))
    return _Renamed(".".join(best.name + best.rest), best.dropped, best.added)


def _readings(at: _Reading) -> Iterator[_Reading]:
    """Walk down the modules along a key, the ways that pass over fewest wrappers first."""
    module, rest = at.module, at.rest
    if module is None or not rest:
        yield at
        return
    first = rest[0]
    if len(rest) == 1 and (first in module._parameters or first in module._buffers):
        yield at._replace(name=at.name + rest, rest=())
        return
    ways = []
    if first in module._modules:
        ways.append(
            at._replace(module=module._modules[first], name=(*at.name, first), rest=rest[1:])
        )
    wrapper = _wrapper_in(module)
    if wrapper is not None:
        inside = at._replace(module=module._modules[wrapper], name=(*at.name, wrapper))
        ways.append(inside._replace(added=(*at.added, wrapper)))
    if first in _MAKERS and len(rest) > 1:
        ways.append(at._replace(rest=rest[1:], dropped=(*at.dropped, first)))
    for way in ways:
        yield from _readings(way)
    if not ways:
        yield at


def _wrapper_in(module: Any) -> str | None:
    """Return the name under which *module* holds what it wraps, or None when it is no wrapper."""
    children = list(module._modules)
    return children[0] if len(children) == 1 and children[0] in _MAKERS else None


def _moved_metadata(module: Any, metadata: dict[Any, Any], strip_prefix: str) -> dict[Any, Any]:
    """Return torch's versions of modules by the path that each module has in the target."""
    result = type(metadata)()
    for path, value in metadata.items():
        key = f"{path}.{_ANY_NAME}" if path else _ANY_NAME
        if strip_prefix == AUTO:
            key = _renamed(module, key).key
        else:
            key = key.removeprefix(strip_prefix)
        # The wrapper's own comes first and gives way to that of what it wraps.
        result[key.removesuffix(_ANY_NAME).removesuffix(".")] = value
    return result


def _names_but_for_wrappers(target: Iterable[Any], state: Iterable[Any]) -> dict[str, str]:
    """Return the key of *target* for each key of *state* that differs from it by wrappers alone."""
    wanted: dict[str, list[str]] = {}
    for key in _texts(target):
        wanted.setdefault(_bare(key), []).append(key)
    found: dict[str, list[str]] = {}
    for key in _texts(state):
        found.setdefault(_bare(key), []).append(key)
    return {
        keys[0]: wanted[bare][0]
        for bare, keys in found.items()
        if len(keys) == 1 and len(wanted.get(bare, ())) == 1
    }


def _bare(key: str) -> str:
    parts = key.split(".")
    return ".".join([part for part in parts[:-1] if part not in _MAKERS] + parts[-1:])


def _texts(keys: Iterable[Any]) -> list[str]:
    return [key for key in keys if isinstance(key, str)]


def _under(names: dict[str, str], state: dict[Any, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in state.items():
        name = names.get(key, key)
        taken = name != key and (name in state or name in result)
        result[key if taken else name] = value
    return result
