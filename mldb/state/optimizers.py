"""The saved state of an optimizer fitted to the optimizer that takes it.

torch matches the parameters of both by position alone. Here they are matched by name where both
have names (built from ``named_parameters()``). What the state holds is compared with the parameters
it goes to, before anything is changed: see ``mldb.state.optimizer_shapes``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain, zip_longest
from typing import Any, Final, NamedTuple, TypeAlias

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.state.optimizer_names import (
    KEPT,
    NO_GROUP,
    bare_names,
    fit_by_name,
    other_names,
    parameter_names,
)
from mldb.state.optimizer_shapes import check_kind, check_shapes, is_lbfgs
from mldb.state.report import Findings, joined, listed, target_at
from mldb.state.structs import PLAIN, parts_of, with_parts

_PER_GROUP: Final = frozenset(
    ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums")
)
"""What the schedulers of torch keep as a list with one value for each parameter group."""
_NO_NAMES: Final = (
    " Without names on both sides states go by position, and what fits cannot be told: with both "
    "built from named_parameters(), strict=False loads the states that fit by name."
)


# --- a whole target -------------------------------------------------------------------------------


def fit_optimizers(target: Any, tree: Any, found: Findings, *, strict: bool = True) -> Any:
    """Return *tree* with the states of optimizers as those in *target* are to load them.

    *target* is a live object or a nest of dicts, lists, tuples and dataclasses of such, and *tree*
    what was saved of it; neither is changed. With names on both sides (``param_names``) the groups
    of a saved optimizer, and the parameters in them, come in the order of the optimizer that takes
    them; else positions count. Where groups change places, so do the values that a scheduler of the
    same optimizer keeps for each group.

    Raises InvalidTypeError for what is no state dict, InvalidValueError for other groups, names or
    shapes and for the state of another kind of optimizer. Without *strict*, names on both sides may
    be others: the states that fit by name are taken, the rest is told to *found*, and KEPT stands
    for a state of which nothing fits; a shape that is only taken to be wrong passes (see
    ``check_shapes``). An optimizer with load_state_dict pre-hooks changes its state itself: then
    names are put in order, and nothing is refused but the type.
    """
    orders: dict[int, list[int]] = {}
    fit = partial(_fit_one, orders=orders, found=found, strict=strict)
    fitted = _fit(target, tree, "", fit)
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
    target: Any,
    tree: Any,
    path: str,
    orders: dict[int, list[int]],
    found: Findings,
    *,
    strict: bool,
) -> Any:
    if not isinstance(getattr(target, "param_groups", None), list):
        return tree
    place = target_at(path)
    _check_form(target, tree, place)
    lenient = bool(getattr(target, "_optimizer_load_state_dict_pre_hooks", None))
    as_saved = list(range(len(tree["param_groups"])))
    order = as_saved.copy()
    names = parameter_names(target.param_groups), parameter_names(tree["param_groups"])
    fitted = tree
    if names[0] is not None and names[1] is not None and names[0] != names[1]:
        take = _Taking(path, order, found, strict=strict, lenient=lenient)
        fitted = _in_order(target, tree, names[0], names[1], take)
    if order != as_saved:
        orders[id(target)] = order
    if not lenient and fitted is not KEPT:
        _check_counts(target, fitted, place, named=None not in names)
        check_shapes(target, fitted, place, strict=strict)
        check_kind(target, fitted, place)
    return fitted


def _fit_scheduler(target: Any, tree: Any, path: str, orders: dict[int, list[int]]) -> Any:
    """Return *tree*, of a scheduler, with the groups in the order of its optimizer."""
    order = orders.get(id(getattr(target, "optimizer", None)))
    if order is None or not isinstance(tree, dict):
        return tree
    return _by_group(target, tree, order)


def _by_group(target: Any, tree: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """Return *tree* with the values of groups in this *order*; for NO_GROUP those of *target*."""
    changed = dict(tree)
    for key, value in tree.items():
        own = getattr(target, key, None)
        if key in _PER_GROUP and isinstance(value, list) and len(value) > max(order):
            changed[key] = _values_by_group(own, value, order)
        elif key == "_schedulers" and isinstance(value, list | tuple):
            inner = own if isinstance(own, list | tuple) else ()
            pairs = zip_longest(inner[: len(value)], value)
            changed[key] = [
                _by_group(one, item, order) if isinstance(item, dict) else item
                for one, item in pairs
            ]
    return changed


def _values_by_group(own: Any, value: list[Any], order: list[int]) -> list[Any]:
    """The values of groups in this *order*; of functions None, with which they stay as they are."""
    if NO_GROUP not in order:
        return [value[number] for number in order]
    if not isinstance(own, list) or len(own) != len(order):
        return value
    kept = [None if callable(one) else one for one in own]
    return [kept[at] if number == NO_GROUP else value[number] for at, number in enumerate(order)]


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


class _Taking(NamedTuple):
    """How a state is taken: where the optimizer is, what hears of it, and what is let pass.

    ``order`` comes to hold the number of the saved group for each of the target's.
    """

    path: str
    order: list[int]
    found: Findings
    strict: bool
    lenient: bool


def _in_order(
    target: Any,
    tree: dict[str, Any],
    wanted: list[list[str]],
    found: list[list[str]],
    take: _Taking,
) -> Any:
    """Return *tree*, with the names *found* in it, for *target*, whose names are *wanted*."""
    place = target_at(take.path)
    if set(chain(*wanted)) != set(chain(*found)):
        wanted, found = bare_names(wanted), bare_names(found)
    by_names = {frozenset(names): number for number, names in enumerate(found)}
    numbers = [by_names.get(frozenset(names), -1) for names in wanted]
    if sorted(numbers) != list(range(len(found))):
        if take.lenient:
            return tree
        if take.strict or is_lbfgs(target):
            raise other_names(wanted, found, place)
        return fit_by_name(target, tree, wanted, found, take.order, take.found, take.path)
    if wanted != found and is_lbfgs(target):
        raise InvalidValueError(
            f"{place}: LBFGS keeps one state over all parameters in their order, and the saved "
            f"order is {listed(list(chain(*found)))}. Nothing was changed; build it over the "
            "parameters in that order."
        )
    take.order[:] = numbers
    groups = []
    for number, names, group in zip(numbers, wanted, target.param_groups, strict=True):
        saved = tree["param_groups"][number]
        places = {name: index for index, name in enumerate(found[number])}
        params = [saved["params"][places[name]] for name in names]
        groups.append({**saved, "params": params, "param_names": list(group["param_names"])})
    return {**tree, "param_groups": groups}


def _check_counts(target: Any, tree: dict[str, Any], place: str, *, named: bool) -> None:
    wanted = [len(group["params"]) for group in target.param_groups]
    saved = [len(group.get("params", ())) for group in tree["param_groups"]]
    if wanted != saved:
        raise InvalidValueError(
            f"{place}: the optimizer has groups of {wanted} parameters and the saved one "
            f"of {saved}. Nothing was changed; build it over the same parameters."
            + ("" if named else _NO_NAMES)
        )
