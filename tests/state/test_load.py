"""Saved states loaded into live objects: training goes on, a refused load changes nothing."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import mldb
from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state.tree import flatten, restore_into, unflatten
from mldb.tensors.codec import prepare, rebuild

# Given by versions of torch before 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")


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


# --- what it reports ------------------------------------------------------------------------------


def test_a_report_names_what_was_loaded_and_what_was_not() -> None:
    source = torch.nn.ModuleDict({"a": linear(), "b": linear()})
    tree = saved(
        {
            "model": source,
            "ema": [torch.ones(2)],
            "array": np.ones(2),
            "generator": torch.Generator(),
            "step": 3,
            "old": 1,
        }
    )
    tree["model"]["hole.weight"] = torch.ones(1)
    target_model = torch.nn.ModuleDict({"b": linear(), "c": linear(), "hole": linear()})
    vars(target_model)["_modules"]["hole"] = None
    target = {
        "model": target_model,
        "ema": [torch.zeros(2)],
        "array": np.zeros(2),
        "generator": torch.Generator(),
        "step": 0,
        "new": 7,
    }
    report = restore_into(target, tree, strict=False)
    assert report == mldb.LoadReport(
        loaded=("model/b.weight", "model/b.bias", "ema/0", "array", "generator"),
        missing=("model/c.weight", "model/c.bias", "new"),
        unexpected=("model/a.weight", "model/a.bias", "old"),
        ignored=("model/hole.weight",),
    )
    assert (report["step"], report.state["new"]) == (3, 7)
    assert report["model"] is target["model"]
    text = repr(report)
    assert "5 loaded, 3 missing ('model/c.weight'," in text
    assert "1 ignored ('model/hole.weight')" in text
    with pytest.raises(AttributeError):
        report.loaded = ()  # type: ignore[misc]
    assert restore_into(torch.zeros(2), torch.ones(2)).loaded == ("value",)
    assert restore_into({"step": 1}, {"step": 2}).loaded == ()


def test_a_load_without_a_key_in_common_says_so() -> None:
    model = linear()
    before = model.weight.detach().clone()
    tree = {"model": {"fc.weight": torch.ones(2, 2)}, "step": 3}
    with pytest.warns(mldb.NothingLoadedWarning, match=r"'model' \(Linear\).*'fc.weight'.*'bias'"):
        report = restore_into({"model": model, "step": 0}, tree, strict=False)
    assert report.loaded == ()
    assert report.missing == ("model/weight", "model/bias")
    assert report.unexpected == ("model/fc.weight",)
    assert torch.equal(model.weight, before)
    # The warning is about the line that loads.
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db.checkpoint({"net": model, "w": torch.ones(1)}, epoch=1)
        for wrong in ({"model": model}, {"x": torch.ones(1)}):
            with pytest.warns(mldb.NothingLoadedWarning, match="no key in common") as caught:
                report = db.load(wrong, strict=False)
            assert caught[0].filename == __file__
            assert (report.loaded, report.missing) == ((), tuple(wrong))
            assert report.unexpected == ("net", "w")
    # One key is enough, and where nothing was saved there is nothing to have in common.
    restore_into({"model": model}, {"model": {"bias": torch.ones(2)}}, strict=False)
    restore_into({"model": model}, {"model": {}}, strict=False)
    restore_into({"model": torch.nn.ReLU()}, tree, strict=False)


def test_the_report_of_a_database_and_the_tree_without_a_target() -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db.checkpoint({"m": linear(), "step": 3}, epoch=1)
        report = db.load({"m": linear(), "step": 0})
        assert isinstance(report, mldb.LoadReport)
        assert (report.loaded, report["step"]) == (("m/weight", "m/bias"), 3)
        tree = db.load(None)
        assert (type(tree), tree["step"]) == (dict, 3)
        compiled = torch.compile(linear(), backend="eager")
        with pytest.raises(MissingError, match="strip_prefix='auto'"):
            db.load({"m": compiled, "step": 0})
        assert db.load({"m": compiled, "step": 0}, strip_prefix="auto").missing == ()


# --- meta tensors ---------------------------------------------------------------------------------


def on_meta() -> torch.nn.Module:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    return model


def test_a_module_on_the_meta_device_is_refused_and_assigned_when_asked() -> None:
    source = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    tree = saved({"m": source})
    for strict in (True, False):
        model = on_meta()
        weight = model[0].weight  # type: ignore[index]
        with pytest.raises(InvalidValueError, match=r"meta .*'0\.weight'.*assign=True.*to_empty"):
            restore_into({"m": model}, tree, strict=strict)
        assert model[0].weight is weight  # type: ignore[index]
    report = restore_into({"m": model}, tree, assign=True)
    assert len(report.loaded) == 7
    plain = on_meta()
    plain.load_state_dict(saved(source), assign=True)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert type(one) is torch.nn.Parameter
        assert (one.requires_grad, one.device) == (other.requires_grad, other.device)
        assert torch.equal(one, other)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    model(torch.ones(4, 3)).sum().backward()
    model = on_meta().to_empty(device="cpu")  # the other remedy
    restore_into({"m": model}, tree)
    assert torch.equal(model.state_dict()["0.weight"], source.state_dict()["0.weight"])


def test_a_module_half_on_the_meta_device_takes_what_is_for_the_other_half() -> None:
    model = torch.nn.ModuleDict({"a": linear(), "b": torch.nn.Linear(2, 2, device="meta")})
    tree = {f"a.{key}": value for key, value in linear().state_dict().items()}
    report = restore_into(model, tree, strict=False)
    assert report.missing == ("b.weight", "b.bias")
    with pytest.raises(InvalidValueError, match=r"meta device \('b.bias'\)"):
        restore_into(model, {**tree, "b.bias": torch.ones(2)}, strict=False)


def test_a_lazy_module_on_the_meta_device_is_refused_too() -> None:
    model = torch.nn.LazyLinear(2, device="meta")
    with pytest.raises(InvalidValueError, match="assign=True"):
        restore_into(model, saved(torch.nn.Linear(3, 2)))
    restore_into(model, saved(torch.nn.Linear(3, 2)), assign=True)
    assert model(torch.ones(1, 3)).shape == (1, 2)


def test_a_tensor_on_the_meta_device_gives_way_to_the_saved_one() -> None:
    weight = torch.nn.Parameter(torch.empty(2, device="meta"))
    target = {"w": weight, "v": torch.empty(2, device="meta"), "x": torch.zeros(2)}
    tree = {"w": torch.ones(2), "v": torch.ones(2), "x": torch.ones(2)}
    with pytest.raises(InvalidValueError, match=r"the target at 'w' .*meta device"):
        restore_into(target, tree)
    assert target["x"].tolist() == [0, 0]
    outcome = restore_into(target, tree, assign=True).state
    assert (type(outcome["w"]), outcome["w"].requires_grad) == (torch.nn.Parameter, True)
    assert (type(outcome["v"]), outcome["v"].requires_grad) == (torch.Tensor, False)
    assert outcome["w"].tolist() == outcome["v"].tolist() == [1, 1]
    assert outcome["x"] is target["x"]  # it has memory, and was written to
    assert target["x"].tolist() == [1, 1]


def test_an_optimizer_is_not_left_with_parameters_that_were_replaced() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    tree = saved({"m": linear(), "o": optimizer})
    with pytest.raises(InvalidValueError, match=r"SGD in the target holds.*build the optimizer"):
        restore_into({"m": model, "o": optimizer}, tree, assign=True)
    restore_into({"m": model, "o": adam(1)}, {**tree, "o": adam(1).state_dict()}, assign=True)
    assert torch.equal(model.weight, tree["m"]["weight"])


# --- modes of torch -------------------------------------------------------------------------------


@contextlib.contextmanager
def mode_called(name: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if "no_grad" in name:
            stack.enter_context(torch.no_grad())
        if "inference" in name:
            stack.enter_context(torch.inference_mode())
        if "device" in name:
            stack.enter_context(torch.device("meta"))
        yield


MODES_OF_TORCH = ["inference", "no_grad", "device", "no_grad inference", "inference device"]


@pytest.fixture(scope="module")
def store() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        base = torch.arange(24.0)
        big = torch.arange(3.0).numpy().astype(">f4")
        run = Run(1)
        run.train(2)
        db["w"] = torch.ones(300, 300)
        db["coo"] = torch.eye(3).to_sparse()
        db["big"] = big
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            csr = torch.eye(3).to_sparse_csr()
            scipy_csr = scipy.sparse.csr_array(np.eye(3))
        db["scipy"] = scipy_csr
        state = {
            "m": run.model,
            "o": run.optimizer,
            "parts": {"a": base[:12], "b": base[6:], "c": base.view(4, 6).t()},
            "sparse": {"coo": torch.eye(3).to_sparse(), "csr": csr},
            "small": {"one": torch.tensor(1.0), "none": torch.zeros(0, 3)},
            "lazy": torch.nn.Linear(3, 2),
        }
        db.checkpoint(state, epoch=1)
        yield db


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_in(item)


def check_plain(tensor: torch.Tensor) -> None:
    """It can be written to under gradients, and trained."""
    assert not tensor.is_inference()
    assert tensor.device.type == "cpu"
    assert not tensor.requires_grad
    if not tensor.is_floating_point():
        return
    tensor.requires_grad_()
    (tensor * 2).sum().backward()  # type: ignore[no-untyped-call]
    tensor.requires_grad_(False)
    if tensor.layout is torch.strided:
        tensor.mul_(torch.ones(tensor.shape, requires_grad=True))
        assert tensor.requires_grad


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("mode", MODES_OF_TORCH)
def test_tensors_read_under_any_mode_are_plain(store: mldb.MLDatabase, mode: str) -> None:
    """One made under ``inference_mode`` can never be trained."""
    readers: list[Callable[[], Any]] = [
        lambda: store.load(None),
        lambda: store.state_dict(prefix="m/"),
        lambda: store.state_dict(prefix="parts/"),
        lambda: store.state_dict(prefix="small/", device="cpu"),
        lambda: store.state_dict(prefix="sparse/"),
        *(lambda name=name: store.tensor(name).torch() for name in ("w", "coo", "big", "scipy")),
        lambda: store.tensor("w").torch("cpu"),
        lambda: store.tensor("w").torch(torch.device("cpu")).to(torch.float32),
    ]
    for read in readers:
        expected = list(tensors_in(read()))
        with mode_called(mode):
            found = list(tensors_in(read()))
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.to_dense(), other.to_dense())
            check_plain(one)


@pytest.mark.parametrize("mode", [name for name in MODES_OF_TORCH if "device" not in name])
def test_what_is_loaded_under_a_mode_trains_on(store: mldb.MLDatabase, mode: str) -> None:
    run = Run(5)
    lazy = torch.nn.LazyLinear(2)
    target = {"m": run.model, "o": run.optimizer, "lazy": lazy}
    with mode_called(mode):
        store.load(target, strict=False)
    other = Run(5)
    store.load({"m": other.model, "o": other.optimizer}, strict=False)
    losses = []
    for each in (run, other):
        torch.manual_seed(1)  # of the dropout
        losses.append(each.train(3))
    assert losses[0] == losses[1]
    lazy(torch.ones(2, 3)).sum().backward()
    assert lazy.weight.grad is not None
    run.model.zero_grad()
    with mode_called(mode):
        store.load({"m": run.model}, strict=False, assign=True)
    run.model(torch.ones(2, 4)).sum().backward()
    assert all(p.grad is not None for p in run.model.parameters())


def test_a_module_of_inference_tensors_is_loaded_where_it_lives() -> None:
    """Outside inference mode torch refuses, and so does mldb, before it changes anything."""
    with torch.inference_mode():
        model = torch.nn.Sequential(linear(), torch.nn.Linear(300, 300))
    tree = saved(torch.nn.Sequential(linear(), torch.nn.Linear(300, 300)))
    before = [value.tolist() for value in model.state_dict().values()]
    with pytest.raises(InvalidValueError, match="outside InferenceMode"):
        restore_into(model, tree)
    assert [value.tolist() for value in model.state_dict().values()] == before
    with torch.inference_mode():
        restore_into(model, tree)
        assert torch.equal(model.state_dict()["1.weight"], tree["1.weight"])
