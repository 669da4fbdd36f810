"""What a module defines and generates code for, generated when it is first used.

Opening a store imports dozens of dataclasses, named tuples and patterns and uses a few of them; to
generate the code of all took half of the import. The classes are those of :mod:`dataclasses` and
:mod:`typing` in every other respect.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

__all__ = ["NamedTuple", "compiled", "dataclass", "field", "field_names", "replace"]

_FIELDS: Final = "__dataclass_fields__"
_ATTRIBUTES: Final = (_FIELDS, "__dataclass_params__", "__match_args__", "__signature__")
_METHODS: Final = ("__init__", "__repr__", "__eq__", "__hash__")
_WRITES: Final = ("__setattr__", "__delattr__")
# What dataclasses does not take for a field, or not for one like the others.
_SPECIAL: Final = ("ClassVar", "InitVar", "KW_ONLY")
_OPTIONS: Final = frozenset({"frozen", "slots", "eq", "kw_only", "weakref_slot"})
_make_tuple: Callable[..., Any] = namedtuple
_NOTHING: Final = object()
_T = TypeVar("_T")
_Rule: TypeAlias = tuple[str, bool, bool, Any, Callable[[], Any] | None]
"""A field: its name, whether ``__init__`` takes it, only by name; its default and what makes it."""
_FEW: Final = 64
"""So many objects of a class are made field by field; from then on to generate costs less."""


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Return the compiled pattern; flags stand in it, as in ``(?a)``. Any thread."""
    return re.compile(pattern)


class _Field:
    """What :func:`field` was told of a field."""

    __slots__ = ("said",)

    def __init__(self, **said: Any) -> None:
        self.said = said


def _said_of(value: object) -> dict[str, Any] | None:
    """What was told of a field in place of its default; None where *value* is a default."""
    if type(value) is _Field:
        return value.said
    if type(value).__name__ != "Field":
        return None
    from dataclasses import MISSING, Field

    names = ("default", "default_factory", "init", "kw_only") if isinstance(value, Field) else ()
    said = {name: getattr(value, name) for name in names}
    return {name: told for name, told in said.items() if told is not MISSING} if names else None


def _describe(written: type) -> None:
    """Put what dataclasses reads into the places of :func:`field`."""
    import dataclasses

    for name, value in list(vars(written).items()):
        if type(value) is _Field:
            setattr(written, name, dataclasses.field(**value.said))


class _Declared:
    """A dataclass as it was written, and what becomes of it. Any thread.

    Two threads that use a class first at the same moment both generate its methods: either's are
    right. So after an interrupt it is only done again.
    """

    def __init__(self, written: type, options: dict[str, bool]) -> None:
        self.options = options
        self.space = {
            name: value
            for name, value in vars(written).items()
            if name not in ("__dict__", "__weakref__")
        }
        self.fields = tuple(self.space.get("__annotations__", ()))
        self.own = {name: value for name, value in self.space.items() if name not in self.fields}
        slots = (*self.fields, "__weakref__") if options.get("weakref_slot") else self.fields
        self.kept = type(written.__name__, (object,), {**self.own, "__slots__": slots})
        self.kept.__qualname__ = written.__qualname__
        self.made = 0  # so many objects, about, without a generated ``__init__``
        self.listed: dict[str, Any] = {}
        self.rules: list[_Rule] = []
        self.ordered: list[str] = []
        self.stubs: dict[str, Any] = {}

    def generated(self, **options: bool) -> dict[str, Any]:
        """What dataclasses makes of the class as it was written."""
        import dataclasses

        copy = type(self.kept.__name__, (object,), dict(self.space))
        _describe(copy)
        copy.__qualname__ = self.kept.__qualname__
        return dict(vars(dataclasses.dataclass(**options)(copy)))

    def generate(self) -> None:
        """Put what dataclasses generates into the places of the stubs; harmless twice."""
        made, kept = self.generated(**self.options), self.kept
        self.listed = made[_FIELDS] = self.listed or made[_FIELDS]
        stays = {*self.own, *self.fields, *_WRITES, "__slots__", "__weakref__"}
        for name in made.keys() - stays:
            setattr(kept, name, made[name])
        for name in self.stubs.keys() - made.keys():
            if vars(kept).get(name) is self.stubs[name]:  # nothing comes in its place
                delattr(kept, name)

    def described(self) -> dict[str, Any]:
        """The fields as dataclasses describes them, for which it generates no code."""
        if not self.listed:
            plain = dict.fromkeys(("init", "repr", "eq", "match_args"), False)
            made = self.generated(**plain, kw_only=self.options.get("kw_only", False))
            self.listed = self.listed or made[_FIELDS]
            setattr(self.kept, _FIELDS, self.listed)
        return self.listed

    def ruled(self) -> list[_Rule]:
        """How each field gets its value: read from the class as it was written."""
        if not self.rules:
            keyword, rules = self.options.get("kw_only", False), list[_Rule]()
            for name in self.fields:
                value = self.space.get(name, _NOTHING)
                said = _said_of(value)
                if said is None:
                    rules.append((name, True, keyword, value, None))
                    continue
                default, factory = said.get("default", _NOTHING), said.get("default_factory")
                named = said.get("kw_only", keyword)
                rules.append((name, said.get("init", True), named, default, factory))
            self.ordered = [name for name, init, keyword, _, _ in rules if init and not keyword]
            self.rules = rules
        return self.rules

    def assign(self, target: object, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Do once what ``__init__`` would; False where that would raise TypeError."""
        rules, assign, values = self.rules or self.ruled(), object.__setattr__, named
        if args:
            ordered = self.ordered
            if len(args) == len(ordered) == len(rules) and not named:
                for name, value in zip(ordered, args, strict=True):
                    assign(target, name, value)
                if "__post_init__" in self.own:
                    target.__post_init__()  # type: ignore[attr-defined]
                return True
            values = dict(zip(ordered, args, strict=False)) | named
            if len(args) > len(ordered) or len(values) < len(args) + len(named):
                return False
        for name, init, _, default, factory in rules:
            if init and name in values:
                value = values.pop(name)
            elif (value := default) is _NOTHING:
                if factory is None:
                    if init:
                        return False
                    continue
                value = factory()
            assign(target, name, value)
        if values:
            return False
        if "__post_init__" in self.own:
            target.__post_init__()  # type: ignore[attr-defined]
        return True


class _Attribute:
    """An attribute of a class that is not there yet. Any thread; replaced when first read."""

    __slots__ = ("_name", "declared")

    def __init__(self, name: str, declared: _Declared) -> None:
        self._name = name
        self.declared = declared

    def __get__(self, instance: object, owner: type) -> Any:
        if self._name == _FIELDS:
            return self.declared.described()
        self.declared.generate()
        return getattr(owner, self._name)


def _is_plain(written: type, options: dict[str, bool]) -> bool:
    own = vars(written)
    if written.__bases__ != (object,) or not options.get("slots") or options.keys() - _OPTIONS:
        return False
    if not own.keys().isdisjoint((*_WRITES, "__new__")):
        return False
    types = own.get("__annotations__", {}).values()
    return all(
        isinstance(kind, str) and not any(map(kind.__contains__, _SPECIAL)) for kind in types
    )


def _declared(written: type, options: dict[str, bool]) -> type:
    """The class as it stays: with slots, and stubs in the places of what will be generated."""
    found = _Declared(written, options)
    kept, own = found.kept, found.own
    frozen, eq = options.get("frozen", False), options.get("eq", True)
    names: tuple[str, ...] = _METHODS if eq else _METHODS[:2]
    if eq and not frozen and own.get("__hash__") is None:
        kept.__hash__ = None  # type: ignore[assignment]
        names = names[:3]
    stubs = found.stubs
    for name in names:
        if name not in own:
            stubs[name] = _first_init(found) if name == "__init__" else _first(found, name)
    stubs.update((name, _Attribute(name, found)) for name in _ATTRIBUTES)
    for name, stub in stubs.items():
        setattr(kept, name, stub)
    if frozen:
        _freeze(kept, found.fields)
        _let_copy(kept, found.fields, own)
    return kept


def _first(declared: _Declared, name: str) -> Callable[..., Any]:
    def first(self: Any, *args: Any) -> Any:
        declared.generate()
        return getattr(declared.kept, name)(self, *args)

    first.__name__ = name
    first.__qualname__ = f"{declared.kept.__qualname__}.{name}"
    return first


def _first_init(declared: _Declared) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **named: Any) -> None:
        declared.made += 1
        if declared.made > _FEW or not declared.assign(self, args, dict(named)):
            declared.generate()
            declared.kept.__init__(self, *args, **named)  # type: ignore[misc]

    __init__.__qualname__ = f"{declared.kept.__qualname__}.__init__"
    return __init__


def _freeze(kept: type, fields: tuple[str, ...]) -> None:
    """Refuse writes as a frozen dataclass does."""

    def refused(self: object, name: str, what: str) -> None:
        if type(self) is kept or name in fields:
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot {what} field {name!r}")

    def __setattr__(self: object, name: str, value: object) -> None:
        refused(self, name, "assign to")
        object.__setattr__(self, name, value)

    def __delattr__(self: object, name: str) -> None:
        refused(self, name, "delete")
        object.__delattr__(self, name)

    kept.__setattr__ = __setattr__  # type: ignore[method-assign, assignment]
    kept.__delattr__ = __delattr__  # type: ignore[method-assign, assignment]


def _let_copy(kept: type, fields: tuple[str, ...], own: dict[str, Any]) -> None:
    """Pickle and copy as a frozen dataclass with slots does; there is nothing to generate."""

    def __getstate__(self: object) -> list[Any]:
        return [getattr(self, name) for name in fields]

    def __setstate__(self: object, state: list[Any]) -> None:
        for name, value in zip(fields, state, strict=False):
            object.__setattr__(self, name, value)

    for method in (__getstate__, __setstate__):
        if method.__name__ not in own:
            method.__qualname__ = f"{kept.__qualname__}.{method.__name__}"
            setattr(kept, method.__name__, method)


def field_names(kind: type) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass. Raises TypeError for another class."""
    found = vars(kind).get(_FIELDS)
    if type(found) is _Attribute:
        return found.declared.fields
    from dataclasses import fields

    return tuple(item.name for item in fields(kind))


def replace(value: _T, **changes: Any) -> _T:
    """Return a copy of *value*, an object of a dataclass, with these fields changed."""
    found = vars(type(value)).get(_FIELDS)
    if type(found) is not _Attribute or "__init__" in found.declared.own:
        import dataclasses

        made: _T = dataclasses.replace(value, **changes)  # type: ignore[type-var]
        return made
    for name, init, *_ in found.declared.ruled():
        if init:
            changes.setdefault(name, getattr(value, name))
        elif name in changes:
            raise TypeError(f"field {name} is not for __init__, it cannot be replaced")
    return type(value)(**changes)


class _MakesTuples(type):
    """Makes a named tuple of a class statement, without a look at the types of its fields."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, space)
        fields = tuple(space.get("__annotations__", ()))
        defaults = [space[field] for field in fields if field in space]
        if bases != (NamedTuple,) or any(field not in space for field in _last(fields, defaults)):
            raise TypeError(f"{name} is no plain named tuple")
        made = _make_tuple(name, fields, defaults=defaults, module=space["__module__"])
        for key, value in space.items():
            if key not in fields:
                setattr(made, key, value)
        return made


def _last(fields: tuple[str, ...], defaults: list[Any]) -> tuple[str, ...]:
    return fields[len(fields) - len(defaults) :]


if TYPE_CHECKING:
    from dataclasses import dataclass, field
    from typing import NamedTuple
else:

    def field(**options: Any) -> _Field:
        """Say of a field what :func:`dataclasses.field` does."""
        return _Field(**options)

    class NamedTuple(metaclass=_MakesTuples):
        """The base of a named tuple, as :class:`typing.NamedTuple` is."""

    def dataclass(**options: bool) -> Callable[[type], type]:
        """Return a decorator as :func:`dataclasses.dataclass` does, for the same options.

        The class must have ``slots``. What is not plain is generated at once: a class with bases,
        class variables, or other options. Any thread.
        """

        def declare(written: type) -> type:
            if _is_plain(written, options):
                return _declared(written, options)
            import dataclasses

            _describe(written)
            return dataclasses.dataclass(**options)(written)

        return declare
