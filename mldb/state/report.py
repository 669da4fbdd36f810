"""What a load did: the answer of ``db.load``."""

from __future__ import annotations

from dataclasses import field
from typing import Any, NamedTuple

from mldb.deferred import dataclass
from mldb.html import html_of, html_table

_SHOWN = 4
_SHOWN_LENGTH = 80


class NothingLoadedWarning(UserWarning):
    """With ``strict=False`` no key of what was saved fits the target; it stayed as it was."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What ``db.load`` put where. Frozen; any thread.

    Names are those of keys on the way down joined by ``/``: ``model/0.weight``; a bare object that
    has no keys is called ``value``.

    ``loaded``: what holds a saved value now: keys of modules, and the places of tensors, arrays,
    generators, optimizers and others. ``missing``: in the target and not saved; it stayed as it is.
    ``unexpected``: saved and not in the target. For a module these two are what its own
    ``load_state_dict`` returned, for an optimizer the names of parameters (``optimizer/0.weight``).
    ``ignored``: saved keys that a module's loading passed over without a word, as torch does below
    a child that is None, and groups of an optimizer (``optimizer/param_groups/0``) whose options no
    group here took. ``state`` is the target with plain
    values as they were saved; ``report[key]`` is ``report.state[key]``.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    state: Any = field(default=None, repr=False, compare=False)

    def __getitem__(self, key: Any) -> Any:
        """Return ``state[key]``."""
        return self.state[key]

    def __repr__(self) -> str:
        """One line: how many of each, and the first names of what was not loaded."""
        parts = [f"{len(self.loaded)} loaded"]
        for kind in ("missing", "unexpected", "ignored"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} ({listed(names, _SHOWN)})")
        return f"<LoadReport {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        """The form of notebooks: how many of each, and the first names."""
        return html_of(self, self._html)

    def _html(self) -> str:
        return html_table(
            ("", "names", "the first of them"),
            (
                (kind, len(getattr(self, kind)), ", ".join(getattr(self, kind)[:_SHOWN]))
                for kind in ("loaded", "missing", "unexpected", "ignored")
            ),
            caption="load",
            right=("names",),
        )


class Findings(NamedTuple):
    """What a report is made of, while it is made; ``warnings`` are about parts nothing fitted."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    ignored: list[str]
    warnings: list[str]

    def report(self, state: Any) -> LoadReport:
        """Return the finished report."""
        loaded, missing, unexpected, ignored = map(tuple, self[:4])
        return LoadReport(loaded, missing, unexpected, ignored, state)

    def note_nothing_fits(
        self, what: str, saved: list[Any], wanted: list[Any], advice: str
    ) -> None:
        """Note that *what* has none of the keys that were saved for it."""
        self.warnings.append(
            f"{what} has no key in common with what was saved: nothing was loaded into it. Saved "
            f"are {listed(saved, 3)}; it has {listed(wanted, 3)}.{advice}"
        )


def listed(keys: Any, shown: int = 8) -> str:
    """Return the first *shown* of *keys* for a message, each cut to a length that can be read."""
    text = ", ".join(repr(key)[:_SHOWN_LENGTH] for key in keys[:shown])
    return text if len(keys) <= shown else f"{text}, …"


def target_at(path: str) -> str:
    """Return how a message names the part of a target at *path*."""
    return f"the target at {path[:200]!r}" if path else "the target"


def joined(path: str, key: object) -> str:
    """Return the name of the part under *key*."""
    return f"{path}/{key}" if path else str(key)
