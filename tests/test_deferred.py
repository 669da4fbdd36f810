"""Classes whose code is generated when first used: in all else those of dataclasses and typing.

Each class is made twice of the same lines, by the standard library and by mldb.deferred, and both
are asked the same questions.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mldb import deferred

FEW = deferred._FEW

Both = tuple[types.ModuleType, types.ModuleType]

SOURCE = '''
from __future__ import annotations
import dataclasses
from typing import ClassVar
# imports

@dataclass(frozen=True, slots=True)
class Point:
    """A point."""

    x: int
    y: float = 2.5
    names: list[str] = field(default_factory=list, compare=False)
    hidden: int = field(default=7, repr=False)

    def sum(self) -> float:
        return self.x + self.y

@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    a: int
    b: int = 3

@dataclass(slots=True)
class Open:
    a: int
    made: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.made = self.a * 2

@dataclass(slots=True, eq=False, weakref_slot=True)
class Single:
    a: int = 1

@dataclass(frozen=True, slots=True, eq=False)
class Same:
    a: int = 1

@dataclass(frozen=True, slots=True)
class Checked:
    a: int

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("below zero")

@dataclass(frozen=True, slots=True)
class Own:
    a: int

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "a", int(text))

    def __repr__(self) -> str:
        return "mine"

    def __hash__(self) -> int:
        return 12

@dataclass(frozen=True, slots=True)
class Shared:
    kind: ClassVar[str] = "shared"
    a: int = field(default=0, repr=False)

class Row(NamedTuple):
    """A row."""

    a: int
    b: str = "b"

    def both(self) -> str:
        return f"{self.a}{self.b}"
'''


def _made(folder: Path, source: str) -> types.ModuleType:
    """The module of SOURCE whose decorators come from *source*."""
    imported = "from typing import NamedTuple\nfrom dataclasses import dataclass, field"
    if source == "mldb":
        imported = "from mldb.deferred import NamedTuple, dataclass, field"
    name = f"made_by_{source}"
    path = folder / f"{name}.py"
    path.write_text(SOURCE.replace("# imports", imported), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = _made(tmp_path, "mldb"), _made(tmp_path, "python")
    yield made
    for module in made:
        sys.modules.pop(module.__name__)


def _told(call: Callable[[types.ModuleType], object], module: types.ModuleType) -> object:
    """What *call* returns or raises, in words that do not name the module."""
    try:
        found = call(module)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return type(error), str(error)
    return found if isinstance(found, int | str | tuple) else repr(found)


def _pickled(value: object) -> object:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - it was pickled here


class _Sub:
    """Makes a subclass of a dataclass."""

    def __call__(self, m: types.ModuleType) -> object:
        made = dataclasses.make_dataclass("Sub", [("z", int, 1)], bases=(m.Point,), frozen=True)
        return repr(made(1)), [item.name for item in dataclasses.fields(made)]


def _write(m: types.ModuleType) -> None:
    m.Point(1).x = 2


def _write_other(m: types.ModuleType) -> str:
    with pytest.raises((AttributeError, TypeError)):  # which one differs from Python to Python
        m.Point(1).other = 2
    return "refused"


def _delete(m: types.ModuleType) -> None:
    del m.Point(1).x


def _set_open(m: types.ModuleType) -> object:
    found = m.Open(2)
    found.a = 5
    return found, found.made


def _match(m: types.ModuleType) -> object:
    match m.Point(4, 5.0):
        case m.Point(x, y):
            return x, y
    return None


# The first question that a class is asked is each of these: nothing may depend on the order.
QUESTIONS: dict[str, Callable[[types.ModuleType], object]] = {
    "repr": lambda m: m.Point(1, names=["n"]),
    "attributes": lambda m: (m.Point(3).x, m.Point(3).y, m.Point(3).hidden, m.Point(3).sum()),
    "equal": lambda m: (m.Point(1) == m.Point(1), m.Point(1) == m.Point(2), m.Point(1) == 1),
    "hash": lambda m: (hash(m.Point(1)) == hash(m.Point(1)), hash(m.Point(1)) == hash((1, 2.5, 7))),
    "as a dict": lambda m: dataclasses.asdict(m.Point(1)).items(),
    "as a tuple": lambda m: dataclasses.astuple(m.Point(1)),
    "replace": lambda m: dataclasses.replace(m.Point(1), y=9.0),
    "replace an unknown": lambda m: dataclasses.replace(m.Point(1), z=9.0),
    "fields": lambda m: [(f.name, f.type, f.default, f.repr) for f in dataclasses.fields(m.Point)],
    "is one": lambda m: dataclasses.is_dataclass(m.Point),
    "parameters": lambda m: m.Point.__dataclass_params__,
    "signature": lambda m: str(inspect.signature(m.Point)),
    "match": _match,
    "match arguments": lambda m: (m.Point.__match_args__, m.Named.__match_args__),
    "doc": lambda m: (m.Point.__doc__, m.Point.__name__, m.Point.__qualname__),
    "slots": lambda m: (m.Point.__slots__, hasattr(m.Point(1), "__dict__")),
    "missing": lambda m: m.Point(),
    "too many": lambda m: m.Point(1, 2.0, [], 3, 4),
    "unknown": lambda m: m.Point(1, z=4),
    "twice": lambda m: m.Point(1, x=4),
    "write": _write,
    "write another": _write_other,
    "delete": _delete,
    "pickle": lambda m: _pickled(m.Point(1, names=["q"])),
    "deep copy": lambda m: copy.deepcopy(m.Point(1, names=["q"])),
    "made without init": lambda m: m.Point.__setstate__(object.__new__(m.Point), [1, 2.0, [], 3]),
    "own list": lambda m: m.Point(1).names is m.Point(1).names,
    "by name": lambda m: (m.Named(a=1), m.Named(a=1, b=2) == m.Named(a=1, b=2)),
    "by place": lambda m: m.Named(1),
    "by another name": lambda m: m.Named(a=1, b=2, c=3),
    "without a name": lambda m: m.Named(b=2),
    "open": _set_open,
    "open hash": lambda m: hash(m.Open(1)),
    "not of init": lambda m: m.Open(1, made=2),
    "by identity": lambda m: (m.Single() == m.Single(), hash(m.Single()) != 0),
    "weak slot": lambda m: m.Single.__slots__,
    "same": lambda m: (m.Same() == m.Same(), len({m.Same(), m.Same()})),
    "checked": lambda m: m.Checked(1),
    "refused": lambda m: m.Checked(-1),
    "own methods": lambda m: (repr(m.Own("5")), hash(m.Own("5")), m.Own("5") == m.Own("5")),
    "class variable": lambda m: (m.Shared.kind, [f.name for f in dataclasses.fields(m.Shared)]),
    "subclass": _Sub(),
    "row": lambda m: (m.Row(1), m.Row(1, b="c").both(), m.Row._fields, m.Row._field_defaults),
    "row is a tuple": lambda m: (m.Row(1) == (1, "b"), tuple.__new__(m.Row, (1, 2)) == (1, 2)),
    "row replace": lambda m: (m.Row(1)._replace(a=2), m.Row(1)._asdict(), m.Row._make((1, 2))),
    "row missing": lambda m: m.Row(),
    "replace fields": lambda m: deferred.replace(m.Point(1, names=[2]), y=3.0, hidden=1),
    "replace by name": lambda m: deferred.replace(m.Named(a=1), b=2),
    "replace none": lambda m: deferred.replace(m.Checked(1)),
    "replace checks": lambda m: deferred.replace(m.Checked(1), a=-1),
    "replace what is made": lambda m: deferred.replace(m.Open(2), a=5),
    "replace an own init": lambda m: deferred.replace(m.Shared(), a=2).a,
    "names": lambda m: deferred.field_names(m.Point) + deferred.field_names(m.Shared),
    "row pickle": lambda m: _pickled(m.Row(1, "x")),
    "row words": lambda m: (
        m.Row.__doc__,
        m.Row.__qualname__,
        m.Row.__match_args__,
        m.Row.both.__name__,
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("before", [0, 100])
def test_a_class_answers_as_that_of_python_does(both: Both, question: str, before: int) -> None:
    """Asked first, and after many objects were made, when all is generated."""
    answers = []
    for module in both:
        for number in range(before):
            module.Point(number), module.Named(a=number), module.Open(number), module.Checked(1)
        answers.append(_told(QUESTIONS[question], module))
    assert repr(answers[0]) == repr(answers[1])


def test_nothing_is_generated_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = dataclasses.dataclass

    def counted(**options: bool) -> Any:
        made.append("init" if options.get("init", True) else "fields")
        return real(**options)

    monkeypatch.setattr(dataclasses, "dataclass", counted)
    module = _made(tmp_path, "mldb")
    assert made == ["init"]  # the class with a class variable is none of the plain ones
    for number in range(FEW):
        point = module.Point(number)
        assert point.x == number
    assert copy.copy(point).x == _pickled(point).x == FEW - 1  # type: ignore[attr-defined]
    assert made == ["init"]
    for number in range(FEW + 5):
        assert module.Point(number).x == number
    assert made == ["init", "init"]
    assert module.Point.__init__.__code__.co_varnames[:3] == ("self", "x", "y")


def test_threads_that_use_a_class_first_at_once_get_the_same_methods(tmp_path: Path) -> None:
    for _ in range(20):
        module = _made(tmp_path, "mldb")
        start = threading.Barrier(4)
        found: list[object] = []

        def use(start: threading.Barrier, found: list[object], point: Any) -> None:
            start.wait()
            found.append([point(number, names=[]) for number in range(8)])
            found.append([item.name for item in dataclasses.fields(point)])

        threads = [
            threading.Thread(target=use, args=(start, found, module.Point)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        fields = ["x", "y", "names", "hidden"]
        points = [module.Point(number) for number in range(8)]
        assert found.count(fields) == 4
        assert found.count(points) == 4
    del sys.modules["made_by_mldb"]


def test_what_is_no_named_tuple_is_refused() -> None:
    space = {"__annotations__": {"a": "int", "b": "int"}, "a": 1, "__module__": __name__}
    maker: Any = type(deferred.NamedTuple)
    with pytest.raises(TypeError, match="Late is no plain named tuple"):
        maker("Late", (deferred.NamedTuple,), dict(space))
    with pytest.raises(TypeError, match="Two is no plain named tuple"):
        maker("Two", (deferred.NamedTuple, int), {**space, "b": 2})


def test_a_pattern_is_compiled_once() -> None:
    assert deferred.compiled(r"(?a)\w+\Z") is deferred.compiled(r"(?a)\w+\Z")
    assert deferred.compiled(r"(?a)\w+\Z").match("ä") is None


def test_what_has_no_such_field_is_not_replaced(both: Both) -> None:
    for module in both:
        with pytest.raises(TypeError):
            deferred.replace(module.Point(1), other=2)
        with pytest.raises((TypeError, ValueError), match="made"):
            deferred.replace(module.Open(1), made=2)
    with pytest.raises(TypeError):
        deferred.field_names(int)
