"""A restored state loaded into live objects: modules, optimizers, generators, tensors.

Everything is checked before anything is changed, as far as the objects can be asked without
changing them, so that a refused load leaves the training state as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.state.optimizers import fit_optimizers
from mldb.state.structs import PLAIN, is_record, parts_of, retyped, with_parts

_Keys: TypeAlias = Iterable[Any]


def restore_into(target: Any, tree: Any, *, strict: bool = True) -> Any:
    """Load *tree* into the live objects of *target*, which has the same shape; return the outcome.

    Modules, optimizers and others with ``load_state_dict`` load their part; a ``torch.Generator``
    takes its state; torch tensors and NumPy arrays are overwritten in place. The result is *target*
    with those live objects and, for plain values, the ones of *tree*; containers of *target* are
    not changed themselves, and named tuples and dataclasses have the type that they have there.
    Optimizers keep tensors of *tree*, so these must be the caller's own; their states go by name
    where both sides have names (see ``mldb.state.optimizers``).

    With *strict*, keys must agree: MissingError names what *tree* lacks, InvalidValueError what it
    has too much, both before any change. Without, what is missing stays as it is. InvalidValueError
    also for a shape or dtype that differs, InvalidTypeError for a part of another type. Call it
    from the thread that trains.
    """
    tree = fit_optimizers(target, tree, strict=strict)
    _check(target, tree, "", strict=strict)
    return _apply(target, tree, "", strict=strict)


def _is_stateful(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "load_state_dict", None))


def _is_torch(value: Any, kind: str) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, kind))


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_live(value: Any) -> bool:
    """Whether *value* is, or holds, something that a state is loaded into."""
    if type(value) in PLAIN:
        return False
    parts = parts_of(value)
    if parts is not None:
        return any(map(is_live, parts.values()))
    if isinstance(value, np.ndarray) or _is_torch(value, "Tensor"):
        return True
    return _is_torch(value, "Generator") or _is_stateful(value)


def _check(target: Any, tree: Any, path: str, *, strict: bool) -> None:
    if not is_live(target):
        return
    if _is_module(target):
        _check_module(target, tree, path, strict=strict)
    elif isinstance(target, np.ndarray):
        _check_array(target, tree, path)
    elif _is_torch(target, "Tensor"):
        _check_tensor(target, tree, path)
    elif _is_torch(target, "Generator"):
        if not _is_torch(tree, "Tensor"):
            raise _other_type(path, "the state tensor of a torch.Generator", tree)
    elif is_record(target):
        _check(parts_of(target), parts_of(tree), path, strict=strict)
    elif isinstance(target, dict):
        if not isinstance(tree, dict):
            raise _other_type(path, "a dict", tree)
        if strict:
            _check_keys(target, tree, path)
        for key, value in target.items():
            if key in tree:
                _check(value, tree[key], f"{path}[{key!r}]", strict=strict)
    elif isinstance(target, list | tuple):
        if not isinstance(tree, list | tuple) or len(tree) != len(target):
            raise _other_type(path, f"a sequence of {len(target)}", tree)
        for index, value in enumerate(target):
            _check(value, tree[index], f"{path}[{index}]", strict=strict)


def _check_module(module: Any, tree: Any, path: str, *, strict: bool) -> None:
    if not isinstance(tree, dict):
        raise _other_type(path, f"the state dict of {type(module).__name__}", tree)
    expected = module.state_dict()
    if strict:
        _check_keys(expected, tree, path)
    lazy = sys.modules["torch"].nn.parameter.is_lazy
    for key, value in expected.items():
        saved: Any = tree.get(key)
        if not _is_torch(value, "Tensor") or not hasattr(saved, "shape") or lazy(value):
            continue
        if tuple(saved.shape) != tuple(value.shape):
            raise InvalidValueError(
                f"{_place(path)}: {key!r} has shape {tuple(value.shape)} and the saved one "
                f"{tuple(saved.shape)}. Nothing was changed; build the module as it was saved."
            )


def _check_array(target: np.ndarray[Any, Any], tree: Any, path: str) -> None:
    if not isinstance(tree, np.ndarray):
        raise _other_type(path, "a NumPy array", tree)
    if tree.shape != target.shape or tree.dtype != target.dtype:
        raise _other_form(path, target, tree)
    if not target.flags.writeable:
        raise InvalidValueError(f"{_place(path)} is a read-only array. Nothing was changed.")


def _check_tensor(target: Any, tree: Any, path: str) -> None:
    if not _is_torch(tree, "Tensor"):
        raise _other_type(path, "a torch tensor", tree)
    if tree.shape != target.shape or tree.dtype != target.dtype or tree.layout != target.layout:
        raise _other_form(path, target, tree)


def _check_keys(expected: _Keys, found: _Keys, path: str) -> None:
    have = set(found)
    want = set(expected)
    missing = [key for key in expected if key not in have]
    unexpected = [key for key in found if key not in want]
    if not missing and not unexpected:
        return
    text = f"{_place(path)} does not match what was saved:"
    if missing:
        text += f" {len(missing)} missing in the saved state ({_listed(missing)});"
    if unexpected:
        text += f" {len(unexpected)} saved but not in the target ({_listed(unexpected)});"
    text += " nothing was changed. Pass strict=False to load what both have."
    raise MissingError(text) if missing else InvalidValueError(text)


def _apply(target: Any, tree: Any, path: str, *, strict: bool) -> Any:
    if not is_live(target):
        return retyped(target, tree)
    if isinstance(target, np.ndarray):
        np.copyto(target, tree, casting="no")
    elif _is_torch(target, "Tensor"):
        with sys.modules["torch"].no_grad():
            target.copy_(tree)
    elif _is_torch(target, "Generator"):
        _call(target.set_state, tree, path)
    elif is_record(target):
        parts = _apply(parts_of(target), parts_of(tree), path, strict=strict)
        return with_parts(target, parts)
    elif isinstance(target, dict):
        parts = {
            key: _apply(value, tree[key], f"{path}[{key!r}]", strict=strict)
            if key in tree
            else value
            for key, value in target.items()
        }
        return with_parts(target, parts)
    elif isinstance(target, list | tuple):
        parts = {
            index: _apply(value, tree[index], f"{path}[{index}]", strict=strict)
            for index, value in enumerate(target)
        }
        return with_parts(target, parts)
    elif _is_module(target):
        _call(target.load_state_dict, tree, path, strict=strict)
    else:
        _call(target.load_state_dict, tree, path)
    return target


def _call(method: Any, value: Any, path: str, **options: Any) -> None:
    try:
        method(value, **options)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InvalidValueError(
            f"{_place(path)} refused its saved state: {error!s:.500}. It may be changed in part; "
            "what is stored is safe."
        ) from error


def _place(path: str) -> str:
    return f"the target at {path[:200]}" if path else "the target"


def _listed(keys: list[Any]) -> str:
    shown = ", ".join(repr(key)[:80] for key in keys[:8])
    return shown if len(keys) <= 8 else f"{shown}, …"


def _other_type(path: str, wanted: str, found: object) -> InvalidTypeError:
    return InvalidTypeError(
        f"{_place(path)} needs {wanted} and the saved state has a {type(found).__name__} there. "
        "Nothing was changed."
    )


def _other_form(path: str, target: Any, found: Any) -> InvalidValueError:
    return InvalidValueError(
        f"{_place(path)} is {target.dtype} of shape {tuple(target.shape)} and the saved one "
        f"{found.dtype} of shape {tuple(found.shape)}. Nothing was changed."
    )
