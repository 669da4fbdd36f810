"""One part of a checkpoint: strict in what it names, and the rest is not read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state import structs
from mldb.state.tree import flatten, unflatten


@pytest.fixture
def db() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def run_state(model: torch.nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model,
        "ema": {"slow": net(), "fast": net(), "decay": 0.9},
        "optimizer": optimizer,
        "list": [net(), torch.full((2,), 3.0)],
        "config": {"depth": 2, "names": ["a"]},
        "step": 7,
    }


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def loaded_names(state: Any, part: Any) -> set[str]:
    flat = flatten(state)
    names: list[str] = []

    def load(name: str) -> Any:
        names.append(name)
        return flat.tensors[name]

    unflatten(flat.skeleton, load, part=part)
    assert len(names) == len(set(names))
    return set(names)


def test_the_model_of_a_run_is_loaded_strictly_and_alone(db: mldb.MLDatabase) -> None:
    """strict=True missed the optimizer, and strict=False told nothing of a wrong model."""
    state = run_state(net())
    db.checkpoint(state, epoch=1)
    model = net()
    with pytest.raises(mldb.InvalidValueError, match="'optimizer'"):
        db.load({"model": model})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = db.load({"model": model}, part=True).state
    assert same(model, state["model"])
    assert back == {"model": model}

    wrong = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.PReLU())
    with pytest.raises(mldb.MissingError, match=r"'model'.*2\.weight"):
        db.load({"model": wrong}, part=True)
    with pytest.raises(mldb.MissingError, match="'modle'"):
        db.load({"modle": net()}, part=True)
    with db.at(epoch=1) as snapshot:
        assert set(snapshot.load({"model": net(), "step": 0}, part=True).state) == {"model", "step"}


def test_a_part_goes_as_deep_as_it_names(db: mldb.MLDatabase) -> None:
    state = run_state(net())
    db.checkpoint(state, epoch=1)
    slow, first, tensor = net(), net(), torch.zeros(2)
    back = db.load(
        {"ema": {"slow": slow}, "list": [first, tensor], "config": {}, "step": 0}, part=True
    )
    assert same(slow, state["ema"]["slow"])
    assert same(first, state["list"][0])
    assert tensor.tolist() == [3, 3]
    assert back["ema"] == {"slow": slow}
    assert back["config"] == {"depth": 2, "names": ["a"]}  # plain values come whole
    assert back["step"] == 7
    with pytest.raises(mldb.InvalidTypeError, match="a sequence of 1"):
        db.load({"list": [net()]}, part=True)
    weight = torch.zeros(2, 3)
    db.load({"model": {"0.weight": weight}}, part=True)
    assert torch.equal(weight, state["model"].state_dict()["0.weight"])


def test_an_optimizer_and_its_model_are_a_part(db: mldb.MLDatabase) -> None:
    state = run_state(net())
    db.checkpoint(state, epoch=1)
    model = net()
    optimizer = torch.optim.Adam(reversed(list(model.named_parameters())))
    db.load({"optimizer": optimizer, "model": model}, part=True)
    saved, names = state["optimizer"].state, dict(state["model"].named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], saved[names[name]]["exp_avg"])


def test_a_flat_state_is_loaded_in_part(db: mldb.MLDatabase) -> None:
    db.checkpoint({"a": np.arange(3), "b": np.arange(4)}, epoch=1)
    target = np.zeros(3, np.int64)
    assert list(db.load({"a": target}, part=True).state) == ["a"]
    assert target.tolist() == [0, 1, 2]


def test_tensors_of_other_parts_are_not_read(db: mldb.MLDatabase) -> None:
    """Damage to them is not met either."""
    state = run_state(net())
    assert loaded_names(state, {"model": net()}) == {
        f"model/{key}" for key in state["model"].state_dict()
    }
    assert loaded_names(state, {"ema": {"fast": net()}}) == {
        f"ema/fast/{key}" for key in state["model"].state_dict()
    }
    db.checkpoint(state, epoch=1)
    reads = db.stats()["map_border"]

    def count() -> int:
        border = db.stats()["map_border"]
        return int(border["mapped_reads"] + border["copied_reads"])

    before = reads["mapped_reads"] + reads["copied_reads"]
    db.load({"model": net()}, part=True)
    part = count() - before
    db.load(None)
    assert 0 < 3 * part < count() - before - part


def test_views_of_one_storage_that_lie_in_other_parts_are_not_read() -> None:
    flat = torch.arange(40.0)
    state = {"a": {"x": flat[:8], "y": flat[8:16]}, "b": {"z": flat[16:]}, "c": {"t": flat[:8]}}
    tensors = flatten(state).tensors
    skeleton = flatten(state).skeleton
    zeros = {key: torch.zeros(8) for key in ("x", "y")}
    assert loaded_names(state, {"a": zeros}) == {"a/x", "a/y"}
    back = unflatten(skeleton, tensors.__getitem__, part={"a": zeros})["a"]
    back["x"].untyped_storage().fill_(0)
    assert back["y"].sum() == 0  # still one storage
    assert loaded_names(state, {"c": {"t": torch.zeros(8)}}) == {"a/x"}  # an alias of another part
    assert loaded_names(state, {"a": {"y": torch.zeros(8)}}) == {"a/y"}


def test_few_views_of_a_large_storage_come_back_on_their_own() -> None:
    flat = torch.arange(2.0**20)
    state = {"a": {"x": flat[:8], "y": flat[-8:]}, "b": {"z": flat[8:-8]}}
    whole = flatten(state)
    part = {"a": {"x": torch.zeros(8), "y": torch.zeros(8)}}
    back = unflatten(whole.skeleton, whole.tensors.__getitem__, part=part)
    assert back["a"]["y"].tolist() == flat[-8:].tolist()


def test_a_part_of_a_named_tuple_and_of_a_dataclass(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.state.test_structs import Moments, Point

    monkeypatch.setattr(structs, "_known", {})
    monkeypatch.setattr(structs, "_names", {})
    mldb.register_state_type(Moments)
    mldb.register_state_type(Point)
    state = {
        "m": Moments({"a": np.ones(1), "b": np.ones(2)}, Point(np.ones(3), 1)),
        "p": Point({"a": np.ones(4), "b": np.ones(5)}, 2),
    }
    part = {"m": Moments({"a": np.zeros(1)}), "p": Point({"b": np.zeros(5)}, None)}
    assert loaded_names(state, part) == {"m/mean/a", "m/square/0", "p/0/b"}
    flat = flatten(state)
    back = unflatten(flat.skeleton, flat.tensors.__getitem__, part=part)
    assert (type(back["m"]), type(back["p"])) == (Moments, Point)
    assert list(back["m"].mean) == ["a"]
    some = unflatten(flat.skeleton, flat.tensors.__getitem__, part={"m": {"square": np.zeros(3)}})
    assert type(some["m"]) is dict  # not all of its fields are there


def test_a_part_has_to_be_named(db: mldb.MLDatabase) -> None:
    db.checkpoint({"a": np.ones(1)}, epoch=1)
    with pytest.raises(mldb.InvalidValueError, match="pass the part"):
        db.load(None, part=True)


def test_a_bare_module_is_told_under_which_key_it_was_saved(db: mldb.MLDatabase) -> None:
    """The advice was strict=False alone, which loads nothing here."""
    saved, model = net(), net()
    db.checkpoint({"model": saved, "step": 3}, epoch=1)
    with pytest.raises(
        mldb.MissingError, match=r"under 'model': .* \{'model': target\}.*part=True"
    ):
        db.load(model)
    with pytest.warns(mldb.NothingLoadedWarning, match="under 'model'"):
        db.load(model, strict=False)
    with pytest.raises(mldb.MissingError, match="under 'model'"):
        db.load(model.state_dict())
    db.load({"model": model}, part=True)
    assert same(saved, model)


def test_who_names_too_little_is_told_of_part(db: mldb.MLDatabase) -> None:
    db.checkpoint({"model": net(), "step": 3}, epoch=1)
    with pytest.raises(mldb.InvalidValueError, match=r"\('step'\).* Pass part=True"):
        db.load({"model": net()})
    with pytest.raises(mldb.MissingError) as caught:
        db.load({"model": net(), "scheduler": {}})
    assert "part=True" not in str(caught.value)  # it would not help


def test_a_part_that_was_not_saved_is_told_what_was(db: mldb.MLDatabase) -> None:
    db.checkpoint({"model": net(), "step": 3}, epoch=1)
    with pytest.raises(mldb.MissingError, match=r"'modle'.* The checkpoint has 'model', 'step'"):
        db.load({"modle": net()}, part=True)


def test_part_is_no_name(db: mldb.MLDatabase) -> None:
    """A text was taken for True, and the name in it was not looked at."""
    db.checkpoint({"model": net()}, epoch=1)
    anything: Any = "model"
    with pytest.raises(mldb.InvalidTypeError, match="part is a str"):
        db.load({"model": net()}, part=anything)
    with pytest.raises(mldb.InvalidTypeError, match="strict is a NoneType"):
        db.load({"model": net()}, strict=None)  # type: ignore[call-overload]


@pytest.mark.parametrize("named", ["best", 1])
def test_a_checkpoint_is_not_named_by_the_state(db: mldb.MLDatabase, named: Any) -> None:
    """``load("best")`` answered with the newest checkpoint, whatever its name."""
    db.checkpoint({"model": net()}, epoch=1, name="best")
    db.checkpoint({"model": net()}, epoch=2)
    with pytest.raises(mldb.InvalidTypeError, match=r"holds nothing.*as_of="):
        db.load(named)
    assert db.load(None, as_of=named)["model"].keys() == net().state_dict().keys()
    db.checkpoint(7, epoch=3)
    assert db.load(0).state == 7  # what is a number may be loaded as one


@pytest.mark.parametrize(
    "root",
    [
        [2, "a"],
        [2, ["x"], 1],
        [2, [1, "t"], 1],
        [6],
        [9, 1, 2],
        [9],
        [4],
        [4, None, "a"],
        ["a"],
        [2, "a", [9, [2, "b"]]],
        5,
    ],
)
def test_a_part_of_a_damaged_skeleton_is_corrupt_or_a_state(root: Any) -> None:
    import msgpack

    skeleton = bytes(msgpack.packb([1, root, {}, []]))
    part = {"a": {"b": np.ones(1)}, "t": [np.ones(1)]}
    if root in (5, [6]):
        assert unflatten(skeleton, dict.__getitem__, part=part) in (5, [])  # type: ignore[arg-type]
        return
    with pytest.raises(mldb.CorruptError):
        unflatten(skeleton, dict.__getitem__, part=part)  # type: ignore[arg-type]
