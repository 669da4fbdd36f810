"""Dataclasses whose methods are generated when first used, not when their module is imported.

Opening a store imports two dozen dataclasses and makes objects of a few of them; to generate the
methods of all took a third of the import. The classes are those of :mod:`dataclasses` in every
other respect: that module generates the methods, from the class as it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

__all__ = ["dataclass"]

_ATTRIBUTES: Final = (
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__signature__"),
)
_METHODS: Final = ("__init__", "__repr__", "__eq__", "__hash__")
_PICKLED: Final = ("__getstate__", "__setstate__")
_WRITES: Final = ("__setattr__", "__delattr__")
# What dataclasses does not take for a field, or not for one like the others.
_SPECIAL: Final = ("ClassVar", "InitVar", "KW_ONLY")
_OPTIONS: Final = frozenset({"frozen", "slots", "eq", "kw_only", "weakref_slot"})

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(**options: bool) -> Callable[[type], type]:
        """Return a decorator as :func:`dataclasses.dataclass` does, for the same options.

        The class must have ``slots``. What is not plain is generated at once: a class with bases,
        class variables, or other options. Any thread; two that use a class first at the same moment
        both generate its methods, and either's are right.
        """

        def declare(written: type) -> type:
            if _is_plain(written, options):
                return _declared(written, options)
            import dataclasses

            return dataclasses.dataclass(**options)(written)

        return declare


def _is_plain(written: type, options: dict[str, bool]) -> bool:
    if written.__bases__ != (object,) or not options.get("slots") or options.keys() - _OPTIONS:
        return False
    types = vars(written).get("__annotations__", {}).values()
    return all(
        isinstance(kind, str) and not any(map(kind.__contains__, _SPECIAL)) for kind in types
    )


def _declared(written: type, options: dict[str, bool]) -> type:
    """The class as it stays: with slots, and stubs in the places of what will be generated."""
    space = dict(vars(written))
    for name in ("__dict__", "__weakref__"):
        space.pop(name, None)
    fields = tuple(space.get("__annotations__", ()))
    own = {name: value for name, value in space.items() if name not in fields}
    slots = (*fields, "__weakref__") if options.get("weakref_slot") else fields
    kept = type(written.__name__, (object,), {**own, "__slots__": slots})
    kept.__qualname__ = written.__qualname__

    def generate() -> None:
        """Put what dataclasses generates into the places of the stubs; harmless twice."""
        import dataclasses

        copy = type(written.__name__, (object,), dict(space))
        copy.__qualname__ = written.__qualname__
        made = vars(dataclasses.dataclass(**options)(copy))  # type: ignore[call-overload]
        for name in made.keys() - own.keys() - {"__slots__", "__weakref__", *fields, *_WRITES}:
            setattr(kept, name, made[name])
        for name in stubs:
            if vars(kept).get(name) is stubs[name]:  # nothing was generated in its place
                delattr(kept, name)

    stubs = _stubs(kept, own, options, generate)
    for name, stub in stubs.items():
        setattr(kept, name, stub)
    if options.get("frozen"):
        _freeze(kept, fields)
    return kept


def _stubs(
    kept: type, own: dict[str, Any], options: dict[str, bool], generate: Callable[[], None]
) -> dict[str, Any]:
    frozen, eq = options.get("frozen", False), options.get("eq", True)
    names = [name for name in _METHODS if name not in own and (eq or name in _METHODS[:2])]
    if eq and not frozen and own.get("__hash__") is None:
        kept.__hash__ = None  # type: ignore[assignment]
        names = [name for name in names if name != "__hash__"]
    if frozen:
        names += [name for name in _PICKLED if name not in own]
    stubs: dict[str, Any] = {name: _stub(kept, name, generate) for name in names}
    return {**stubs, **{name: _Attribute(name, generate) for name in _ATTRIBUTES}}


def _stub(kept: type, name: str, generate: Callable[[], None]) -> Callable[..., Any]:
    def first(self: Any, *args: Any, **named: Any) -> Any:
        generate()
        return getattr(kept, name)(self, *args, **named)

    first.__name__ = name
    first.__qualname__ = f"{kept.__qualname__}.{name}"
    return first


class _Attribute:
    """An attribute of a class that is not there yet. Any thread; replaced when first read."""

    __slots__ = ("_generate", "_name")

    def __init__(self, name: str, generate: Callable[[], None]) -> None:
        self._name = name
        self._generate = generate

    def __get__(self, instance: object, owner: type) -> Any:
        self._generate()
        return getattr(owner, self._name)


def _freeze(kept: type, fields: tuple[str, ...]) -> None:
    """Refuse writes as a frozen dataclass does."""

    def refused(self: object, name: str, what: str) -> None:
        if type(self) is kept or name in fields:
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot {what} field {name!r}")

    def __setattr__(self: object, name: str, value: object) -> None:
        refused(self, name, "assign to")
        super(kept, self).__setattr__(name, value)

    def __delattr__(self: object, name: str) -> None:
        refused(self, name, "delete")
        super(kept, self).__delattr__(name)

    kept.__setattr__ = __setattr__  # type: ignore[method-assign, assignment]
    kept.__delattr__ = __delattr__  # type: ignore[method-assign, assignment]
