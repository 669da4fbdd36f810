"""Named tuples and dataclasses in states: kept by name, never by code, whatever a store says."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.errors import CorruptError, InvalidTypeError, InvalidValueError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.state import structs
from mldb.state.tree import flatten, restore_into, unflatten


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has classes of its own registered, none at first."""
    monkeypatch.setattr(structs, "_known", {})
    monkeypatch.setattr(structs, "_names", {})


@pytest.fixture
def db() -> Iterator[mldb.MLDatabase]:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as database:
        yield database


class Point(NamedTuple):
    """Two values, one with a default."""

    x: Any
    y: Any = 5


@dataclass
class Config:
    """Plain fields, and one that the constructor computes."""

    rate: float
    layers: list[int] = field(default_factory=list)
    kind: ClassVar[str] = "mlp"
    seed: InitVar[int] = 0
    total: int = field(init=False, default=0)

    def __post_init__(self, seed: int) -> None:
        self.total = sum(self.layers) + seed

    @cached_property
    def slow(self) -> int:
        """Derived from the fields, so none of the state."""
        return self.total * 2


@dataclass(frozen=True, slots=True)
class Moments:
    """Tensors in a frozen class with slots."""

    mean: Any
    square: Any = None


class Holder:
    """Gives a state, as an optimizer does."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        """The state itself."""
        return self.state


def round_trip(state: Any) -> Any:
    flat = flatten(state)
    return unflatten(flat.skeleton, flat.tensors.__getitem__)


# --- stored and read ------------------------------------------------------------------------------


def test_registered_types_come_back_as_what_they_are(db: mldb.MLDatabase) -> None:
    for cls in (Point, Config, Moments):
        assert mldb.register_state_type(cls) is cls
    config = Config(0.1, [3, 4], seed=2)
    assert config.slow == 18
    state = {
        "config": config,
        "points": [Point(1, Point(2, None)), (3, 4)],
        "moments": OrderedDict(a=Moments(torch.ones(2), Point(torch.zeros(1), 2**70))),
    }
    db.checkpoint(state, epoch=1)
    assert "moments/a/square/0" in db
    back = db.load(None)
    assert back["config"] == config
    assert (type(back["config"]), back["config"].total, back["config"].slow) == (Config, 9, 18)
    assert back["points"] == state["points"]
    assert [type(item) for item in back["points"]] == [Point, tuple]
    assert type(back["points"][0].y) is Point
    moments = back["moments"]["a"]
    assert type(moments) is Moments
    assert torch.equal(moments.mean, torch.ones(2))
    assert moments.square.y == 2**70


def test_what_is_not_registered_comes_back_as_a_tuple_or_dict(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    mldb.register_state_type(Config)
    db.checkpoint({"config": Config(0.1, [3]), "point": Point(1, [2])}, epoch=1)
    monkeypatch.setattr(structs, "_known", {})
    back = db.load(None)
    assert back == {"config": {"rate": 0.1, "layers": [3], "total": 3}, "point": (1, [2])}
    assert [type(value) for value in back.values()] == [dict, tuple]
    mldb.register_state_type(Point)  # the store has the name of every named tuple
    assert type(db.load(None)["point"]) is Point


def test_a_dataclass_that_is_not_registered_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidTypeError, match=r"'a/0'.*mldb\.register_state_type\(Config\)"):
        flatten({"a": [Config(0.1)]})


def test_fields_that_are_not_the_whole_value_are_refused() -> None:
    mldb.register_state_type(Config)
    config = Config(0.1)
    config.extra = 3  # type: ignore[attr-defined]
    with pytest.raises(InvalidTypeError, match=r"Config.*'c' has 'extra', no field"):
        flatten({"c": config})
    del config.extra, config.rate  # type: ignore[attr-defined]
    with pytest.raises(InvalidTypeError, match="lacks its field 'rate'"):
        flatten({"c": config})


def test_a_class_that_grew_takes_defaults_and_one_that_shrank_is_named() -> None:
    Old: Any = namedtuple("Old", "x")
    Wide: Any = namedtuple("Wide", "x y z")
    old = flatten([Old(7), Wide(1, 2, 3)])
    base = f"{__name__}."
    mldb.register_state_type(Point, name=f"{base}Old")
    back = unflatten(old.skeleton, dict.__getitem__)  # type: ignore[arg-type]
    assert back == [Point(7, 5), (1, 2, 3)]
    assert type(back[0]) is Point
    mldb.register_state_type(Point, name=f"{base}Wide")
    with pytest.raises(InvalidValueError, match=r"Wide' with the fields x, y, z.*no field 'z'"):
        unflatten(old.skeleton, dict.__getitem__)  # type: ignore[arg-type]

    @dataclass
    class Grown:
        x: int
        more: list[int] = field(default_factory=lambda: [1])

    @dataclass
    class Needing(Grown):
        needed: int = field(kw_only=True)

    grown = bytes(msgpack.packb([1, [2, "x", 3], {}, [], [["grown", ["x"], [[]]]]]))
    mldb.register_state_type(Grown, name="grown")
    assert unflatten(grown, dict.__getitem__) == Grown(3, [1])  # type: ignore[arg-type]
    needing = grown.replace(b"grown", b"needs")
    mldb.register_state_type(Needing, name="needs")
    with pytest.raises(InvalidValueError, match="a field 'needed' without default"):
        unflatten(needing, dict.__getitem__)  # type: ignore[arg-type]


def test_a_class_that_lost_a_field_stands_in_the_way_of_its_own_part_alone(
    db: mldb.MLDatabase,
) -> None:
    """state_dict("m/") was refused for a class beside the module, of which it asked nothing."""
    model = torch.nn.Linear(2, 2)
    Wide: Any = namedtuple("Wide", "x y z")
    db.checkpoint({"m": model, "w": {"d": {"t": torch.ones(1), "p": Wide(1, 2, 3)}}}, epoch=1)
    mldb.register_state_type(Point, name=f"{__name__}.Wide")
    assert list(db.state_dict(prefix="m/")) == ["weight", "bias"]
    assert list(db.state_dict(prefix="w/")) == ["d/t"]
    db.load({"m": torch.nn.Linear(2, 2)}, part=True)
    stateful = Holder({"part": Wide(1, 2, 3), "t": torch.ones(1)})
    db.checkpoint({"m": model, "held": stateful}, epoch=2)
    assert list(db.state_dict(prefix="m/")) == ["weight", "bias"]
    assert list(db.state_dict(prefix="held/t")) == [""]
    with pytest.raises(InvalidValueError, match="no field 'z'"):
        db.state_dict(prefix="held/")
    with pytest.raises(InvalidValueError, match="no field 'z'"):
        db.load(None)


def test_a_name_belongs_to_one_class() -> None:
    def define() -> type:
        @dataclass
        class Again:
            x: int

        return Again

    first, second = define(), define()
    mldb.register_state_type(first)
    mldb.register_state_type(second)  # the same cell of a notebook, run once more
    assert type(round_trip([second(1)])[0]) is second
    mldb.register_state_type(Point, name="point")
    with pytest.raises(InvalidValueError, match=r"'point' is registered for .*Point"):
        mldb.register_state_type(Config, name="point")


@pytest.mark.parametrize(
    ("cls", "name", "error", "words"),
    [
        (int, None, InvalidTypeError, "int is no named tuple or dataclass"),
        (Point(1), None, InvalidTypeError, "Point is no named tuple"),
        (torch.Size, None, InvalidTypeError, "Size"),
        (dataclass(type("Net", (torch.nn.Linear,), {})), None, InvalidTypeError, "state_dict"),
        (dataclass(type("Mine", (dict,), {})), None, InvalidTypeError, "from its fields alone"),
        (Point, 5, InvalidTypeError, "name is a int"),
        (Point, "", InvalidValueError, "1 to 1000"),
        (Point, "x" * 1001, InvalidValueError, "1 to 1000"),
    ],
)
def test_what_cannot_be_registered(cls: Any, name: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        mldb.register_state_type(cls, name=name)
    assert structs._known == {}


def test_nothing_runs_and_nothing_is_imported_because_of_a_name(tmp_path: Path) -> None:
    """A store that names a class of a module that would do harm is only read."""
    (tmp_path / "harm.py").write_text("raise SystemExit(3)")
    script = (
        "import sys, msgpack\n"
        "from mldb.state.tree import unflatten\n"
        "for name in ('harm.Harm', 'os.system', 'builtins.eval', 'collections.Counter'):\n"
        "    types = [[name, ['x'], [[1]]]]\n"
        "    root = [6, [7, 'echo']]\n"
        "    back = unflatten(msgpack.packb([1, root, {}, [], types]), None)\n"
        "    assert back == [('echo',)] and type(back[0]) is tuple\n"
        "sys.exit('harm' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=tmp_path)
    assert done.returncode == 0

    @dataclass
    class Loud:
        x: int

        def __new__(cls, *args: Any) -> Any:
            raise AssertionError

        def __init__(self, x: int) -> None:
            raise AssertionError

        def __setattr__(self, name: str, value: object) -> None:
            raise AssertionError

    mldb.register_state_type(Loud, name="loud")
    skeleton = msgpack.packb([1, [2, "x", 3], {}, [], [["loud", ["x"], [[]]]]])
    assert unflatten(skeleton, dict.__getitem__).x == 3  # type: ignore[arg-type]


# --- targets --------------------------------------------------------------------------------------


def test_a_named_tuple_of_the_target_stays_one(db: mldb.MLDatabase) -> None:
    """It came back as a plain tuple, and the next .x of the training loop died."""
    model, weight = torch.nn.Linear(2, 2), torch.ones(2)
    db.checkpoint({"run": Point(model, 3), "pair": [Point(weight, 4)], "plain": (1, 2)}, epoch=1)
    target = {
        "run": Point(torch.nn.Linear(2, 2), 0),
        "pair": [Point(torch.zeros(2), 0)],
        "plain": Point(0, 0),
    }
    back = db.load(target)
    assert [type(item) for item in (back["run"], back["pair"][0], back["plain"])] == [Point] * 3
    assert back["run"].x is target["run"].x  # type: ignore[attr-defined]
    assert torch.equal(back["run"].x.weight, model.weight)
    assert (back["run"].y, back["pair"][0].y, back["plain"]) == (3, 4, (1, 2))


def test_a_dataclass_of_the_target_is_loaded_into_by_its_fields(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    mldb.register_state_type(Moments)
    source = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(source.named_parameters(), momentum=0.9)
    source(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    db.checkpoint(Moments(source, [optimizer, 7]), epoch=1)
    for known in (structs._known, {}):
        monkeypatch.setattr(structs, "_known", known)
        module = torch.nn.Linear(2, 2)
        target = Moments(module, [torch.optim.SGD(module.named_parameters(), momentum=0.9), 0])
        back = db.load(target).state
        assert type(back) is Moments
        assert back is not target
        assert back.mean is module
        assert torch.equal(module.weight, source.weight)
        assert back.square == [target.square[0], 7]
        assert target.square[1] == 0
        assert "momentum_buffer" in target.square[0].state[module.weight]
    with pytest.raises(InvalidValueError, match=r"'mean'.*shape"):
        db.load(Moments(torch.nn.Linear(3, 2), target.square))
    with pytest.raises(mldb.MissingError, match="'x'"):
        db.load(Point(torch.nn.Linear(2, 2), 1)._asdict())


def test_plain_values_take_the_types_of_the_target_where_they_fit() -> None:
    target = {"c": Config(0.5, [1]), "p": [Point(0, Point(0, 0))], "other": Point(1, 2)}
    assert target["c"].slow == 2  # type: ignore[attr-defined]
    tree = {
        "c": {"rate": 0.1, "layers": [2], "total": 9},
        "p": [(1, (2, 3))],
        "other": (1, 2, 3),
        "further": (4,),
    }
    before = repr(tree)
    back = structs.retyped(target, tree)
    assert (type(back["c"]), back["c"].total, back["c"].layers) == (Config, 9, [2])
    assert (back["c"].slow, target["c"].rate) == (18, 0.5)  # type: ignore[attr-defined]
    assert back["p"] == [Point(1, Point(2, 3))]
    assert type(back["p"][0].y) is Point
    assert (back["other"], back["further"]) == ((1, 2, 3), (4,))
    assert repr(tree) == before
    same = {"a": [1, {"b": (2,)}]}
    assert structs.retyped({"a": [0, {"b": (0,)}]}, same) is same
    assert restore_into(target, tree, strict=False)["p"] == back["p"]


def test_a_dict_that_calls_itself_a_dataclass_is_a_dict() -> None:
    """As the outputs of transformers are."""
    kind: Any = dataclass(type("Output", (OrderedDict,), {"__annotations__": {"loss": float}}))
    target = {"out": kind(loss=1.0), "w": torch.zeros(1)}
    back = restore_into(target, {"out": {"loss": 2.0}, "w": torch.ones(1)})
    assert back["out"] == {"loss": 2.0}


def test_plain_containers_are_handed_over_without_a_copy() -> None:
    """A cursor may hold the order of an epoch, millions of numbers."""
    order = list(range(1000))
    target = {"w": torch.zeros(1), "order": order, "list": [(order,)]}
    tree = {"w": torch.ones(1), "order": list(order), "list": [(list(order),)]}
    back = restore_into(target, tree)
    assert back["order"] is tree["order"]
    assert back["list"] is tree["list"]


# --- hostile --------------------------------------------------------------------------------------


def packed(root: Any, types: Any) -> bytes:
    return bytes(msgpack.packb([1, root, {}, [], types]))


PLACED = [6, [7, 1, 2], [2, "x", 1, "y", 2]]


@pytest.mark.parametrize(
    "types",
    [
        [1],
        [["p", ["x", "y"]]],
        [["p", ["x", "y"], 1]],
        [[1, ["x", "y"], [[1]]]],
        [["p", "xy", [[1]]]],
        [["p", ["x", 1], [[1]]]],
        [["p", ["x", "x"], [[1]]]],
        [["p", ["x", "y"], [1]]],
        [["p", ["x", "y"], [[3]]]],
        [["p", ["x", "y"], [[-1]]]],
        [["p", ["x", "y"], [[True]]]],
        [["p", ["x", "y"], [["1"]]]],
        [["p", ["x", "y"], [[1, 1]]]],
        [["p", ["x", "y"], [[]]]],
        [["p", ["x", "y"], [[1], [1]]]],
        [["p", ["x", "y"], [[1]]], ["q", ["x", "y"], [[1]]]],
        [["p", ["x"], [[1]]]],
        [["p", ["x", "y", "z"], [[1]]]],
        [["p", ["y", "x"], [[2]]]],
        [["p", ["x"], [[2]]]],
    ],
)
def test_impossible_types_are_corrupt(types: Any) -> None:
    with pytest.raises(CorruptError, match=r"type|fields"):
        unflatten(packed(PLACED, types), dict.__getitem__)  # type: ignore[arg-type]


def test_what_a_newer_version_adds_to_types_is_read_over() -> None:
    mldb.register_state_type(Point, name="p")
    for types, expected in (
        ("more", tuple),
        ({"p": 1}, tuple),
        ([], tuple),
        ([["p", ["x", "y"], [[1]], "more"]], Point),
    ):
        back = unflatten(packed(PLACED, types), dict.__getitem__)  # type: ignore[arg-type]
        assert type(back[0]) is expected
        assert back == [(1, 2), {"x": 1, "y": 2}]


def test_a_state_without_types_has_the_bytes_it_always_had() -> None:
    assert len(msgpack.unpackb(flatten({"a": (1, [2])}).skeleton)) == 4
    root = msgpack.unpackb(flatten({"a": Point(1, [2])}).skeleton)[1]
    assert root == [2, "a", [7, 1, [6, 2]]]  # what an older mldb reads


@given(st.data())
def test_damaged_types_give_a_state_or_corrupt(data: st.DataObject) -> None:
    known, structs._known["p"] = dict(structs._known), Point
    try:
        fields: Any = msgpack.unpackb(flatten([Point(1, Point(2, 3)), {"a": Point(4)}]).skeleton)
        fields[4][0][0] = "p"
        target = fields[4]
        while True:
            place = data.draw(st.integers(0, len(target) - 1))
            inner = target[place]
            if not isinstance(inner, list) or not inner or data.draw(st.integers(0, 3)) == 0:
                break
            target = inner
        odd = st.none() | st.integers(-2, 5) | st.text(max_size=1) | st.binary(max_size=1)
        target[place] = data.draw(odd | st.lists(odd, max_size=3))
        unflatten(msgpack.packb(fields), dict.__getitem__)  # type: ignore[arg-type]
    except (CorruptError, InvalidValueError):
        pass
    finally:
        structs._known.clear()
        structs._known.update(known)


def test_deep_and_many_are_bounded_by_the_skeleton() -> None:
    state: Any = 1
    for _ in range(60):
        state = Point(state, np.int8(1))
    mldb.register_state_type(Point)
    back = round_trip(state)
    for _ in range(60):
        assert type(back) is Point
        back = back.x
    many = [Point(number) for number in range(5000)]
    assert round_trip(many) == many
