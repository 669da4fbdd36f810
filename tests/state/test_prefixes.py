"""Keys that differ by the prefix of a wrapper: named in the error, and taken off when asked."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mldb
from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.state.load import restore_into
from tests.state.test_load import saved

pytestmark = pytest.mark.usefixtures("one_thread")


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 2)))


def compiled(module: nn.Module) -> nn.Module:
    result: nn.Module = torch.compile(module, backend="eager")  # type: ignore[assignment]
    return result


def inner_compiled(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.Sequential)
    module[2] = compiled(module[2])
    return module


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "plain": model,
    "_orig_mod.": lambda: compiled(model()),
    "module.": lambda: nn.DataParallel(model()),
    "module._orig_mod.": lambda: nn.DataParallel(compiled(model())),
    "_orig_mod.module.": lambda: compiled(nn.DataParallel(model())),
    "2._orig_mod.": lambda: inner_compiled(model()),
    "module.2._orig_mod.": lambda: nn.DataParallel(inner_compiled(model())),
}


def values(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("source", "target"), list(itertools.permutations(WRAPPED, 2)), ids=lambda name: name
)
def test_prefixes_of_wrappers_are_named_and_taken_off(source: str, target: str) -> None:
    torch.manual_seed(1)
    trained, module = WRAPPED[source](), WRAPPED[target]()
    tree, before = saved({"m": trained}), values(module)
    with pytest.raises(MissingError) as caught:
        restore_into({"m": module}, tree)
    message = str(caught.value)
    assert "strip_prefix='auto'" in message
    if source != "plain" and target == "plain":
        assert f"the saved keys have the prefix {source.replace('2.', '')}" in message
    if target != "plain" and source == "plain":
        assert f"those of the target have the prefix {target.replace('2.', '')}" in message
    for prefix, maker in (("_orig_mod", "torch.compile"), ("module", "DistributedDataParallel")):
        if (prefix in source) != (prefix in target):
            assert maker in message
    assert same(values(module), before)
    report = restore_into({"m": module}, tree, strip_prefix="auto")
    assert report.loaded == tuple(f"m/{key}" for key in module.state_dict())
    assert (report.missing, report.unexpected, report.ignored) == ((), (), ())
    assert same(values(module), values(trained))


def test_flat_dicts_of_tensors_are_matched_by_their_names() -> None:
    torch.manual_seed(1)
    trained, module = WRAPPED["module._orig_mod."](), model()
    tree = saved({"m": trained.state_dict()})
    target = {"m": module.state_dict()}
    with pytest.raises(MissingError, match=r"prefix module\._orig_mod\. .*strip_prefix='auto'"):
        restore_into(target, tree)
    restore_into(target, tree, strip_prefix="auto")
    assert same(values(module), values(trained))


def test_an_explicit_prefix_is_taken_off_where_a_key_starts_with_it() -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()
            self.loss_weight = nn.Parameter(torch.ones(1))

    torch.manual_seed(1)
    task, module = Task(), model()
    tree = saved(task)
    with pytest.raises(InvalidValueError, match=r"'loss_weight'") as caught:
        restore_into(module, tree, strip_prefix="net.")
    assert "strip_prefix='auto'" not in str(caught.value)
    report = restore_into(module, tree, strip_prefix="net.", strict=False)
    assert report.unexpected == ("loss_weight",)
    assert same(values(module), values(task.net))
    state = dict(module.state_dict())
    restore_into(state, {f"net.{key}": value for key, value in state.items()}, strip_prefix="net.")
    with pytest.raises(InvalidTypeError, match="strip_prefix is a bool"):
        restore_into(module, tree, strip_prefix=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["auto", "module."])
def test_the_versions_of_modules_move_with_their_keys(prefix: str) -> None:
    """A batch norm of version 2 without its counter lacks a key; without a version it is old."""
    tree = saved(WRAPPED["module."]())
    del tree["module.1.num_batches_tracked"]
    with pytest.raises(MissingError, match=r"'1\.num_batches_tracked'"):
        restore_into(model(), tree, strip_prefix=prefix)
    tree._metadata["module.1"]["version"] = 1
    assert restore_into(model(), tree, strip_prefix=prefix).missing == ()
    wrapped = WRAPPED["_orig_mod."]()
    tree = saved(model())
    del tree["1.num_batches_tracked"]
    with pytest.raises(MissingError, match=r"'_orig_mod.1\.num_batches_tracked'"):
        restore_into(wrapped, tree, strip_prefix="auto")


def test_a_child_that_happens_to_be_called_module_stays_where_it_is() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.head = nn.Linear(2, 1)

    trained, other = Holder(), Holder()
    restore_into(other, saved(compiled(trained)), strip_prefix="auto")
    assert same(values(other), values(trained))
    other = Holder()
    restore_into(other, saved(nn.DataParallel(trained)), strip_prefix="auto")
    assert same(values(other), values(trained))
    with pytest.raises(MissingError):  # the head's weight is not the module's
        restore_into(other, saved(trained.head), strip_prefix="auto")


def test_old_names_are_found_below_a_prefix() -> None:
    """Hooks translate them after the prefix is off."""

    def normed(wrap: Any) -> nn.Module:
        return nn.Sequential(wrap(nn.Linear(2, 2)))

    with pytest.warns(FutureWarning):
        old = normed(nn.utils.weight_norm)
    new = normed(nn.utils.parametrizations.weight_norm)
    tree = saved(nn.DataParallel(compiled(old)))
    report = restore_into(new, tree, strip_prefix="auto")
    assert report.ignored == ()
    assert torch.equal(new[0].weight, old[0].weight)  # type: ignore[index]


def test_keys_that_would_meet_stay_apart() -> None:
    module = nn.Linear(2, 2)
    tree = saved(module)
    both = copy.copy(tree)
    both["module.weight"] = torch.zeros(2, 2)
    report = restore_into(module, both, strip_prefix="auto", strict=False)
    assert report.unexpected == ("module.weight",)
    assert torch.equal(module.weight, tree["weight"])


def test_the_warning_that_nothing_was_loaded_names_the_prefix() -> None:
    tree = saved(WRAPPED["_orig_mod."]())
    module = model()
    before = values(module)
    with pytest.warns(mldb.NothingLoadedWarning, match="prefix _orig_mod.*strip_prefix='auto'"):
        report = restore_into({"m": module, "n": 1}, {"m": tree, "n": 2}, strict=False)
    assert report.loaded == ()
    assert (len(report.unexpected), len(tree)) == (9, 9)
    # torch takes a batch norm without a version for one from before the counter of batches.
    assert set(report.missing) == {f"m/{key}" for key in module.state_dict()} - {
        "m/1.num_batches_tracked"
    }
    assert same(values(module), before)
    assert report["n"] == 2
