"""A load is tried before it is made: at what cost, and that everything is put back."""

from __future__ import annotations

import copy
import sys
import warnings
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from mldb.errors import InvalidValueError, MissingError
from mldb.state import trial
from mldb.state.load import restore_into
from tests.state.test_load import saved

pytestmark = pytest.mark.usefixtures("one_thread")

LARGE = 300  # a square of it has more elements than a small tensor


def everything(module: nn.Module) -> list[Any]:
    """What a refused load must leave: attributes by identity, contents of containers, values."""
    found: list[Any] = []
    for part in module.modules():
        for name, value in vars(part).items():
            found.append((name, id(value), _content(value)))
        tensors = [
            t for t in (*part._parameters.values(), *part._buffers.values()) if t is not None
        ]
        found += [(id(t), t.data_ptr(), t._version, t.detach().numpy().tobytes()) for t in tensors]
    return found


def _content(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    return [id(item) for item in value] if isinstance(value, list | set) else None


class Messy(nn.Module):
    """Its loading changes whatever it finds, and then the state lacks a key."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(LARGE, LARGE))
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.loose = torch.zeros(4)
        self.history, self.table, self.names = [1], {"a": 1}, {"x"}
        self.deep = {"inner": [1]}

    def get_extra_state(self) -> Any:
        return copy.deepcopy(self.deep)

    def set_extra_state(self, state: Any) -> None:
        self.deep["inner"][:] = state.pop("inner")

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        buffers: dict[str, Any] = {"seen": self.seen, "scratch": self.scratch, "l": self.loose}
        for buffer in buffers.values():
            buffer.add_(1)
        self.history.append(2)
        self.table.clear()
        self.names.add("y")
        self.added = 5
        self.weight = nn.Parameter(torch.zeros(1))
        self.child = nn.Linear(1, 1)
        self.register_buffer("late", torch.ones(1))
        del self.scratch
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def test_a_refused_load_leaves_nothing_behind() -> None:
    module = Messy()
    before = everything(module)
    tree = saved(Messy())
    tree["_extra_state"] = {"inner": [7, 8]}
    kept = copy.deepcopy(tree)
    tree["more"] = torch.zeros(1)
    with pytest.raises(MissingError, match=r"'child\.weight', 'child\.bias'.*'more'"):
        restore_into(module, tree)
    assert everything(module) == before
    assert module.deep == {"inner": [1]}
    assert tree["_extra_state"] == kept["_extra_state"]
    assert torch.equal(tree["weight"], kept["weight"])


def test_one_part_that_is_refused_keeps_all_modules_from_being_loaded() -> None:
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    before = everything(first)
    with pytest.raises(MissingError, match=r"'last' does not match.* 1 missing .*'bias'"):
        restore_into(
            {"first": first, "last": last},
            {"first": nn.Linear(2, 2).state_dict(), "last": {"weight": torch.ones(2, 2)}},
        )
    assert everything(first) == before


def test_a_generator_is_asked_before_a_module_is_loaded() -> None:
    module, generator = nn.Linear(2, 2), torch.Generator().manual_seed(3)
    before, state = everything(module), generator.get_state()
    with pytest.raises(InvalidValueError, match=r"'g' refused .* Nothing was changed"):
        restore_into(
            {"m": module, "g": generator}, {"m": nn.Linear(2, 2).state_dict(), "g": torch.ones(3)}
        )
    assert everything(module) == before
    assert torch.equal(generator.get_state(), state)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every stand-in that is made."""
    made: list[torch.Tensor] = []
    make = trial._StandIns._make

    def noted(self: Any, tensor: Any) -> Any:
        made.append(make(self, tensor))
        return made[-1]

    monkeypatch.setattr(trial._StandIns, "_make", noted)
    return made


def test_large_tensors_cost_no_memory(stand_ins: list[torch.Tensor]) -> None:
    module = nn.Sequential(nn.Linear(LARGE, LARGE), nn.BatchNorm1d(LARGE))
    tree = saved(nn.Sequential(nn.Linear(LARGE, LARGE), nn.BatchNorm1d(LARGE)))
    restore_into(module, tree)
    assert len(stand_ins) == 2 * 7
    assert sorted({made.numel() for made in stand_ins if made.is_meta}) == [LARGE * LARGE]
    assert sum(made.numel() for made in stand_ins if not made.is_meta) == 2 * (5 * LARGE + 1)
    stand_ins.clear()
    # Nor does being refused for keys or shapes.
    for wrong in (
        {"0.weight": tree["0.weight"]},
        {**tree, "0.weight": torch.ones(LARGE + 1, LARGE)},
    ):
        with pytest.raises((MissingError, InvalidValueError)):
            restore_into(module, wrong)
    assert all(made.is_meta for made in stand_ins if made.numel() >= LARGE * LARGE)


def test_values_are_there_for_a_loading_that_looks_at_them(stand_ins: list[torch.Tensor]) -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(LARGE, LARGE))

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            if float(self.weight.sum()) <= 0 or not bool(state[f"{prefix}weight"].isfinite().all()):
                rest[-1].append("numbers that are none")
            super()._load_from_state_dict(state, prefix, *rest)

    module = Checked()
    restore_into(module, {"weight": torch.full((LARGE, LARGE), 2.0)})
    assert module.weight[0, 0] == 2
    assert [made.is_meta for made in stand_ins] == [True] * 2 + [True] * 2 + [False] * 2
    before = everything(module)
    with pytest.raises(InvalidValueError, match="numbers that are none"):
        restore_into(module, {"weight": torch.full((LARGE, LARGE), torch.inf)})
    assert everything(module) == before


def test_tied_parameters_have_one_stand_in(stand_ins: list[torch.Tensor]) -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    restore_into(module, saved(module))
    assert len(stand_ins) == 2
    assert module[1].weight is module[0].weight


def test_interrupted_while_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the loading, and in the middle of putting back: the module has its own tensors."""
    module = nn.Sequential(nn.Linear(LARGE, LARGE), nn.Linear(2, 2))
    before = everything(module)
    hook = module[1].register_load_state_dict_pre_hook(_interrupt)  # type: ignore[no-untyped-call]
    tree = saved(nn.Sequential(nn.Linear(LARGE, LARGE), nn.Linear(2, 2)))
    with pytest.raises(KeyboardInterrupt):
        restore_into(module, tree)
    hook.remove()
    assert everything(module) == before
    refill, calls = trial._refill, []

    def interrupted(container: Any, content: Any) -> None:
        calls.append(container)
        if len(calls) == 3:
            raise KeyboardInterrupt
        refill(container, content)

    monkeypatch.setattr(trial, "_refill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore_into(module, tree)
    assert everything(module) == before


@pytest.mark.slow
def test_interrupted_at_any_line_of_the_trial() -> None:
    module = Messy()
    tree = {**saved(module), "more": torch.zeros(1)}
    before = everything(module)
    line, ended = 0, False
    while not ended:
        line += 1
        left = line

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != trial.__file__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            restore_into(module, tree)
        except KeyboardInterrupt:
            pass
        except MissingError:
            ended = True  # there is no such line
        finally:
            sys.settrace(None)
        assert everything(module) == before, line
    assert line > 300


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_scripted_module_keeps_its_values() -> None:
    """Its tensors cannot be swapped: their values are kept and put back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.script(nn.Linear(2, 2))
    values = [value.clone() for value in module.state_dict().values()]
    source = nn.Linear(2, 2)
    with pytest.raises(MissingError, match="'bias'"):
        restore_into(module, {"weight": source.weight.detach()})
    assert all(map(torch.equal, values, module.state_dict().values()))
    restore_into(module, saved(source))
    assert all(map(torch.equal, source.state_dict().values(), module.state_dict().values()))


def test_an_expanded_buffer_is_refused_in_the_trial() -> None:
    """torch cannot write to it, small or large; a tensor without memory would not mind."""
    for size in (4, LARGE * LARGE):
        module = nn.Linear(2, 2)
        module.register_buffer("mask", torch.zeros(1).expand(size))
        before = everything(module)
        with pytest.raises(InvalidValueError, match="single memory location"):
            restore_into(module, {**nn.Linear(2, 2).state_dict(), "mask": torch.ones(size)})
        assert everything(module) == before


def test_loading_runs_once_as_far_as_the_module_can_tell() -> None:
    class Counting(nn.Linear):
        loads = 0

        def _load_from_state_dict(self, *arguments: Any) -> None:
            super()._load_from_state_dict(*arguments)
            self.loads += 1

    module = Counting(2, 2)
    restore_into(module, saved(nn.Linear(2, 2)))
    assert module.loads == 1


def test_warnings_of_a_loading_are_given_once() -> None:
    module = nn.Linear(2, 2)
    module.register_load_state_dict_pre_hook(_warn)  # type: ignore[no-untyped-call]
    with pytest.warns(UserWarning, match="an old state") as caught:
        restore_into(module, saved(nn.Linear(2, 2)))
    assert len(caught) == 1


def _warn(*_: object) -> None:
    warnings.warn("an old state", stacklevel=1)


def test_swapped_parameters_are_swapped_in_the_end() -> None:
    """With torch's own option for it the parameters stay the same objects."""
    module, source = nn.Linear(2, 2), nn.Linear(2, 2)
    weight = module.weight
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        restore_into(module, saved(source))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert module.weight is weight
    assert torch.equal(weight, source.weight)


def test_metadata_of_the_saved_state_is_not_written_to() -> None:
    """torch notes assign=True in it, and the next load of the same state would assign as well."""
    tree = saved(nn.Linear(2, 2))
    before = copy.deepcopy(tree._metadata)
    restore_into(nn.Linear(2, 2), tree, assign=True)
    assert tree._metadata == before
