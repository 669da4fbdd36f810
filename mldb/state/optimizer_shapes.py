"""What the saved state of an optimizer holds, compared with the parameters that it goes to.

torch compares no shapes: a state of other parameters loads, and a later ``step()`` dies or, where
shapes broadcast, computes something. Which tensors of a state have the shape of their parameter is
known for torch's own optimizers; it is in the table below, read off ``torch/optim``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from mldb.errors import InvalidValueError
from mldb.state.report import listed

_LIKE_PARAMETER: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    name: (frozenset(always.split()), frozenset(sometimes.split()))
    for name, always, sometimes in (
        ("Adadelta", "square_avg acc_delta", ""),
        ("Adagrad", "sum", ""),
        ("Adam", "exp_avg exp_avg_sq", "max_exp_avg_sq"),
        ("AdamW", "exp_avg exp_avg_sq", "max_exp_avg_sq"),
        ("Adamax", "exp_avg exp_inf", ""),
        ("ASGD", "ax", ""),
        ("Muon", "momentum_buffer", ""),
        ("NAdam", "exp_avg exp_avg_sq", ""),
        ("RAdam", "exp_avg exp_avg_sq", ""),
        ("RMSprop", "square_avg", "momentum_buffer grad_avg"),
        ("Rprop", "prev step_size", ""),
        ("SGD", "", "momentum_buffer"),
        ("SparseAdam", "exp_avg exp_avg_sq", ""),
    )
}
"""By torch's own classes: the keys that every state has, and those that some have."""

_USUAL: Final = frozenset().union(*(keys for pair in _LIKE_PARAMETER.values() for keys in pair))


class _Slot(NamedTuple):
    """One parameter of the target: what to call it, its shape, and the saved state it gets."""

    label: str
    shape: tuple[int, ...]
    state: dict[Any, Any]


def check_kind(target: Any, tree: dict[str, Any], place: str) -> None:
    """Refuse a state dict *tree* whose groups lack options that *target* reads in ``step()``.

    An optimizer without momentum keeps nothing for its parameters, so its options alone tell that
    a state is of another kind. What torch's own ``__setstate__`` fills in, as for states of older
    versions, is not missed. Of an optimizer that is not torch's own, nothing is known. Raises
    InvalidValueError; *place* says in messages where *target* is.
    """
    name = _torch_name(target)
    if not name:
        return
    groups = zip(target.param_groups, _completed(target, tree["param_groups"]), strict=True)
    for number, (group, saved) in enumerate(groups):
        lacking = sorted(key for key in target.defaults if key in group and key not in saved)
        if lacking:
            raise _other_options(name, number, lacking, saved, place)


def _completed(target: Any, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the options of saved *groups* as *target* would have them; it is not changed."""
    twin = object.__new__(type(target))
    twin.__dict__.update(target.__dict__, defaults=dict(target.defaults))
    bare = [{**group, "params": []} for group in groups]
    twin.__setstate__({"state": {}, "param_groups": bare})
    found: list[dict[str, Any]] = twin.param_groups
    return found


def check_shapes(target: Any, tree: dict[str, Any], place: str, *, strict: bool) -> None:
    """Refuse a state dict *tree* of *target*'s groups whose tensors do not fit its parameters.

    Of an optimizer that is not torch's own, nothing is known. With *strict*, a tensor of its state
    is refused when all of this holds: it has as many axes as the parameter, it is no factor of it
    (every axis 1 or that of the parameter), nothing else in that state has the shape of the
    parameter, and the same key has the shape of the parameter elsewhere, or a name that is usual
    for such tensors. Raises InvalidValueError; *place* says in messages where *target* is.
    """
    slots = list(_slots(target, tree))
    name = _torch_name(target)
    if name in _LIKE_PARAMETER:
        _check_known(name, slots, place)
    elif name == "Adafactor":
        _check_factors(slots, place)
    elif is_lbfgs(target):
        _check_flat(target, slots, place)
    elif strict:
        _check_unknown(slots, place)


def _slots(target: Any, tree: dict[str, Any]) -> Iterator[_Slot]:
    """Yield the parameters that have a saved state, as ``load_state_dict`` will pair them."""
    torch = sys.modules["torch"]
    groups = zip(target.param_groups, tree["param_groups"], strict=True)
    for number, (group, saved) in enumerate(groups):
        pairs = zip(group["params"], saved["params"], strict=True)
        for index, (parameter, key) in enumerate(pairs):
            state = tree["state"].get(key)
            if not isinstance(state, dict) or not state or torch.nn.parameter.is_lazy(parameter):
                continue
            names = group.get("param_names")
            label = f"{index} of group {number}" if names is None else repr(names[index])
            yield _Slot(label, tuple(parameter.shape), state)


def _check_known(name: str, slots: list[_Slot], place: str) -> None:
    always, sometimes = _LIKE_PARAMETER[name]
    for slot in slots:
        lacking = sorted(always - slot.state.keys())
        if lacking:
            raise _other_kind(name, slot, lacking, place)
        for key in sorted(always | sometimes):
            _require(slot, key, slot.shape, place)


def _check_factors(slots: list[_Slot], place: str) -> None:
    """torch's Adafactor keeps the second moment of matrices as a row and a column factor."""
    for slot in slots:
        shape = slot.shape
        if len(shape) > 1:
            lacking = sorted({"row_var", "col_var"} - slot.state.keys())
            _require(slot, "row_var", (*shape[:-1], 1), place)
            _require(slot, "col_var", (*shape[:-2], 1, shape[-1]), place)
        else:
            lacking = sorted({"variance"} - slot.state.keys())
            _require(slot, "variance", shape, place)
        if lacking:
            raise _other_kind("Adafactor", slot, lacking, place)


def _check_flat(target: Any, slots: list[_Slot], place: str) -> None:
    """LBFGS keeps vectors over all parameters, in the state of the first."""
    torch = sys.modules["torch"]
    parameters = [item for group in target.param_groups for item in group["params"]]
    if any(torch.nn.parameter.is_lazy(item) for item in parameters):
        return
    total = sum(item.numel() * (2 if item.is_complex() else 1) for item in parameters)
    for slot in slots:
        for key in ("d", "prev_flat_grad", "old_dirs", "old_stps"):
            value = slot.state.get(key)
            for item in value if isinstance(value, list | tuple) else (value,):
                found = _shape_of(item)
                if found is not None and found != (total,):
                    raise InvalidValueError(
                        f"{place}: the saved {key!r} has shape {found}, and LBFGS over parameters "
                        f"of {total} numbers needs {(total,)}. Nothing was changed; build it over "
                        "the same parameters in the same order."
                    )


def _require(slot: _Slot, key: str, shape: tuple[int, ...], place: str) -> None:
    found = _shape_of(slot.state.get(key))
    if found is not None and found != shape:
        raise _other_shape(slot, key, found, place, shape)


def _check_unknown(slots: list[_Slot], place: str) -> None:
    elementwise = set(_USUAL)
    for slot in slots:
        shape = slot.shape
        if math.prod(shape) > 1:
            elementwise.update(key for key in slot.state if _shape_of(slot.state[key]) == shape)
    for slot in slots:
        shape = slot.shape
        shapes = {key: _shape_of(value) for key, value in slot.state.items()}
        if shape in shapes.values():
            continue
        for key, found in shapes.items():
            if key in elementwise and found is not None and _is_foreign(found, shape):
                raise _other_shape(slot, key, found, place, shape)


def _is_foreign(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether *found* has the axes of *shape* and is no factor of it."""
    if math.prod(found) <= 1 or len(found) != len(shape):
        return False
    return not all(one in (1, axis) for one, axis in zip(found, shape, strict=True))


def _shape_of(value: object) -> tuple[int, ...] | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    return tuple(value.shape)


def _torch_name(target: Any) -> str:
    """Return the name of the class where it is one of torch's own, else nothing."""
    kind = type(target)
    own = kind.__module__ == "torch.optim" or kind.__module__.startswith("torch.optim.")
    return kind.__name__ if own else ""


def is_lbfgs(target: Any) -> bool:
    """Whether *target* keeps one state over all its parameters, in their order."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(target, torch.optim.LBFGS)


def _other_kind(name: str, slot: _Slot, lacking: list[str], place: str) -> InvalidValueError:
    return InvalidValueError(
        f"{place}: the saved state of parameter {slot.label} lacks {listed(lacking)}, which "
        f"{name} needs; it has {listed(list(slot.state))}. Nothing was changed; build the kind of "
        "optimizer that was saved."
    )


def _other_options(
    name: str, number: int, lacking: list[str], saved: dict[str, Any], place: str
) -> InvalidValueError:
    known = [key for key in saved if key not in ("params", "param_names")]
    return InvalidValueError(
        f"{place}: the saved options of group {number} lack {listed(lacking)}, which {name} needs; "
        f"they are {listed(known)}. Nothing was changed; build the kind of optimizer that was "
        "saved."
    )


def _other_shape(
    slot: _Slot, key: Any, found: tuple[int, ...], place: str, wanted: tuple[int, ...]
) -> InvalidValueError:
    return InvalidValueError(
        f"{place}: the saved {key!r} of parameter {slot.label} has shape {found}, and a parameter "
        f"of shape {slot.shape} needs {wanted}. Nothing was changed; build the "
        "optimizer over the same parameters in the same order, or over named_parameters() on both "
        "sides."
    )
