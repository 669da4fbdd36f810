"""The saved state of an optimizer fitted to the optimizer that takes it.

torch matches the parameters of both by position alone. Here they are matched by name where both
have names (built from ``named_parameters()``). What the state holds is compared with the parameters
it goes to, before anything is changed: see ``mldb.state.optimizer_shapes``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.state.optimizer_shapes import check_kind, check_shapes, is_lbfgs
from mldb.state.report import joined, listed, target_at
from mldb.state.structs import PLAIN, parts_of, with_parts

_PER_GROUP: Final = frozenset(
    ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums")
)
"""What the schedulers of torch keep as a list with one value for each parameter group."""


# --- a whole target -------------------------------------------------------------------------------


def fit_optimizers(target: Any, tree: Any, *, strict: bool = True) -> Any:
    """Return *tree* with the states of optimizers as those in *target* are to load them.

    *target* is a live object or a nest of dicts, lists, tuples and dataclasses of such, and *tree*
    what was saved of it; neither is changed. With names on both sides (``param_names``) the groups
    of a saved optimizer, and the parameters in them, come in the order of the optimizer that takes
    them; else positions count. Where groups change places, so do the values that a scheduler of the
    same optimizer keeps for each group.

    Raises InvalidTypeError for what is no state dict, InvalidValueError for other groups, names or
    shapes and for the state of another kind of optimizer. Without *strict*, a shape that is only
    taken to be wrong passes (see ``check_shapes``). An optimizer with load_state_dict pre-hooks
    changes its state itself: then names are put in order, and nothing is refused but the type.
    """
    orders: dict[int, list[int]] = {}
    fitted = _fit(target, tree, "", partial(_fit_one, orders=orders, strict=strict))
    return _fit(target, fitted, "", partial(_fit_scheduler, orders=orders)) if orders else fitted


_Fit: TypeAlias = Callable[[Any, Any, str], Any]


def _fit(target: Any, tree: Any, path: str, fit: _Fit) -> Any:
    """Return *tree* with *fit* called for each live object; containers are copied on change."""
    if callable(getattr(target, "load_state_dict", None)) and not isinstance(target, type):
        return fit(target, tree, path)
    wanted, found = parts_of(target), parts_of(tree)
    if wanted is None or found is None:
        return tree
    parts = {
        key: _fit(value, found[key], joined(path, key), fit)
        for key, value in wanted.items()
        if type(value) not in PLAIN and key in found
    }
    if all(part is found[key] for key, part in parts.items()):
        return tree
    return with_parts(tree, parts)


def _fit_one(
    target: Any, tree: Any, path: str, orders: dict[int, list[int]], *, strict: bool
) -> Any:
    if not isinstance(getattr(target, "param_groups", None), list):
        return tree
    place = target_at(path)
    _check_form(target, tree, place)
    lenient = bool(getattr(target, "_optimizer_load_state_dict_pre_hooks", None))
    order = list(range(len(tree["param_groups"])))
    fitted = _in_order(target, tree, place, order, lenient=lenient)
    if order != sorted(order):
        orders[id(target)] = order
    if not lenient:
        _check_counts(target, fitted, place)
        check_shapes(target, fitted, place, strict=strict)
        check_kind(target, fitted, place)
    return fitted


def _fit_scheduler(target: Any, tree: Any, path: str, orders: dict[int, list[int]]) -> Any:
    """Return *tree*, of a scheduler, with the groups in the order of its optimizer."""
    order = orders.get(id(getattr(target, "optimizer", None)))
    if order is None or not isinstance(tree, dict):
        return tree
    return _by_group(tree, order)


def _by_group(tree: dict[str, Any], order: list[int]) -> dict[str, Any]:
    changed = dict(tree)
    for key, value in tree.items():
        if key in _PER_GROUP and isinstance(value, list) and len(value) == len(order):
            changed[key] = [value[number] for number in order]
        elif key == "_schedulers" and isinstance(value, list | tuple):
            changed[key] = [
                _by_group(item, order) if isinstance(item, dict) else item for item in value
            ]
    return changed


def _check_form(target: Any, tree: Any, place: str) -> None:
    kind = type(target).__name__
    if not isinstance(tree, dict) or not isinstance(tree.get("param_groups"), list):
        raise InvalidTypeError(
            f"{place} needs the state dict of {kind} and the saved state has a "
            f"{type(tree).__name__} there. Nothing was changed."
        )
    groups = tree["param_groups"]
    if not isinstance(tree.get("state"), dict) or not all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and all(isinstance(key, int | str) for key in group["params"])
        for group in groups
    ):
        raise InvalidTypeError(
            f"{place} needs the state dict of {kind}, with a state and parameter groups that list "
            "their params; the saved one is none. Nothing was changed."
        )


# --- names ----------------------------------------------------------------------------------------


def _in_order(
    target: Any, tree: dict[str, Any], place: str, order: list[int], *, lenient: bool
) -> dict[str, Any]:
    """Return *tree* with groups and parameters in the order of *target*, where both have names.

    *order* comes to hold the number of the saved group for each of the target's.
    """
    wanted = _names_of(target.param_groups)
    found = _names_of(tree["param_groups"])
    if wanted is None or found is None or wanted == found:
        return tree
    if set(chain(*wanted)) != set(chain(*found)):
        wanted, found = _bare(wanted), _bare(found)
    by_names = {frozenset(names): number for number, names in enumerate(found)}
    numbers = [by_names.get(frozenset(names), -1) for names in wanted]
    if sorted(numbers) != list(range(len(found))):
        if lenient:
            return tree
        raise _other_names(wanted, found, place)
    if wanted != found and is_lbfgs(target):
        raise InvalidValueError(
            f"{place}: LBFGS keeps one state over all parameters in their order, and the saved "
            f"order is {listed(list(chain(*found)))}. Nothing was changed; build it over the "
            "parameters in that order."
        )
    order[:] = numbers
    groups = []
    for number, names, group in zip(numbers, wanted, target.param_groups, strict=True):
        saved = tree["param_groups"][number]
        places = {name: index for index, name in enumerate(found[number])}
        params = [saved["params"][places[name]] for name in names]
        groups.append({**saved, "params": params, "param_names": list(group["param_names"])})
    return {**tree, "param_groups": groups}


def _names_of(groups: list[dict[str, Any]]) -> list[list[str]] | None:
    """Return the names of the parameters by group; None where they do not tell them apart.

    In states gathered from many ranks the names stand in place of the numbers.
    """
    found = []
    for group in groups:
        params = group["params"]
        names = group.get("param_names", params)
        if not isinstance(names, list | tuple) or len(names) != len(params):
            return None
        if not all(isinstance(name, str) for name in names):
            return None
        found.append(list(names))
    flat = list(chain(*found))
    return found if len(set(flat)) == len(flat) else None


def _bare(names: list[list[str]]) -> list[list[str]]:
    """Return the names without what torch.compile and DistributedDataParallel put into them.

    As they are where that would make two alike.
    """
    flat = list(chain(*names))
    start = "module." if all(name.startswith("module.") for name in flat) else ""
    bare = [[name.removeprefix(start).replace("_orig_mod.", "") for name in item] for item in names]
    return bare if len(set(chain(*bare))) == len(flat) else names


def _other_names(wanted: list[list[str]], found: list[list[str]], place: str) -> InvalidValueError:
    want, have = list(chain(*wanted)), list(chain(*found))
    missing = sorted(set(want) - set(have), key=want.index)
    unexpected = sorted(set(have) - set(want), key=have.index)
    if not missing and not unexpected:
        text = (
            f"{place}: the optimizer has the same parameters as the saved one in other groups, of "
            f"{[len(names) for names in wanted]} where {[len(names) for names in found]} were "
            "saved. Nothing was changed; group them as they were saved."
        )
        return InvalidValueError(text)
    text = f"{place}: the optimizer does not have the parameters of the saved one:"
    if missing:
        text += f" {len(missing)} were not saved ({listed(missing)});"
    if unexpected:
        text += f" {len(unexpected)} are only in the saved one ({listed(unexpected)});"
    return InvalidValueError(
        f"{text} nothing was changed. Build it over the same named_parameters(); one built from "
        "parameters() has no names and takes the state by position."
    )


def _check_counts(target: Any, tree: dict[str, Any], place: str) -> None:
    wanted = [len(group["params"]) for group in target.param_groups]
    saved = [len(group.get("params", ())) for group in tree["param_groups"]]
    if wanted != saved:
        raise InvalidValueError(
            f"{place}: the optimizer has groups of {wanted} parameters and the saved one "
            f"of {saved}. Nothing was changed; build it over the same parameters."
        )
