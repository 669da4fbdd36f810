"""Optimizers and schedulers: every one of torch's resumes to the bit; states go by name and fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import mldb
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state.tree import restore_into

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def db() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


# --- every optimizer and scheduler of torch -------------------------------------------------------


def subclasses(module: Any, bases: tuple[type, ...]) -> list[str]:
    """The public classes of *module* that derive from *bases*, which are left out themselves."""
    found = [name for name, item in vars(module).items() if isinstance(item, type)]
    kinds = {name: getattr(module, name) for name in found if not name.startswith("_")}
    return sorted(n for n, kind in kinds.items() if issubclass(kind, bases) and kind not in bases)


OPTIMIZERS = subclasses(torch.optim, (torch.optim.Optimizer,))
SCHEDULERS = [*subclasses(lr_scheduler, (lr_scheduler.LRScheduler,)), "SWALR"]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OPTIMIZERS),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"amsgrad": True, "foreach": False}),
    ("AdamW", {"fused": True}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("LBFGS", {"history_size": 3, "line_search_fn": "strong_wolfe"}),
]


class Training:
    """A small model under one optimizer, and a scheduler when one is wanted."""

    def __init__(
        self, seed: int, name: str, options: dict[str, Any], schedule: str | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.sparse = name == "SparseAdam"
        # Muon takes matrices alone.
        layers: list[torch.nn.Module] = [torch.nn.Linear(5, 4, bias=name != "Muon")]
        if self.sparse:
            layers = [torch.nn.Embedding(6, 4, sparse=True)]
        self.model = torch.nn.Sequential(*layers)
        named = [(f"net.{key}", item) for key, item in self.model.named_parameters()]
        self.optimizer = getattr(torch.optim, name)(named, **{"lr": 0.05, **options})
        self.scheduler = None if schedule is None else MAKERS[schedule](self.optimizer)

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {key: part for key, part in parts.items() if part is not None}

    def loss(self, data: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        output = self.model(data.abs().long().clamp(max=5) if self.sparse else data)
        loss: torch.Tensor = (output - 1).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def step(self, data: torch.Tensor) -> None:
        loss = self.optimizer.step(lambda: self.loss(data))
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss.detach())
        elif self.scheduler is not None:
            self.scheduler.step()

    def bits(self) -> list[bytes]:
        rates = [str(group["lr"]).encode() for group in self.optimizer.param_groups]
        return [item.detach().numpy().tobytes() for item in self.model.parameters()] + rates


MAKERS: dict[str, Callable[[Any], Any]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, mode="exp_range"),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.8**step),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=4),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6, 2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=9.0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.StepLR(o, 1, 0.5)], [2]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, 4),
}


def goes_on_bit_for_bit(db: mldb.MLDatabase, make: Callable[[int], Training]) -> None:
    """Two steps, a checkpoint, fresh objects that load it, one more step on both."""
    data = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    run = make(1)
    for batch in data[:2]:
        run.step(batch)
    db.checkpoint(run.state(), epoch=1)
    fresh = make(2)
    assert fresh.bits() != run.bits()
    db.load(fresh.state())
    assert fresh.bits() == run.bits()
    for batch in data[2:]:
        run.step(batch)
        fresh.step(batch)
        assert fresh.bits() == run.bits()


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_every_optimizer_goes_on_bit_for_bit(
    db: mldb.MLDatabase, name: str, options: dict[str, Any]
) -> None:
    goes_on_bit_for_bit(db, lambda seed: Training(seed, name, options))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_bit_for_bit(db: mldb.MLDatabase, name: str) -> None:
    goes_on_bit_for_bit(db, lambda seed: Training(seed, "SGD", {"momentum": 0.9}, name))


# --- by name --------------------------------------------------------------------------------------


def parameters(**shapes: tuple[int, ...]) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


def train(optimizer: Any, named: dict[str, torch.nn.Parameter]) -> None:
    """One step whose gradient is another number for each parameter, in the order of names."""
    for number, name in enumerate(sorted(named)):
        named[name].grad = torch.full_like(named[name], number + 1.0)
    optimizer.step()


def averages(optimizer: Any, named: dict[str, torch.nn.Parameter]) -> dict[str, float]:
    return {
        name: round(float(optimizer.state[item]["exp_avg"].mean()), 4)
        for name, item in named.items()
    }


def saved_adam(**shapes: tuple[int, ...]) -> tuple[Any, dict[str, float]]:
    named = parameters(**shapes)
    adam = torch.optim.Adam(named.items())
    train(adam, named)
    return copy.deepcopy(adam.state_dict()), averages(adam, named)


def test_parameters_in_another_order_get_their_own_state_by_name(db: mldb.MLDatabase) -> None:
    """p1 got the exp_avg of p2, and nobody was told."""
    named = parameters(p1=(2,), p2=(2,))
    adam = torch.optim.Adam(named.items())
    train(adam, named)
    db.checkpoint({"optimizer": adam}, epoch=1)
    other = parameters(p2=(2,), p1=(2,))
    target = torch.optim.Adam(other.items())
    db.load({"optimizer": target})
    assert averages(target, other) == averages(adam, named) == {"p1": 0.1, "p2": 0.2}
    assert target.param_groups[0]["param_names"] == ["p2", "p1"]


def test_groups_in_another_order_bring_their_options_and_their_schedule(
    db: mldb.MLDatabase,
) -> None:
    def make(order: str) -> tuple[Any, Any, dict[str, torch.nn.Parameter]]:
        named = parameters(a=(2,), b=(2,), c=(3,), d=(3,))
        options = {
            "ab": {"params": [("a", named["a"]), ("b", named["b"])], "lr": 0.1},
            "dc": {"params": [("d", named["d"]), ("c", named["c"])], "lr": 0.01},
            "cd": {"params": [("c", named["c"]), ("d", named["d"])], "lr": 0.01},
        }
        optimizer = torch.optim.Adam([options[name] for name in order.split()])
        first, second = lr_scheduler.LinearLR(optimizer, 0.5), lr_scheduler.StepLR(optimizer, 1)
        return optimizer, lr_scheduler.SequentialLR(optimizer, [first, second], [3]), named

    optimizer, scheduler, named = make("ab cd")
    other, schedule, theirs = make("dc ab")
    for step in range(6):
        if step == 2:
            db.checkpoint([optimizer, (scheduler,)], epoch=1)
            db.load([other, (schedule,)])
        if step > 1:
            train(other, theirs)
            schedule.step()
            rates = [group["lr"] for group in other.param_groups]
        train(optimizer, named)
        scheduler.step()
        if step > 1:
            assert rates == [group["lr"] for group in optimizer.param_groups][::-1]
            assert averages(other, theirs) == averages(optimizer, named)


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (("module.a", "module.b"), ("b", "a")),
        (("a", "b"), ("module.b", "module.a")),
        (("_orig_mod.a", "_orig_mod.b"), ("b", "a")),
        (("module._orig_mod.a", "module._orig_mod.b"), ("b", "a")),
        (("net._orig_mod.a", "out.b"), ("out.b", "net.a")),
    ],
)
def test_names_of_compiled_and_parallel_modules_are_the_same_parameters(
    saved: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    tree, _ = saved_adam(**dict.fromkeys(saved, (2,)))
    named = parameters(**dict.fromkeys(wanted, (2,)))
    target = torch.optim.Adam(named.items())
    restore_into(target, tree)
    assert list(averages(target, named).values()) == [0.2, 0.1]
    assert target.param_groups[0]["param_names"] == list(wanted)


def test_states_gathered_from_many_ranks_go_by_the_names_in_place_of_numbers() -> None:
    tree, expected = saved_adam(a=(2,), b=(2,))
    group = tree["param_groups"][0]
    names = group.pop("param_names")
    gathered = {
        "state": {names[number]: state for number, state in tree["state"].items()},
        "param_groups": [{**group, "params": names}],
    }
    named = parameters(b=(2,), a=(2,))
    target = torch.optim.Adam(named.items())
    restore_into(target, gathered)
    assert averages(target, named) == expected


def test_without_names_on_one_side_positions_count() -> None:
    tree, _ = saved_adam(a=(2,), b=(2,))
    named = parameters(y=(2,), x=(2,))
    target = torch.optim.Adam(named.values())
    restore_into(target, tree)
    assert averages(target, named) == {"y": 0.1, "x": 0.2}
    del tree["param_groups"][0]["param_names"]
    target = torch.optim.Adam(named.items())
    restore_into(target, tree)
    assert averages(target, named) == {"y": 0.1, "x": 0.2}
    assert target.param_groups[0]["param_names"] == ["y", "x"]


def test_other_names_and_other_groups_are_named() -> None:
    tree, _ = saved_adam(a=(2,), b=(2,))
    target = torch.optim.Adam(parameters(a=(2,), c=(2,)).items())
    with pytest.raises(InvalidValueError, match=r"not saved \('c'\).*only in the saved one \('b'"):
        restore_into({"o": target}, {"o": tree})
    assert not target.state
    named = list(parameters(a=(2,), b=(2,)).items())
    split = torch.optim.Adam([{"params": named[:1]}, {"params": named[1:]}])
    with pytest.raises(InvalidValueError, match=r"other groups, of \[1, 1\] where \[2\]"):
        restore_into(split, tree)


def test_without_strict_the_states_that_fit_by_name_are_loaded(db: mldb.MLDatabase) -> None:
    """It was refused as a whole, though the modules beside it loaded what they have in common."""
    named = parameters(a=(2,), b=(2,), c=(3,))
    adam = torch.optim.Adam(named.items(), lr=0.25)
    train(adam, named)
    db.checkpoint({"optimizer": adam}, epoch=1)
    other = parameters(d=(5,), c=(3,), b=(2,))
    target = torch.optim.Adam(other.items())
    for _ in range(3):
        train(target, other)
    own = averages(target, other)["d"]
    with pytest.raises(InvalidValueError, match=r"not saved \('d'\).*\('a'\).*strict=False"):
        db.load({"optimizer": target})
    report = db.load({"optimizer": target}, strict=False)
    assert report.missing == ("optimizer/d",)
    assert report.unexpected == ("optimizer/a",)
    assert (report.loaded, report.ignored) == (("optimizer",), ())
    assert averages(target, other) == {"d": own, "c": 0.3, "b": 0.2}
    assert [int(target.state[other[name]]["step"]) for name in "dcb"] == [3, 1, 1]
    (group,) = target.param_groups
    assert (group["lr"], group["param_names"]) == (0.25, ["d", "c", "b"])
    train(target, other)


def test_a_parameter_that_was_saved_without_a_state_loses_its_own(db: mldb.MLDatabase) -> None:
    named = parameters(a=(2,), b=(2,))
    adam = torch.optim.Adam(named.items())
    named["a"].grad = torch.ones(2)
    adam.step()
    db.checkpoint(adam, epoch=1)
    other = parameters(b=(2,), c=(2,))
    target = torch.optim.Adam(other.items())
    train(target, other)
    report = db.load(target, strict=False)
    assert (report.missing, report.unexpected) == (("c",), ("a",))
    assert list(target.state) == [other["c"]]


def test_without_strict_groups_take_the_options_of_the_one_they_stood_in(
    db: mldb.MLDatabase,
) -> None:
    named = parameters(a=(2,), b=(2,), c=(3,), d=(3,))
    pairs = list(named.items())
    rates = {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}
    saved = [{"params": pairs[:2]}, {"params": pairs[2:3]}, {"params": pairs[3:]}]
    adam = torch.optim.Adam([{**part, **rate} for part, rate in zip(saved, rates, strict=True)])
    schedule = lr_scheduler.StepLR(adam, 1, gamma=0.5)
    train(adam, named)
    schedule.step()
    db.checkpoint({"o": adam, "s": schedule}, epoch=1)
    other = parameters(b=(2,), c=(3,), a=(2,), e=(4,), d=(3,))
    pairs = list(other.items())
    # One of a part of a group, one of parts of two, one that is new; the group of d goes unheard.
    groups = [{"params": pairs[:1]}, {"params": [*pairs[1:3], pairs[4]]}, {"params": pairs[3:4]}]
    target = torch.optim.Adam([{**part, "lr": 9.0} for part in groups])
    theirs = lr_scheduler.StepLR(target, 1, gamma=0.5)
    report = db.load({"o": target, "s": theirs}, strict=False)
    assert (report.missing, report.unexpected) == (("o/e",), ())
    assert report.ignored == ("o/param_groups/1", "o/param_groups/2")
    assert [group["lr"] for group in target.param_groups] == [0.05, 9.0, 9.0]
    assert theirs.base_lrs == [0.1, 9.0, 9.0]
    assert averages(target, {n: other[n] for n in "abcd"}) == averages(adam, named)
    train(target, other)
    theirs.step()
    assert [group["lr"] for group in target.param_groups] == [0.025, 4.5, 4.5]


def test_an_optimizer_without_a_name_in_common_stays_as_it_is() -> None:
    tree, _ = saved_adam(a=(2,), b=(2,))
    named = parameters(x=(4,))
    target = torch.optim.Adam(named.items(), lr=0.5)
    train(target, named)
    before = copy.deepcopy(target.state_dict())
    with pytest.warns(mldb.NothingLoadedWarning, match=r"'o' \(Adam\).*'a', 'b'.*'x'"):
        report = restore_into({"o": target}, {"o": tree}, strict=False)
    assert str(target.state_dict()) == str(before)
    assert (report.loaded, report.missing) == ((), ("o/x",))
    assert report.unexpected == ("o/a", "o/b")


def test_names_of_wrappers_are_seen_through_in_a_part_too() -> None:
    tree, _ = saved_adam(**{"module.a": (2,), "module.b": (2,)})
    named = parameters(b=(2,), c=(2,))
    target = torch.optim.Adam(named.items())
    report = restore_into(target, tree, strict=False)
    assert (report.missing, report.unexpected) == (("c",), ("a",))
    assert averages(target, {"b": named["b"]}) == {"b": 0.2}
    assert target.param_groups[0]["param_names"] == ["b", "c"]


def test_without_strict_shapes_and_kinds_are_checked_all_the_same() -> None:
    tree, _ = saved_adam(a=(2,), b=(2,))
    target = torch.optim.Adam(parameters(b=(3,), c=(2,)).items())
    with pytest.raises(InvalidValueError, match=r"'exp_avg' of parameter 'b' has shape \(2,\)"):
        restore_into(target, tree, strict=False)
    other = torch.optim.Adagrad(parameters(b=(2,), c=(2,)).items())
    with pytest.raises(InvalidValueError, match="which Adagrad needs"):
        restore_into(other, tree, strict=False)
    assert not target.state


def test_positions_that_do_not_fit_are_refused_without_strict_too() -> None:
    """Which state is whose cannot be told; the message says what would tell it."""
    tree, _ = saved_adam(a=(2,), b=(2,))
    for target in (
        torch.optim.Adam(parameters(a=(2,)).values()),
        torch.optim.Adam(parameters(a=(2,), b=(2,), c=(2,)).values()),
    ):
        with pytest.raises(InvalidValueError, match=r"named_parameters\(\), strict=False"):
            restore_into(target, tree, strict=False)
        assert not target.state
    lbfgs = torch.optim.LBFGS(parameters(a=(2,), b=(3,)).items())
    state = torch.optim.LBFGS(parameters(a=(2,), c=(3,)).items()).state_dict()
    with pytest.raises(InvalidValueError, match="does not have the parameters"):
        restore_into(lbfgs, state, strict=False)


def test_an_lbfgs_over_another_order_is_refused() -> None:
    """Its state is one vector over all parameters; no name tells the pieces apart."""
    named = parameters(a=(2,), b=(3,))
    saved = torch.optim.LBFGS(named.items())
    saved.state[named["a"]] = {"d": torch.zeros(5), "n_iter": 1}
    other = parameters(b=(3,), a=(2,))
    with pytest.raises(InvalidValueError, match=r"'a', 'b'.*in that order"):
        restore_into(torch.optim.LBFGS(other.items()), saved.state_dict())


# --- shapes ---------------------------------------------------------------------------------------


def trained(name: str, shapes: list[tuple[int, ...]]) -> Any:
    """An optimizer of torch over *shapes*, without names, after two steps."""
    items = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, name)(items, **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.stack([item.square().sum() for item in items]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if name == "SparseAdam":
            for item in items:
                assert item.grad is not None
                item.grad = item.grad.to_sparse()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_of_other_shapes_is_refused_before_anything_changes(
    db: mldb.MLDatabase, name: str
) -> None:
    """It loaded without a word, and the next step() died."""
    db.checkpoint({"optimizer": trained(name, [(3, 4), (2, 2)])}, epoch=1)
    for shapes in ([(2, 2), (3, 4)], [(3, 4), (2, 3)], [(4, 3), (2, 2)]):
        if name == "LBFGS" and shapes != [(3, 4), (2, 3)]:
            continue  # the same vector fits
        target = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(s)) for s in shapes])
        before = copy.deepcopy(target.state_dict())
        with pytest.raises(InvalidValueError, match=r"shape \(.*Nothing was changed"):
            db.load({"optimizer": target})
        assert str(target.state_dict()) == str(before)


def test_the_message_names_parameter_key_and_both_shapes() -> None:
    tree, _ = saved_adam(a=(2,), weight=(3, 4))
    target = torch.optim.Adam(parameters(weight=(4, 3), a=(2,)).items())
    with pytest.raises(InvalidValueError) as caught:
        restore_into({"opt": target}, {"opt": tree})
    for word in ("at 'opt'", "'exp_avg'", "'weight'", "(3, 4)", "(4, 3)"):
        assert word in str(caught.value)
    del tree["param_groups"][0]["param_names"]
    target = torch.optim.Adam(parameters(a=(2,), weight=(4, 3)).values())
    with pytest.raises(InvalidValueError, match=r"parameter 1 of group 0 has shape \(3, 4\)"):
        restore_into(target, tree)


def test_the_state_of_another_kind_of_optimizer_is_refused() -> None:
    tree = trained("SGD", [(2, 2)]).state_dict()
    target = torch.optim.Adam([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(InvalidValueError, match=r"lacks 'exp_avg', 'exp_avg_sq', which Adam"):
        restore_into(target, tree)
    adafactor = torch.optim.Adafactor([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(InvalidValueError, match="lacks 'col_var', 'row_var', which Adafactor"):
        restore_into(adafactor, tree)
    restore_into(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))]), target.state_dict())


@pytest.mark.parametrize(
    ("saved", "wanted", "lacking"),
    [
        ("Adam", "SGD", "'dampening', 'momentum', which SGD needs"),
        ("RMSprop", "SGD", "'dampening', which SGD needs"),
        ("SGD", "Adagrad", "'eps', 'initial_accumulator_value', 'lr_decay'"),
        ("SGD", "LBFGS", "which LBFGS needs"),
    ],
)
def test_another_kind_is_known_by_its_options_where_there_is_no_state(
    saved: str, wanted: str, lacking: str
) -> None:
    """SGD keeps nothing for its parameters: Adam's state was taken, and step() died of it."""
    tree = getattr(torch.optim, saved)([torch.nn.Parameter(torch.ones(2, 2))], lr=0.5).state_dict()
    item = torch.nn.Parameter(torch.ones(2, 2))
    target = getattr(torch.optim, wanted)([item], lr=0.25)
    with pytest.raises(InvalidValueError, match=lacking):
        restore_into(target, tree)
    assert target.param_groups[0]["lr"] == 0.25
    item.grad = torch.ones(2, 2)
    target.step(lambda: torch.ones(()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_that_torch_fills_in_are_not_missed(name: str) -> None:
    """States of older versions lack what came since; schedulers add options of their own."""
    item = torch.nn.Parameter(torch.ones(2, 2))
    target = getattr(torch.optim, name)([item])
    target.param_groups[0]["initial_lr"] = 0.1  # as a scheduler adds it
    tree = target.state_dict()
    filled = object.__new__(type(target))
    filled.__dict__.update(target.__dict__)
    filled.__setstate__({"state": {}, "param_groups": [{"params": []}]})
    for key in filled.param_groups[0].keys() - {"params"}:
        del tree["param_groups"][0][key]
    del tree["param_groups"][0]["initial_lr"]
    restore_into(target, tree)
    assert filled.param_groups[0].keys() <= target.param_groups[0].keys()


@pytest.mark.parametrize(
    "tree",
    [
        {"state": {}, "param_groups": [1]},
        {"state": [], "param_groups": []},
        {"state": {}, "param_groups": [{}]},
        {"state": {}, "param_groups": [{"params": [[0]]}]},
        [],
    ],
)
def test_what_is_no_state_dict_is_refused(tree: Any) -> None:
    with pytest.raises(InvalidTypeError, match="state dict of Adam"):
        restore_into(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]), tree)


class Foreign(torch.optim.Optimizer):
    """An optimizer that is not torch's own; its state is set by hand."""

    def __init__(self, named: Any) -> None:
        super().__init__(named, {"lr": 1.0})


def foreign(shapes: list[tuple[int, ...]], *states: dict[str, Any]) -> Foreign:
    named = [(f"p{n}", torch.nn.Parameter(torch.ones(shape))) for n, shape in enumerate(shapes)]
    optimizer = Foreign(named)
    for (_, item), state in zip(named, states, strict=False):
        optimizer.state[item] = state
    return optimizer


@pytest.mark.parametrize(
    ("shapes", "states"),
    [
        # Factors of a matrix, as Adafactor keeps them in several forms.
        ([(3, 4)], [{"exp_avg_sq_row": torch.ones(3), "exp_avg_sq_col": torch.ones(4)}]),
        ([(3, 4)], [{"row": torch.ones(3, 1), "col": torch.ones(1, 4), "step": 3}]),
        # Preconditioners of Shampoo, beside what it averages.
        ([(3, 4)], [{"left": torch.ones(3, 3), "right": torch.ones(4, 4), "m": torch.ones(3, 4)}]),
        # A quantized state: blocks, code book, and the moment itself.
        ([(600,)], [{"state1": torch.ones(600), "absmax": torch.ones(3), "map": torch.ones(256)}]),
        ([(9,)], [{"blocks": torch.ones(2)}]),
        ([(3, 4)], [{"low_rank": torch.ones(3, 2), "step": torch.tensor(2)}]),
        ([()], [{"exp_avg": torch.ones(1)}]),
    ],
)
def test_other_optimizers_are_not_refused_for_shapes_of_their_own(
    shapes: list[tuple[int, ...]], states: list[dict[str, Any]]
) -> None:
    target = foreign(shapes)
    restore_into(target, foreign(shapes, *states).state_dict())
    assert len(target.state) == len(states)


def test_a_plain_mistake_shows_in_other_optimizers_too() -> None:
    states = [{"m": torch.ones(2, 5)}, {"m": torch.ones(3, 4)}]
    tree = foreign([(2, 5), (3, 4)], *states).state_dict()
    with pytest.raises(InvalidValueError, match=r"'m' of parameter 'p1' has shape \(3, 4\)"):
        restore_into(foreign([(2, 5), (4, 3)]), tree)
    usual = foreign([(8, 5)], {"exp_avg": torch.ones(8, 5)}).state_dict()
    target = foreign([(8, 4)])
    with pytest.raises(InvalidValueError, match="'exp_avg'"):
        restore_into(target, usual)
    restore_into(target, usual, strict=False)  # an optimizer that means it
    assert len(target.state) == 1


def test_a_hook_of_the_optimizer_decides_for_itself() -> None:
    """It may cut a state to other parameters; what it makes of it is torch's to judge."""
    tree, _ = saved_adam(a=(4,))
    target = torch.optim.Adam(parameters(a=(2,)).items())

    def cut(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        halves = {
            number: {key: item[:2] if item.dim() else item for key, item in one.items()}
            for number, one in state["state"].items()
        }
        return {**state, "state": halves}

    target.register_load_state_dict_pre_hook(cut)
    restore_into(target, tree)
    assert next(iter(target.state.values()))["exp_avg"].shape == (2,)


def test_parameters_that_have_no_shape_yet_are_not_compared() -> None:
    model, lazy = torch.nn.Linear(3, 2), torch.nn.LazyLinear(2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    target = torch.optim.SGD(lazy.parameters(), momentum=0.9)
    restore_into([lazy, target], [model.state_dict(), optimizer.state_dict()])
    assert target.state[lazy.weight]["momentum_buffer"].shape == (2, 3)
