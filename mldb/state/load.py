"""A restored state loaded into live objects: modules, optimizers, generators, tensors.

Everything is checked before anything is changed, as far as the objects can be asked without
changing them, so that a refused load leaves the training state as it was. What fits a module, its
own loading decides: see ``mldb.state.load_modules``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from mldb.errors import InvalidTypeError, InvalidValueError, MldbError
from mldb.state.load_modules import (
    LoadOptions,
    advice_on_parts,
    check_module,
    keys_error,
    load_module,
    on_meta,
    outside_inference,
)
from mldb.state.optimizer_names import KEPT
from mldb.state.optimizers import fit_optimizers
from mldb.state.prefixes import advice_on_prefixes_of_dict, check_prefix, without_prefix_of_dict
from mldb.state.report import Findings, LoadReport, NothingLoadedWarning, joined, target_at
from mldb.state.structs import PLAIN, is_record, parts_of, retyped, with_parts

_BARE: Final = "value"  # how a report calls a target that is one object without keys


def restore_into(
    target: Any,
    tree: Any,
    *,
    strict: bool = True,
    assign: bool = False,
    strip_prefix: str | None = None,
) -> LoadReport:
    """Load *tree* into the live objects of *target*, which has the same shape; return what was.

    Modules, optimizers and others with ``load_state_dict`` load their part; a ``torch.Generator``
    takes its state; torch tensors and NumPy arrays are overwritten in place. The ``state`` of the
    report is *target* with those live objects and, for plain values, the ones of *tree*; containers
    of *target* are not changed themselves, and named tuples and dataclasses have the type that they
    have there. Optimizers keep tensors of *tree*, so these must be the caller's own; their states
    go by name where both sides have names (see ``mldb.state.optimizers``).

    With *strict*, keys must agree: MissingError names what *tree* lacks, InvalidValueError what it
    has too much, both before any change. Without, what is missing stays as it is, and a module,
    dict or named optimizer that has nothing in common with its part gives a NothingLoadedWarning;
    of an optimizer with names on both sides the states that fit by name are loaded. With *assign*
    the tensors of *tree* take the places of a module's, as in torch, whose ``requires_grad`` is
    kept; tensors on the meta device need it, and buffers that are not saved stay there. An
    optimizer over the old ones is refused then: build it afterwards. *strip_prefix* is the text to
    take off keys of modules and state dicts, or "auto" for the prefixes of wrappers on either side.

    InvalidValueError also for a shape or dtype that differs and for whatever a module refuses,
    InvalidTypeError for a part of another type. Call it from the thread that trains; nobody else
    may use the objects meanwhile. Modules run their loading twice (``mldb.state.load_modules``).
    """
    check_prefix(strip_prefix)
    options = LoadOptions(strict, assign, strip_prefix)
    if assign:
        _refuse_orphans(target)
    found = Findings([], [], [], [], [])
    tree = fit_optimizers(target, tree, found, strict=strict)
    _check(target, tree, "", options)
    state = _apply(target, tree, "", options, found)
    for text in found.warnings:
        warnings.warn(text, NothingLoadedWarning, stacklevel=3)  # at who called db.load
    return found.report(state)


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


def _check(target: Any, tree: Any, path: str, options: LoadOptions) -> None:
    if not is_live(target):
        return
    if _is_module(target):
        check_module(target, tree, path, options)
    elif isinstance(target, np.ndarray):
        _check_array(target, tree, path)
    elif _is_torch(target, "Tensor"):
        _check_tensor(target, tree, path, options)
    elif _is_torch(target, "Generator"):
        _check_generator(target, tree, path)
    elif is_record(target):
        _check(parts_of(target), parts_of(tree), path, options)
    elif isinstance(target, dict):
        if not isinstance(tree, dict):
            raise _other_type(path, "a dict", tree)
        tree = _renamed(target, tree, options)
        if options.strict:
            _check_keys(target, tree, path)
        for key, value in target.items():
            if key in tree:
                _check(value, tree[key], joined(path, key), options)
    elif isinstance(target, list | tuple):
        if not isinstance(tree, list | tuple) or len(tree) != len(target):
            raise _other_type(path, f"a sequence of {len(target)}", tree)
        for index, value in enumerate(target):
            _check(value, tree[index], joined(path, index), options)


def _refuse_orphans(target: Any) -> None:
    """Refuse an optimizer that would be left with parameters which no module has any more."""
    torch = sys.modules.get("torch")
    if torch is None or torch.__future__.get_swap_module_params_on_conversion():
        return  # torch then changes the tensors themselves, and whoever holds them has the new
    live = list(_live_objects(target))
    held = {id(p) for module in live if _is_module(module) for p in module.parameters()}
    for optimizer in live:
        for group in getattr(optimizer, "param_groups", None) or ():
            if any(id(parameter) in held for parameter in group["params"]):
                raise InvalidValueError(
                    f"assign=True replaces the parameters of a module, and the "
                    f"{type(optimizer).__name__} in the target holds the ones it has now. Nothing "
                    "was changed. Load the module first, build the optimizer over its parameters, "
                    "and load that without assign."
                )


def _live_objects(target: Any) -> Iterator[Any]:
    parts = parts_of(target)
    if parts is not None:
        for value in parts.values():
            yield from _live_objects(value)
    elif _is_stateful(target):
        yield target


def _renamed(target: dict[Any, Any], tree: dict[Any, Any], options: LoadOptions) -> dict[Any, Any]:
    """Return *tree* under the keys of *target* when that is a flat state dict."""
    if not all(_is_torch(value, "Tensor") for value in target.values()):
        return tree
    return without_prefix_of_dict(target, tree, options.strip_prefix)


def _check_array(target: np.ndarray[Any, Any], tree: Any, path: str) -> None:
    if not isinstance(tree, np.ndarray):
        raise _other_type(path, "a NumPy array", tree)
    if tree.shape != target.shape or tree.dtype != target.dtype:
        raise _other_form(path, target, tree)
    if not target.flags.writeable:
        raise InvalidValueError(f"{target_at(path)} is a read-only array. Nothing was changed.")


def _check_tensor(target: Any, tree: Any, path: str, options: LoadOptions) -> None:
    if not _is_torch(tree, "Tensor"):
        raise _other_type(path, "a torch tensor", tree)
    if tree.shape != target.shape or tree.dtype != target.dtype or tree.layout != target.layout:
        raise _other_form(path, target, tree)
    if target.is_meta and not options.assign:
        raise on_meta(path)


def _check_generator(target: Any, tree: Any, path: str) -> None:
    if not _is_torch(tree, "Tensor"):
        raise _other_type(path, "the state tensor of a torch.Generator", tree)
    try:
        sys.modules["torch"].Generator(target.device).set_state(tree)
    except (RuntimeError, TypeError) as error:
        raise InvalidValueError(
            f"{target_at(path)} refused its saved state: {error!s:.500} Nothing was changed."
        ) from error


def _check_keys(expected: dict[Any, Any], found: dict[Any, Any], path: str) -> None:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        advice = advice_on_prefixes_of_dict(expected, found) or advice_on_parts(missing, found)
        if not missing and not advice:
            advice = " Pass part=True to load what the target names alone, as strictly."
        raise keys_error(path, missing, unexpected, advice)


def _apply(target: Any, tree: Any, path: str, options: LoadOptions, found: Findings) -> Any:
    if not is_live(target):
        return retyped(target, tree)
    if is_record(target):
        parts = _apply(parts_of(target), parts_of(tree), path, options, found)
        return with_parts(target, parts)
    if isinstance(target, dict):
        return _apply_dict(target, tree, path, options, found)
    if isinstance(target, list | tuple):
        items = {
            index: _apply(value, tree[index], joined(path, index), options, found)
            for index, value in enumerate(target)
        }
        return with_parts(target, items)
    if _is_module(target):
        _call(load_module, target, tree, path, options, found, path=path)
        return target
    if tree is KEPT:
        return target
    found.loaded.append(path or _BARE)
    if isinstance(target, np.ndarray):
        np.copyto(target, tree, casting="no")
    elif _is_torch(target, "Tensor"):
        return _filled(target, tree)
    elif _is_torch(target, "Generator"):
        _call(target.set_state, tree, path=path)
    else:
        with outside_inference():
            _call(target.load_state_dict, tree, path=path)
    return target


def _apply_dict(
    target: dict[Any, Any], tree: dict[Any, Any], path: str, options: LoadOptions, found: Findings
) -> Any:
    tree = _renamed(target, tree, options)
    parts = {}
    for key, value in target.items():
        if key in tree:
            parts[key] = _apply(value, tree[key], joined(path, key), options, found)
        else:
            parts[key] = value
            found.missing.append(joined(path, key))
    found.unexpected.extend(joined(path, key) for key in tree if key not in target)
    if tree and target.keys().isdisjoint(tree):
        advice = advice_on_prefixes_of_dict(target, tree)
        found.note_nothing_fits(target_at(path), [*tree], [*target], advice)
    return with_parts(target, parts)


def _filled(target: Any, tree: Any) -> Any:
    """Return the tensor *target* with the values of *tree*; one on the meta device gives way."""
    torch = sys.modules["torch"]
    if target.is_meta:
        tensor = tree.detach().requires_grad_(target.requires_grad)
        return torch.nn.Parameter(tensor, target.requires_grad) if _is_parameter(target) else tensor
    with torch.no_grad():
        target.copy_(tree)
    return target


def _is_parameter(tensor: Any) -> bool:
    return isinstance(tensor, sys.modules["torch"].nn.Parameter)


def _call(method: Any, *values: Any, path: str) -> None:
    try:
        method(*values)
    except MldbError:
        raise
    except Exception as error:
        raise InvalidValueError(
            f"{target_at(path)} refused its saved state: {error!s:.500}. It may be changed in "
            "part; what is stored is safe."
        ) from error


def _other_type(path: str, wanted: str, found: object) -> InvalidTypeError:
    return InvalidTypeError(
        f"{target_at(path)} needs {wanted} and the saved state has a {type(found).__name__} there. "
        "Nothing was changed."
    )


def _other_form(path: str, target: Any, found: Any) -> InvalidValueError:
    return InvalidValueError(
        f"{target_at(path)} is {target.dtype} of shape {tuple(target.shape)} and the saved one "
        f"{found.dtype} of shape {tuple(found.shape)}. Nothing was changed."
    )
