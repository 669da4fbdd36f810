"""What ``load_state_dict`` of a module takes, ``db.load`` takes; what it refuses changes nothing.

Every module of torch with load hooks, extra state or parametrizations goes through both, with
states as saved and states that do not fit, strictly and not; outcome and values are compared.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import mldb
from mldb.errors import InvalidValueError, MissingError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state.load import restore_into
from tests.state.test_load import saved

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore::mldb.NothingLoadedWarning"),
]

Make = Callable[[], nn.Module]


# --- modules --------------------------------------------------------------------------------------


class Vocabulary(nn.Module):
    """Extra state of plain values, taken apart by who takes it; the table is changed in place."""

    def __init__(self, words: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2))
        self.table = {
            f"word {number}": number + int(torch.randint(9, ())) for number in range(words)
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {"version": 2, "table": dict(self.table), "blob": b"\0\xff"}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        assert state.pop("version") == 2
        self.table.clear()
        self.table.update(state.pop("table"))


class Packed(nn.Module):
    """Extra state as bytes in a tensor, whose length is that of what it holds."""

    def __init__(self, length: int = 5) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scales = torch.rand(length)

    def get_extra_state(self) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(self.scales.numpy().tobytes(), np.uint8).copy())

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.scales = torch.from_numpy(np.frombuffer(state.numpy().tobytes(), np.float32).copy())


class Old(nn.Module):
    """Takes states with the names of an older version, and of a layer that was split."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(2, 2), nn.Linear(2, 2)
        self.loads = 0
        self.register_load_state_dict_pre_hook(self._translate)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(lambda module, keys: module.count(keys))  # type: ignore[no-untyped-call]

    def count(self, keys: Any) -> None:
        self.loads += 1
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith("key.bias")]

    @staticmethod
    def _translate(module: Old, state: dict[str, Any], prefix: str, *_: object) -> None:
        for kind in ("weight", "bias"):
            both = state.pop(f"{prefix}both.{kind}", None)
            if both is not None:
                both *= 2  # in place: a second run on the same tensor would double it again
                state[f"{prefix}query.{kind}"], state[f"{prefix}key.{kind}"] = both.chunk(2)

    @staticmethod
    def saved_long_ago() -> OrderedDict[str, torch.Tensor]:
        return OrderedDict({"both.weight": torch.randn(4, 2), "both.bias": torch.randn(4)})


class Grown(nn.Module):
    """A buffer that takes the length of what is loaded, and an attribute that follows."""

    def __init__(self, length: int = 3) -> None:
        super().__init__()
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.arange(float(length)))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.history = [length]

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        value = state.get(f"{prefix}seen")
        if value is not None:
            self.seen.resize_(value.shape)
            self.history.append(len(value))
        super()._load_from_state_dict(state, prefix, *rest)


class Choosy(nn.Module):
    """Looks at values of its own and of what is saved, of tensors large and small."""

    def __init__(self, rows: int = 300) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(rows, 300) + 0.5)
        self.register_load_state_dict_pre_hook(self._look)  # type: ignore[no-untyped-call]

    @staticmethod
    def _look(module: Choosy, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        value = state.get(f"{prefix}weight")
        if value is not None and float(module.weight.mean()) <= float(value.min()):
            rest[-1].append("the saved weights are too large")


class Bare(nn.Module):
    """Overrides ``load_state_dict`` itself, takes no options and returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def load_state_dict(self, state_dict: Any) -> None:  # type: ignore[override]
        if set(state_dict) != {"weight"}:
            raise AssertionError("another module")
        with torch.no_grad():
            self.weight.copy_(state_dict["weight"])


class Symmetric(nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value.triu() + value.triu(1).transpose(-1, -2)


class Scaled(nn.Module):
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(()) + 1)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = value * self.scale
        return result


def two_in_a_row() -> nn.Module:
    square = nn.Linear(3, 3)
    parametrize.register_parametrization(square, "weight", Symmetric())
    parametrize.register_parametrization(square, "weight", Scaled())
    return square


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def with_a_hole() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].register_parameter("bias", None)
    model.add_module("absent", None)
    return model


def compiled() -> nn.Module:
    module: nn.Module = torch.compile(nn.Linear(2, 3), backend="eager")  # type: ignore[assignment]
    return module


def on(make: Make, wrap: Callable[..., nn.Module], *names: str, **options: Any) -> Make:
    """A factory of modules with *wrap* around the weights called *names*."""

    def made() -> nn.Module:
        module = make()
        for name in names:
            module = wrap(module, name, **options)
        return nn.Sequential(nn.ReLU(), module)

    return made


def quantization() -> dict[str, Make]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import fake_quantize, observer
    kinds = (
        observer.MinMaxObserver,
        observer.MovingAverageMinMaxObserver,
        observer.PerChannelMinMaxObserver,
        observer.MovingAveragePerChannelMinMaxObserver,
        observer.HistogramObserver,
        fake_quantize.FakeQuantize,
        fake_quantize.FusedMovingAvgObsFakeQuantize,
    )

    def seen(kind: Any, channels: int) -> Make:
        def made() -> nn.Module:
            module: nn.Module = kind()
            if channels:
                module(torch.randn(channels, 8))
            return module

        return made

    made = {f"{kind.__name__} {count}": seen(kind, count) for kind in kinds for count in (0, 3, 5)}
    choosing = fake_quantize.FakeQuantize
    per_channel = observer.MovingAveragePerChannelMinMaxObserver
    for channels in (0, 4):
        made[f"FakeQuantize by channel {channels}"] = seen(
            lambda: choosing(observer=per_channel, ch_axis=0, qscheme=torch.per_channel_affine),  # type: ignore[no-untyped-call]
            channels,
        )
    return made


PLAIN: dict[str, Make] = {
    "Linear": lambda: nn.Linear(3, 4),
    "Bilinear": lambda: nn.Bilinear(2, 3, 4),
    "Embedding": lambda: nn.Embedding(7, 3, padding_idx=0),
    "EmbeddingBag": lambda: nn.EmbeddingBag(7, 3),
    "Conv1d": lambda: nn.Conv1d(2, 4, 3),
    "Conv2d": lambda: nn.Conv2d(2, 4, 3),
    "Conv3d": lambda: nn.Conv3d(2, 4, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 4, 3),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm2d without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "BatchNorm3d without weights": lambda: nn.BatchNorm3d(4, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "PReLU": lambda: nn.PReLU(3),
    "RNN": lambda: nn.RNN(3, 4, 2),
    "LSTM": lambda: nn.LSTM(3, 4, bidirectional=True, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4),
    "LSTMCell": lambda: nn.LSTMCell(3, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
    "MultiheadAttention with kdim": lambda: nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 4, batch_first=True),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 9, [2, 5]),
    "BCEWithLogitsLoss": lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(3)),
    "ParameterList": lambda: nn.ParameterList([torch.randn(2), torch.randn(3)]),
    "ParameterDict": lambda: nn.ParameterDict({"b": torch.randn(2), "a": torch.randn(3)}),
    "ModuleDict": lambda: nn.ModuleDict({"user/item": nn.Linear(2, 2), "ü": nn.Linear(1, 1)}),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(2, 3)),
    "DataParallel": lambda: nn.DataParallel(nn.Linear(2, 3)),
    "compiled": compiled,
    "Sequential of tied": tied,
    "Sequential with a hole": with_a_hole,
    "mixed dtypes": lambda: nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 2)),
    "large": lambda: nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300)),
    "Vocabulary": Vocabulary,
    "Packed": Packed,
    "Old": Old,
    "Grown": Grown,
    "Choosy": Choosy,
    "Bare": Bare,
}
LAZY: dict[str, Make] = {
    "LazyLinear": lambda: nn.LazyLinear(4),
    "LazyConv2d": lambda: nn.LazyConv2d(4, 3),
    "LazyConvTranspose1d": lambda: nn.LazyConvTranspose1d(4, 3),
    "LazyBatchNorm1d": nn.LazyBatchNorm1d,
    "LazyInstanceNorm2d": lambda: nn.LazyInstanceNorm2d(affine=True, track_running_stats=True),
    "lazy inside": lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3)),
}
FULL: dict[str, Make] = {
    "LazyLinear": PLAIN["Linear"],
    "LazyConv2d": PLAIN["Conv2d"],
    "LazyConvTranspose1d": lambda: nn.ConvTranspose1d(2, 4, 3),
    "LazyBatchNorm1d": PLAIN["BatchNorm1d"],
    "LazyInstanceNorm2d": PLAIN["InstanceNorm2d"],
    "lazy inside": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)),
}
WEIGHTED = ("Linear", "Conv2d", "ConvTranspose2d", "Embedding", "Bilinear")
PARAMETRIZED: dict[str, Make] = {
    f"{wrap.__module__.rpartition('.')[2]}.{wrap.__name__} of {name}": on(
        PLAIN[name], wrap, "weight"
    )
    for name in WEIGHTED
    for wrap in (
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    )
} | {
    "weight_norm of an LSTM": on(
        PLAIN["LSTM"], parametrizations.weight_norm, "weight_ih_l0", "weight_hh_l0"
    ),
    "weight_norm over all": on(PLAIN["Linear"], parametrizations.weight_norm, "weight", dim=None),
    "old weight_norm over all": on(PLAIN["Linear"], nn.utils.weight_norm, "weight", dim=None),
    "pruned": on(PLAIN["Linear"], prune.l1_unstructured, "weight", "bias", amount=0.5),
    "two in a row": two_in_a_row,
}


MODULES = PLAIN | PARAMETRIZED | quantization()


# --- both ways ------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a load did: the keys named, or that it refused; and the state of the module after."""

    refused: bool
    missing: list[str]
    unexpected: list[str]
    state: Any


def by_torch(module: nn.Module, state: Any, options: dict[str, Any]) -> Outcome:
    before = copy.deepcopy(module.state_dict()) if not has_lazy(module) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keys = module.load_state_dict(state, **options)
    except Exception:  # noqa: BLE001 - whatever it is
        return Outcome(True, [], [], before)
    missing, unexpected = ([], []) if keys is None else (keys.missing_keys, keys.unexpected_keys)
    return Outcome(False, missing, unexpected, module.state_dict())


def by_mldb(module: nn.Module, state: Any, options: dict[str, Any]) -> Outcome:
    identities = [id(value) for value in module.parameters()]
    versions = [value._version for value in module.parameters() if not is_lazy(value)]
    attributes = [list(vars(part)) for part in module.modules()]
    try:
        report = restore_into(module, state, **options)
    except (MissingError, InvalidValueError) as error:
        assert "othing was changed" in str(error)
        # Not only the values: not one tensor was written to, and nothing swapped or added.
        assert [id(value) for value in module.parameters()] == identities
        assert [p._version for p in module.parameters() if not is_lazy(p)] == versions
        assert [list(vars(part)) for part in module.modules()] == attributes
        return Outcome(True, [], [], None if has_lazy(module) else module.state_dict())
    assert report.state is module
    return Outcome(False, list(report.missing), list(report.unexpected), module.state_dict())


def is_lazy(value: torch.Tensor) -> bool:
    return bool(nn.parameter.is_lazy(value))


def has_lazy(module: nn.Module) -> bool:
    return any(is_lazy(value) for value in (*module.parameters(), *module.buffers()))


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        versions = getattr(one, "_metadata", None) == getattr(other, "_metadata", None)
        return versions and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and bool(
            torch.equal(one.nan_to_num(7), other.nan_to_num(7))
        )
    return bool(one == other)


def agree(make: Make, state: Any, **options: Any) -> Outcome:
    """Load *state* both ways into what *make* makes, and compare; return what mldb did."""
    module = seeded(make, 2)
    expected = by_torch(module, saved(state), options)
    found = by_mldb(seeded(make, 2), saved(state), options)
    assert found[:3] == expected[:3]
    assert same(found.state, expected.state)
    return found


def seeded(make: Make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


# --- states ---------------------------------------------------------------------------------------


def as_saved(state: Any) -> Any:
    return state


def without_versions(state: Any) -> Any:
    return dict(state)


def one_less(state: Any) -> Any:
    result = copy.copy(state)
    del result[next(iter(state))]
    return result


def one_more(state: Any) -> Any:
    result = copy.copy(state)
    result["0.more"] = torch.zeros(2)
    result["more"] = torch.zeros(2)
    return result


def another_shape(state: Any) -> Any:
    result = copy.copy(state)
    key = list(state)[-1]
    value = result[key]
    result[key] = torch.zeros(*value.shape, 3) if isinstance(value, torch.Tensor) else 5
    return result


def nothing(state: Any) -> Any:
    return type(state)()


SCENARIOS = (as_saved, without_versions, one_less, one_more, another_shape, nothing)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_loads_as_by_torch_or_not_at_all(name: str) -> None:
    make = MODULES[name]
    state = seeded(make, 1).state_dict()
    for scenario in SCENARIOS:
        if scenario in (one_less, another_shape) and not state:
            continue
        for strict in (True, False):
            if name == "Bare" and not strict:
                continue
            options = {} if strict else {"strict": False}
            outcome = agree(make, scenario(state), **options)
            assert not (scenario is as_saved and outcome.refused)


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_module_takes_its_shapes_and_a_refused_state_leaves_it_lazy(name: str) -> None:
    state = seeded(FULL[name], 1).state_dict()
    assert not agree(LAZY[name], state).refused
    for scenario in (without_versions, one_less, one_more, nothing):
        agree(LAZY[name], scenario(state))
    module = LAZY[name]()
    with pytest.raises(MissingError):
        restore_into(module, saved(nothing(state)))
    assert has_lazy(module)
    restore_into(module, saved(state))
    assert not has_lazy(module)
    assert same(module.state_dict(), state)


def old_weight_norm_of(name: str) -> tuple[Callable[[], Any], Make]:
    old = on(PLAIN[name], nn.utils.weight_norm, "weight")
    return lambda: old().state_dict(), on(PLAIN[name], parametrizations.weight_norm, "weight")


PAIRS: dict[str, tuple[Callable[[], Any], Make]] = {
    **{f"old weight_norm of {name}": old_weight_norm_of(name) for name in WEIGHTED},
    "an old layer split in two": (Old.saved_long_ago, Old),
    "a longer buffer": (lambda: Grown(9).state_dict(), Grown),
    "a shorter buffer": (lambda: Grown(1).state_dict(), Grown),
    "longer extra state": (lambda: Packed(50).state_dict(), Packed),
    "a longer table": (lambda: Vocabulary(20).state_dict(), Vocabulary),
    "a scalar saved as one element": (
        lambda: OrderedDict(scale=torch.ones(1)),
        Scaled,
    ),
    "a batch norm before num_batches_tracked": (
        lambda: {
            key: value
            for key, value in nn.BatchNorm1d(4).state_dict().items()
            if key != "num_batches_tracked"
        },
        PLAIN["BatchNorm1d"],
    ),
    "statistics that are not tracked any more": (
        lambda: {**PLAIN["InstanceNorm2d"]().state_dict()},
        lambda: nn.InstanceNorm2d(4, affine=True),
    ),
    "another dtype": (lambda: nn.Linear(3, 4).double().state_dict(), PLAIN["Linear"]),
    "a sparse weight": (
        lambda: OrderedDict(weight=torch.eye(400).to_sparse()),
        lambda: nn.Linear(400, 400, bias=False),
    ),
    "weights that a hook finds too large": (
        lambda: OrderedDict(weight=torch.full((300, 300), 9.0)),
        Choosy,
    ),
    "observers of other channels": (
        quantization()["PerChannelMinMaxObserver 5"]().state_dict,
        quantization()["PerChannelMinMaxObserver 3"],
    ),
    "an observer that has seen nothing": (
        quantization()["FakeQuantize by channel 4"]().state_dict,
        quantization()["FakeQuantize by channel 0"],
    ),
    "a child that is None": (
        lambda: {**with_a_hole().state_dict(), "absent.weight": torch.ones(1)},
        with_a_hole,
    ),
}

REFUSED = {
    "statistics that are not tracked any more",
    "a sparse weight",
    "weights that a hook finds too large",
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_state_of_another_form_loads_where_torch_takes_it(name: str) -> None:
    state, make = PAIRS[name]
    refused = [agree(make, state()).refused, agree(make, state(), strict=False).refused]
    assert refused == [name in REFUSED, name in REFUSED]


def test_every_module_of_torch_with_a_loading_of_its_own_is_among_them() -> None:
    """One that torch adds is to be added here; packed ones of torch.ao hold what is no tensor."""
    covered = {
        kind
        for make in (*MODULES.values(), *LAZY.values())
        for part in make().modules()
        for kind in type(part).__mro__
    }
    own = [
        kind
        for kind in _all_subclasses(nn.Module)
        if kind.__module__.startswith(("torch.nn.", "torch.ao.quantization"))
        and ({"_load_from_state_dict", "load_state_dict", "set_extra_state"} & set(vars(kind)))
    ]
    assert len(own) >= 6
    assert [kind for kind in own if kind not in covered] == []
    with_mixin = {kind for kind in vars(nn).values() if inspect.isclass(kind)}
    lazies = {kind for kind in with_mixin if kind.__name__.startswith("Lazy")}
    assert {nn.LazyLinear, nn.LazyConv2d, nn.LazyBatchNorm1d} <= lazies


def _all_subclasses(kind: type) -> list[type]:
    direct: list[type] = type.__subclasses__(kind)
    return direct + [inner for each in direct for inner in _all_subclasses(each)]


# --- through a store ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_a_module_goes_through_a_store(name: str) -> None:
    """``state_dict(prefix=...)`` is what the module gave; ``load`` gives it to another one."""
    module = seeded(MODULES[name], 1)
    state = copy.deepcopy(module.state_dict())
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db.checkpoint({"a/b": {"m": module}, "n": np.arange(3)}, epoch=1)
        assert same(db.state_dict(prefix="a%2Fb/m/"), state)
        other = seeded(MODULES[name], 2)
        report = db.load({"a/b": {"m": other}, "n": None})
        assert same(other.state_dict(), state)
        assert report.loaded == tuple(f"a/b/m/{key}" for key in state)
        assert (report.missing, report.unexpected, report.ignored) == ((), (), ())
        assert report["n"].tolist() == [0, 1, 2]
        db.checkpoint(module, epoch=2)
        assert same(db.state_dict(), state)
