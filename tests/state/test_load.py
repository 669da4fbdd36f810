"""Saved states loaded into live objects: training goes on, a refused load changes nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.state.tree import flatten, restore_into, unflatten
from mldb.tensors.codec import prepare, rebuild


def saved(state: object) -> Any:
    """The state after it went to bytes and back."""
    flat = flatten(state)
    stored = {name: prepare(tensor) for name, tensor in flat.tensors.items()}
    payloads = {name: bytearray(b"".join(item.buffers)) for name, item in stored.items()}
    return unflatten(flat.skeleton, lambda name: rebuild(stored[name].descriptor, payloads[name]))


class Run:
    """A small training run with everything that has a state."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.Dropout(),
            torch.nn.Linear(8, 1),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=50)
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "generator": self.generator,
            "rng": {"torch": torch.get_rng_state(), "numpy": self.rng.bit_generator.state},
            "step": 3,
        }

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x = torch.randn(16, 4, generator=self.generator) + float(self.rng.random())
            loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses


def test_training_goes_on_bit_for_bit(seed: int) -> None:
    run = Run(seed)
    run.train(5)
    tree = saved(run.state())
    expected = run.train(5)
    final = copy.deepcopy(run.model.state_dict())

    other = Run(seed + 1)
    other.train(2)
    outcome = restore_into(other.state(), tree)
    torch.set_rng_state(outcome["rng"]["torch"])
    other.rng.bit_generator.state = outcome["rng"]["numpy"]
    assert other.train(5) == expected
    assert all(torch.equal(final[key], value) for key, value in other.model.state_dict().items())
    assert outcome["model"] is other.model
    assert outcome["optimizer"] is other.optimizer
    assert outcome["step"] == 3


def test_tied_weights_stay_tied_in_the_module() -> None:
    def tied() -> torch.nn.Sequential:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    source, target = tied(), tied()
    tree = saved(source)
    restore_into(target, tree)
    weights = target.state_dict(keep_vars=True)
    assert weights["0.weight"] is weights["1.weight"]
    assert torch.equal(weights["1.weight"], source.state_dict()["0.weight"])


def test_tensors_are_overwritten_in_place_and_plain_values_returned() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    array = np.zeros(3, np.int8)
    target = {"w": weight, "list": [array, "old"], "pair": (weight, 1), "lr": 0.1, "new": None}
    tree = {
        "w": torch.ones(2),
        "list": [np.ones(3, np.int8), "saved"],
        "pair": (torch.ones(2), 2),
        "lr": 0.2,
        "new": {"plain": [1]},
    }
    outcome = restore_into(target, tree)
    assert outcome["w"] is weight
    assert weight.tolist() == [1, 1]
    assert weight.requires_grad
    assert outcome["list"][0] is array
    assert array.tolist() == [1, 1, 1]
    assert outcome["list"][1] == "saved"
    assert outcome["pair"] == (weight, 2)
    assert (outcome["lr"], outcome["new"]) == (0.2, {"plain": [1]})
    assert (target["lr"], target["list"][1]) == (0.1, "old")  # type: ignore[index]


def test_an_ordered_state_dict_keeps_its_type_and_versions() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    tree = saved(state)
    tree["weight"].fill_(5)
    outcome = restore_into(state, tree).state
    assert type(outcome) is OrderedDict
    assert outcome._metadata == state._metadata  # type: ignore[attr-defined]
    assert outcome["weight"] is state["weight"]
    assert state["weight"].eq(5).all()


def test_missing_and_unexpected_keys_are_named_before_anything_changes() -> None:
    source = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    target = torch.nn.ModuleDict({"b": torch.nn.Linear(2, 2), "c": torch.nn.Linear(2, 2)})
    before = copy.deepcopy(target.state_dict())
    tree = saved({"model": source})
    with pytest.raises(MissingError, match=r"'c\.weight'") as caught:
        restore_into({"model": target}, tree)
    for word in ("model", "'c.bias'", "'a.weight'", "strict=False", "nothing was changed"):
        assert word in str(caught.value)
    del target["c"]
    with pytest.raises(InvalidValueError, match=r"2 saved but not in the target \('a\.weight'"):
        restore_into({"model": target}, tree)
    assert torch.equal(before["b.weight"], target.state_dict()["b.weight"])
    restore_into({"model": target}, tree, strict=False)
    assert torch.equal(source.state_dict()["b.weight"], target.state_dict()["b.weight"])


def test_strict_holds_for_the_dicts_around_and_not_for_plain_ones() -> None:
    model = torch.nn.Linear(1, 1)
    tree = saved({"model": model, "step": 3, "config": {"a": 1}})
    with pytest.raises(InvalidValueError, match="'step'"):
        restore_into({"model": model, "config": {"b": 2}}, tree)
    with pytest.raises(MissingError, match="'ema'"):
        restore_into({"model": model, "ema": 1, "step": 1, "config": None}, tree)
    outcome = restore_into({"model": model, "step": 0, "config": {"b": 2}}, tree)
    assert outcome["config"] == {"a": 1}
    assert restore_into({"model": model, "ema": 7}, tree, strict=False).state == {
        "model": model,
        "ema": 7,
    }


def test_many_names_are_cut() -> None:
    tree = {f"k{number}": torch.zeros(1) for number in range(1000)}
    with pytest.raises(InvalidValueError, match="1000 saved") as caught:
        restore_into(torch.nn.Module(), tree)
    assert "k7'" in str(caught.value)
    assert "k9'" not in str(caught.value)
    assert len(str(caught.value)) < 500


def linear() -> torch.nn.Linear:
    return torch.nn.Linear(2, 2)


def adam(count: int) -> torch.optim.Adam:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2)) for _ in range(count)])


@pytest.mark.parametrize(
    ("target", "tree", "error", "words"),
    [
        (linear(), [1], InvalidTypeError, "state dict of Linear"),
        (linear(), torch.nn.Linear(3, 2).state_dict(), InvalidValueError, r"\(2, 3\)"),
        (linear(), {"weight": 1, "bias": 2}, InvalidValueError, "refused"),
        (adam(1), adam(2).state_dict(), InvalidValueError, "groups of"),
        (adam(1), {"state": {}}, InvalidTypeError, "state dict of Adam"),
        (torch.Generator(), 5, InvalidTypeError, "Generator"),
        (torch.Generator(), torch.zeros(3), InvalidValueError, "refused"),
        (torch.zeros(2), np.zeros(2), InvalidTypeError, "a torch tensor"),
        (torch.zeros(2), torch.zeros(3), InvalidValueError, r"shape \(3,\)"),
        (torch.zeros(2), torch.zeros(2).double(), InvalidValueError, "float64"),
        (np.zeros(2), torch.zeros(2), InvalidTypeError, "a NumPy array"),
        (np.zeros(2), np.zeros(2, np.int8), InvalidValueError, "int8"),
        (np.frombuffer(bytes(8)), np.zeros(1), InvalidValueError, "read-only"),
        ([linear()], {"a": 1}, InvalidTypeError, "a sequence of 1"),
        ([linear()], [], InvalidTypeError, "a sequence of 1"),
        ({"m": linear()}, [1], InvalidTypeError, "a dict"),
    ],
)
def test_a_state_of_another_form_is_refused(
    target: Any, tree: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        restore_into(target, tree)


def test_a_late_mismatch_leaves_the_earlier_parts_alone() -> None:
    model, optimizer = linear(), adam(1)
    before = model.weight.detach().clone()
    tree = {"model": linear().state_dict(), "optimizer": adam(2).state_dict()}
    with pytest.raises(InvalidValueError, match="groups of"):
        restore_into({"model": model, "optimizer": optimizer}, tree)
    assert torch.equal(model.weight, before)


def test_lazy_modules_take_their_shape_from_the_state() -> None:
    source = torch.nn.Linear(3, 2)
    target = torch.nn.LazyLinear(2)
    restore_into(target, saved(source))
    assert torch.equal(target.weight, source.weight)
