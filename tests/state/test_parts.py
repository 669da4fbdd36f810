"""``state_dict(prefix=...)`` is what the object stored there gave, in order, types and keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mldb
from mldb.errors import CorruptError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state.parts import state_at, tensor_names
from mldb.state.skeleton import parse_skeleton
from tests.state.test_modules import Vocabulary, same
from tests.state.test_tree import sample_skeleton

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def db() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


def towers() -> nn.Module:
    """Keys that names must escape, extra state, tied weights, children to pick."""
    model = nn.ModuleDict(
        {
            "user/item": nn.Linear(2, 3),
            "ü%": Vocabulary(),
            "encoder": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Vocabulary()),
            "last": nn.Linear(2, 3),
        }
    )
    model["last"].weight = model["user/item"].weight
    return model


def test_a_module_anywhere_in_the_state_gives_what_it_gave(db: mldb.MLDatabase) -> None:
    model = towers()
    state = model.state_dict()
    assert next(iter(state)) == "user/item.weight"
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    db.checkpoint({"m": model, "list": [1, {"x/y": model}], "o": optimizer}, epoch=1)
    for prefix in ("m/", "list/1/x%2Fy/"):
        found = db.state_dict(prefix=prefix)
        assert type(found) is OrderedDict
        assert same(found, state)
        # Tied weights are one tensor, and come back as one.
        assert found["last.weight"].data_ptr() == found["user/item.weight"].data_ptr()
        towers().load_state_dict(found)
    found = db.state_dict(prefix="o/")
    assert same(found, optimizer.state_dict())
    torch.optim.Adam(towers().parameters()).load_state_dict(found)


def test_a_child_is_picked_by_the_beginning_of_its_keys(db: mldb.MLDatabase) -> None:
    model = towers()
    db.checkpoint({"m": model}, epoch=1)
    encoder = model["encoder"]  # type: ignore[index]
    assert same(db.state_dict(prefix="m/encoder."), encoder.state_dict())
    assert same(db.state_dict(prefix="m/encoder.1."), encoder[1].state_dict())
    assert same(db.state_dict(prefix="m/user/item."), model["user/item"].state_dict())  # type: ignore[index]
    db.checkpoint(model, epoch=2)
    assert same(db.state_dict(), model.state_dict())
    assert same(db.state_dict(prefix="encoder."), encoder.state_dict())
    assert same(db.state_dict(prefix="ü%."), model["ü%"].state_dict())  # type: ignore[index]
    found = db.state_dict(prefix="enc")
    assert list(found) == [f"oder.{key}" for key in encoder.state_dict()]
    assert db.state_dict(prefix="none.") == {}


def test_state_dicts_are_as_good_as_modules(db: mldb.MLDatabase) -> None:
    state = towers().state_dict()
    db.checkpoint({"typed": state, "plain": dict(state)}, epoch=1)
    assert same(db.state_dict(prefix="typed/"), state)
    found = db.state_dict(prefix="plain/")
    assert type(found) is dict
    assert same(found, dict(state))
    db.checkpoint(state, epoch=2)
    assert same(db.state_dict(), state)


def test_a_plain_dict_gives_its_tensors_as_torch_tensors(db: mldb.MLDatabase) -> None:
    table = np.arange(3)
    tree: dict[str, Any] = {"a/b": table, "w": torch.ones(2), "step": 3, "none": None}
    db.checkpoint({"m": {**tree, "_extra_state": {"table": table.copy()}}}, epoch=1)
    found = db.state_dict(prefix="m/")
    assert list(found) == ["a/b", "w", "_extra_state"]
    assert isinstance(found["a/b"], torch.Tensor)
    assert found["a/b"].tolist() == [0, 1, 2]
    assert isinstance(found["_extra_state"]["table"], np.ndarray)
    db.checkpoint(tree, epoch=2)
    assert list(db.state_dict()) == ["a/b", "w"]


def test_elsewhere_it_is_tensors_by_name_in_order(db: mldb.MLDatabase) -> None:
    shared = torch.ones(2)
    tree = {"b": {"x": shared, "list": [torch.zeros(1)]}, "a": shared, "c": {"x/y": shared}}
    db.checkpoint(tree, epoch=1)
    assert list(db.state_dict()) == ["b/x", "b/list/0", "a", "c/x%2Fy"]
    assert list(db.state_dict(prefix="b/")) == ["x", "list/0"]
    assert list(db.state_dict(prefix="b/li")) == ["st/0"]
    assert db.state_dict(prefix="a")[""].tolist() == [1, 1]
    assert db.state_dict(prefix="z/") == {}


def test_extra_state_moves_with_the_rest(db: mldb.MLDatabase) -> None:
    class Scaled(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": torch.ones(2), "names": ["x"], "kind": torch.Size([2])}

        def set_extra_state(self, state: Any) -> None: ...

    db.checkpoint({"m": Scaled(2, 2)}, epoch=1)
    found = db.state_dict(prefix="m/", device="meta")
    assert found["_extra_state"]["scale"].is_meta
    assert found["weight"].is_meta
    assert found["_extra_state"]["names"] == ["x"]
    assert type(found["_extra_state"]["kind"]) is torch.Size


@given(st.data())
@settings(max_examples=300)
def test_damaged_skeletons_give_only_corrupt(data: st.DataObject) -> None:
    fields = msgpack.unpackb(sample_skeleton())
    places = list(_places(fields[1]))
    holder, index = data.draw(st.sampled_from(places))
    tag = st.integers(0, 16)
    junk = st.one_of(tag, st.text(max_size=2), st.lists(tag, max_size=3), st.none())
    holder[index] = data.draw(junk)
    prefix = data.draw(st.sampled_from(["", "a", "m/", "m/inner.", "c/2/", "s", "1%2Ck/", "none/"]))
    try:
        skeleton = parse_skeleton(msgpack.packb(fields))
        found = state_at(skeleton, prefix, lambda name: name, lambda name: name)
        names = tensor_names(skeleton.root)
    except CorruptError:
        return
    assert found is None or isinstance(found, dict)
    assert all(isinstance(name, str) for name in names)


def _places(node: Any) -> Iterator[tuple[list[Any], int]]:
    for index, item in enumerate(node):
        yield node, index
        if isinstance(item, list):
            yield from _places(item)
