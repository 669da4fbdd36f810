"""Named tuples and dataclasses in a state, and containers of any kind by their parts.

A store holds the name of such a class and the names of its fields, never code. On reading, the name
is looked up among the classes that this process registered, and nowhere else: nothing is imported,
unpickled or run because of what a store says. Instances are made without ``__init__``, ``__new__``
or ``__post_init__``, as copies are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, TypeGuard, TypeVar

from mldb.errors import InvalidTypeError, InvalidValueError

_T = TypeVar("_T")

PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types of values that hold no others. Asked for first: a state may have millions of them."""

_NAME_MAX: Final = 1000

# Only ever added to, in one step each, so threads need no lock.
_known: Final[dict[str, type]] = {}
_names: Final[dict[type, str]] = {}


def register_state_type(cls: type[_T], *, name: str | None = None) -> type[_T]:
    """Let states hold instances of *cls*, a named tuple or dataclass; return *cls* (a decorator).

    Checkpoints name the class by *name*, its module and qualified name by default; give one that
    stays when the class may move, or is defined in a script. Reading gives instances where the name
    is registered, and a plain tuple or dict where it is not. Named tuples are stored without being
    registered, dataclasses only with it. A field that the class has and the store lacks gets its
    default. Register before the first checkpoint or load of the process; the same name again
    replaces the class only when it is the same one, defined anew.

    Raises InvalidTypeError for other classes, for those with ``state_dict()`` and those that cannot
    be made without their constructor; InvalidValueError for a name that another class has.
    """
    kind = cls.__name__ if isinstance(cls, type) else type(cls).__name__
    if not isinstance(cls, type) or not (
        _is_named_tuple_type(cls) or dataclasses.is_dataclass(cls)
    ):
        raise InvalidTypeError(f"{kind} is no named tuple or dataclass, whose fields are the state")
    if callable(getattr(cls, "state_dict", None)):
        raise InvalidTypeError(f"{kind} has state_dict(), and that is stored; do not register it")
    if not _is_named_tuple_type(cls):
        try:
            object.__new__(cls)
        except TypeError as error:
            raise InvalidTypeError(
                f"an instance of {kind} cannot be made from its fields alone: {error}"
            ) from error
    name = _default_name(cls) if name is None else name
    if not isinstance(name, str):
        raise InvalidTypeError(f"name is a {type(name).__name__}, not a str")
    if not 0 < len(name) <= _NAME_MAX:
        raise InvalidValueError(f"a name has 1 to {_NAME_MAX} characters, not {len(name)}")
    other = _known.get(name)
    if other is not None and other is not cls and _default_name(other) != _default_name(cls):
        raise InvalidValueError(
            f"{name!r} is registered for {_default_name(other)}; give {kind} another name"
        )
    _known[name] = cls
    _names[cls] = name
    return cls


# --- to a skeleton and back -----------------------------------------------------------------------


def take_apart(value: Any, path: str) -> tuple[str, dict[str, Any]] | None:
    """Return the name of the class of *value* and its fields; None when it is stored otherwise.

    Raises InvalidTypeError for an instance whose fields are not all of it.
    """
    kind = type(value)
    if is_named_tuple(value):
        name = _names.get(kind) or _default_name(kind)
        return name, dict(zip(value._fields, value, strict=True))
    known = _names.get(kind)
    if known is None:
        return None
    fields = [field.name for field in dataclasses.fields(value)]
    missing = [field for field in fields if not hasattr(value, field)]
    further = [
        key
        for key in getattr(value, "__dict__", {})
        if key not in fields and not _is_cached(kind, key)
    ]
    if missing or further:
        what = f"lacks its field {missing[0]!r}" if missing else f"has {further[0]!r}, no field"
        raise InvalidTypeError(
            f"the {kind.__name__} of the state at {path[:200]!r} {what}. Only fields are stored, "
            "and all of them. Nothing was stored."
        )
    return known, {field: getattr(value, field) for field in fields}


def _is_cached(kind: type, key: str) -> bool:
    """Whether an attribute is computed from the fields when it is first asked for."""
    return isinstance(getattr(kind, key, None), cached_property)


def put_together(name: str, fields: Mapping[str, Any]) -> Any:
    """Return an instance of the class registered as *name*; None when there is none.

    Raises InvalidValueError when the class does not have these fields.
    """
    cls = _known.get(name)
    if cls is None:
        return None
    defaults = _defaults_of(cls)
    further = [field for field in fields if field not in defaults]
    lacking = [
        field
        for field, default in defaults.items()
        if default is dataclasses.MISSING and field not in fields
    ]
    if further or lacking:
        what = f"no field {further[0]!r}" if further else f"a field {lacking[0]!r} without default"
        raise InvalidValueError(
            f"the stored state has a {name!r} with the fields {', '.join(fields)[:200]}; the class "
            f"registered under that name has {what}. Register the class as it was, or load in a "
            "process that does not register it: then it comes back as a plain tuple or dict."
        )
    values = {
        field: fields[field] if field in fields else _made(default)
        for field, default in defaults.items()
    }
    return _instance(cls, values)


def _defaults_of(cls: Any) -> dict[str, Any]:
    """Return the fields of a class with their defaults or factories, MISSING where none is."""
    if _is_named_tuple_type(cls):
        return {name: cls._field_defaults.get(name, dataclasses.MISSING) for name in cls._fields}
    return {
        field.name: field if field.default_factory is not dataclasses.MISSING else field.default
        for field in dataclasses.fields(cls)
    }


def _made(default: Any) -> Any:
    is_factory = isinstance(default, dataclasses.Field)
    return default.default_factory() if is_factory else default


def _instance(cls: Any, values: Mapping[str, Any]) -> Any:
    if _is_named_tuple_type(cls):
        return tuple.__new__(cls, values.values())
    made = object.__new__(cls)
    for field, value in values.items():
        object.__setattr__(made, field, value)  # frozen ones too
    return made


# --- containers by their parts --------------------------------------------------------------------


def is_named_tuple(value: object) -> bool:
    """Whether *value* is an instance of a named tuple."""
    return isinstance(value, tuple) and _is_named_tuple_type(type(value))


def is_record(value: object) -> bool:
    """Whether *value* is an instance of a dataclass that does not load its state itself."""
    return (
        not isinstance(value, type | dict | list | tuple)
        and dataclasses.is_dataclass(value)
        and not callable(getattr(value, "load_state_dict", None))
    )


def parts_of(value: Any) -> dict[Any, Any] | None:
    """Return what a dict, list, tuple or dataclass holds, by key, place or field; else None."""
    if type(value) in PLAIN:
        return None
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_record(value):
        fields = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in fields if hasattr(value, name)}
    return None


def with_parts(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a copy of a container, of the same type, in which these parts are replaced."""
    if isinstance(value, list | tuple):
        items = [parts.get(place, item) for place, item in enumerate(value)]
        if is_named_tuple(value):
            kind: Any = type(value)
            return tuple.__new__(kind, items)
        return tuple(items) if isinstance(value, tuple) else items
    changed = copy.copy(value)  # keeps the type of a dict and torch's versions of modules on it
    if isinstance(value, dict):
        changed.update(parts)
        return changed
    for field, part in parts.items():
        object.__setattr__(changed, field, part)
    further = getattr(changed, "__dict__", {})
    for key in [key for key in further if _is_cached(type(value), key)]:
        del further[key]  # it was computed from the former fields
    return changed


def retyped(target: Any, tree: Any) -> Any:
    """Return *tree* with the named tuples and dataclasses that *target* has in these places.

    Nothing else is changed: what does not fit stays as it is.
    """
    wanted, found = parts_of(target), parts_of(tree)
    if wanted is None or found is None:
        return tree
    parts = {
        key: part if type(part) in PLAIN else retyped(wanted[key], part)
        for key, part in found.items()
        if key in wanted
    }
    if type(target) is not type(tree) and _fits(target, tree) and wanted.keys() == found.keys():
        return with_parts(target, parts)
    if all(part is found[key] for key, part in parts.items()):
        return tree
    return with_parts(tree, parts)


def _fits(target: Any, tree: Any) -> bool:
    """Whether *tree* may be what a value of the type of *target* was stored as."""
    if is_named_tuple(target):
        return isinstance(tree, tuple)
    return is_record(target) and (isinstance(tree, dict) or is_record(tree))


def _is_named_tuple_type(cls: type) -> TypeGuard[Any]:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def _default_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
