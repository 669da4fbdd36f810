"""The parameters of optimizers by name, and states that fit only in part.

An optimizer that is built from ``named_parameters()`` has names, and its saved state too.
"""

from __future__ import annotations

from itertools import chain, count
from typing import Any, Final

from mldb.errors import InvalidValueError
from mldb.state.report import Findings, joined, listed, target_at

KEPT: Final = object()
"""In the place of a state: the optimizer keeps its own, for no name of it was saved."""
NO_GROUP: Final = -1


def parameter_names(groups: list[dict[str, Any]]) -> list[list[str]] | None:
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


def bare_names(names: list[list[str]]) -> list[list[str]]:
    """Return the names without what torch.compile and DistributedDataParallel put into them.

    As they are where that would make two alike.
    """
    flat = list(chain(*names))
    start = "module." if all(name.startswith("module.") for name in flat) else ""
    bare = [[name.removeprefix(start).replace("_orig_mod.", "") for name in item] for item in names]
    return bare if len(set(chain(*bare))) == len(flat) else names


def other_names(wanted: list[list[str]], found: list[list[str]], place: str) -> InvalidValueError:
    """Return the error for names or groups that are others than those *found* in what was saved."""
    want, have = list(chain(*wanted)), list(chain(*found))
    missing = sorted(set(want) - set(have), key=want.index)
    unexpected = sorted(set(have) - set(want), key=have.index)
    if not missing and not unexpected:
        text = (
            f"{place}: the optimizer has the same parameters as the saved one in other groups, of "
            f"{[len(names) for names in wanted]} where {[len(names) for names in found]} were "
            "saved. Nothing was changed; group them as they were saved, or pass strict=False to "
            "load their states by name."
        )
        return InvalidValueError(text)
    text = f"{place}: the optimizer does not have the parameters of the saved one:"
    if missing:
        text += f" {len(missing)} were not saved ({listed(missing)});"
    if unexpected:
        text += f" {len(unexpected)} are only in the saved one ({listed(unexpected)});"
    return InvalidValueError(
        f"{text} nothing was changed. Build it over the same named_parameters(), or pass "
        "strict=False to load the states that fit by name; an optimizer built from parameters() "
        "has no names and takes the state by position."
    )


def fit_by_name(
    target: Any,
    tree: dict[str, Any],
    wanted: list[list[str]],
    saved: list[list[str]],
    order: list[int],
    found: Findings,
    path: str,
) -> Any:
    """Return the state dict of *target* with what *tree* has for its parameters, or KEPT.

    *wanted* and *saved* are the names in both, by group. A parameter that was not saved keeps the
    state it has; a group takes the saved options where its saved parameters stood in one group, and
    keeps its own otherwise. *order* comes to hold the number of that group, or NO_GROUP. *found*
    hears what was not saved, what is not here, and which saved options nobody took.
    """
    places = _places(tree, saved)
    names = set(chain(*wanted))
    found.missing.extend(joined(path, name) for name in chain(*wanted) if name not in places)
    found.unexpected.extend(joined(path, name) for name in places if name not in names)
    if names.isdisjoint(places):
        order[:] = [NO_GROUP] * len(wanted)
        what = f"{target_at(path)} ({type(target).__name__})"
        found.note_nothing_fits(what, list(places), list(chain(*wanted)), "")
        return KEPT
    known = {key for group in tree["param_groups"] for key in group["params"]}
    state = {key: value for key, value in tree["state"].items() if key not in known}
    numbers = count()
    groups = []
    order.clear()
    for own_names, group in zip(wanted, target.param_groups, strict=True):
        keys = [next(numbers) for _ in own_names]
        for key, name, parameter in zip(keys, own_names, group["params"], strict=True):
            place = places.get(name)
            value = target.state.get(parameter) if place is None else tree["state"].get(place[1])
            if value is not None:
                state[key] = value
        sources = {places[name][0] for name in own_names if name in places}
        order.append(sources.pop() if len(sources) == 1 else NO_GROUP)
        options = group if order[-1] == NO_GROUP else tree["param_groups"][order[-1]]
        groups.append({**options, "params": keys, "param_names": list(group["param_names"])})
    left = (number for number in range(len(saved)) if number not in order)
    found.ignored.extend(joined(path, f"param_groups/{number}") for number in left)
    return {**tree, "state": state, "param_groups": groups}


def _places(tree: dict[str, Any], saved: list[list[str]]) -> dict[str, tuple[int, Any]]:
    """The number of the saved group of each name, and the key of its state."""
    return {
        name: (number, key)
        for number, (names, group) in enumerate(zip(saved, tree["param_groups"], strict=True))
        for name, key in zip(names, group["params"], strict=True)
    }
