"""Which names a replay takes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from mldb.errors import InvalidTypeError

WantedNames: TypeAlias = "str | Iterable[str] | Callable[[str], bool] | None"
_GLOB: Final = frozenset("*?[")


def chooser(names: WantedNames) -> Callable[[str], bool] | None:
    """Return what says of a name whether it is taken; None takes all.

    A text with ``*``, ``?`` or ``[`` is a glob of the whole name, any other is a prefix; of several
    one is enough. Raises InvalidTypeError.
    """
    if names is None:
        return None
    if callable(names):
        return names
    try:
        patterns: list[object] = [names] if isinstance(names, str) else list(names)
    except TypeError:
        patterns = [names]
    wrong = [item for item in patterns if not isinstance(item, str)]
    if wrong:
        raise InvalidTypeError(
            f"names has a {type(wrong[0]).__name__}; give prefixes, globs, or a function of a name"
        )
    texts = list(map(str, patterns))
    globs = [item for item in texts if _GLOB.intersection(item)]
    prefixes = tuple(item for item in texts if not _GLOB.intersection(item))

    def chosen(name: str) -> bool:
        return name.startswith(prefixes) or any(fnmatchcase(name, glob) for glob in globs)

    return chosen


def described_names(names: WantedNames) -> object:
    """Return what tells one selection from another, as plain values: for an unfinished target."""
    if names is None or isinstance(names, str):
        return names
    if callable(names):
        return function_name(names)
    return sorted(names)


def function_name(function: Callable[..., object]) -> str:
    """A name for a function: its module and its own."""
    module = getattr(function, "__module__", "")
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
