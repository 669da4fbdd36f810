"""Commands on a store: what they have in common, said once.

``@store_command("NAME")`` gives a command its STORE, its further words, ``--json`` and the open
database. STORE may be left out: with one word less than there are, it is $MLDB_STORE, or
``./ml_storage``. That goes by the number of words alone, never by what lies on the disk.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from mldb.tools.cli.output import Output

if TYPE_CHECKING:
    from mldb.database import MLDatabase

DEFAULT_STORE: Final = "ml_storage"
STORE_VARIABLE: Final = "MLDB_STORE"

Access = Literal["r", "rw", "path"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a command: the path of its store, its further words, and where it prints.

    ``db`` is the store, open until the command returns; None where the command asked for "path".
    """

    path: str
    words: tuple[str, ...]
    out: Output
    db: MLDatabase | None

    @property
    def store(self) -> MLDatabase:
        """The open store."""
        assert self.db is not None, "the command was declared with access 'path'"
        return self.db


def store_command(
    name: str, *words: str, access: Access = "r", **settings: Any
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command of a function ``(call: Call, **options) -> exit status or None``.

    *words* name what stands behind STORE, each required. *access*: how the store is opened, "r" (it
    changes nothing, works on a read-only folder), "rw" (it must exist), or "path" for a command
    that opens it by itself. Options are added below, with ``click.option``. *settings* go to
    ``click.Command``; the docstring is the help.
    """

    def decorate(function: Callable[..., int | None]) -> click.Command:
        def run(args: tuple[str, ...], as_json: bool, **options: Any) -> int | None:
            path, rest = _split(args, words)
            out = Output(as_json=as_json)
            if access == "path":
                return function(Call(path, rest, out, None), **options)
            with opened(path, mode=access) as db:
                return function(Call(path, rest, out, db), **options)

        metavar = " ".join(("[STORE]", *words))
        own: list[click.Parameter] = getattr(function, "__click_params__", [])
        params: list[click.Parameter] = [
            click.Argument(["args"], nargs=-1, metavar=metavar),
            *reversed(own),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        ]
        doc = inspect.cleandoc(function.__doc__ or "")
        return click.Command(name, callback=run, params=params, help=doc, **settings)

    return decorate


def _split(args: Sequence[str], words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The path of the store and the words behind it. Raises UsageError for too few or many."""
    if len(args) == len(words):
        return os.environ.get(STORE_VARIABLE) or DEFAULT_STORE, tuple(args)
    if len(args) == len(words) + 1:
        return args[0], tuple(args[1:])
    wanted = " ".join(("[STORE]", *words))
    raise click.UsageError(f"this command takes {wanted}, not {len(args)} words")


def require_folder(path: str) -> None:
    """Raise click.UsageError when there is no folder at *path*."""
    if not os.path.isdir(path):
        raise click.UsageError(
            f"there is no store at {path!r}. Name its folder, or set ${STORE_VARIABLE}."
        )


@contextmanager
def opened(path: str, *, mode: Literal["r", "rw"] = "r") -> Iterator[MLDatabase]:
    """Open a store that exists; a command makes none where none is.

    Raises click.UsageError when nothing is there, and what ``mldb.open`` raises.
    """
    require_folder(path)
    import mldb

    if mode == "rw" and not any(name.startswith("MANIFEST-") for name in os.listdir(path)):
        raise click.UsageError(f"{path!r} holds no store of mldb; nothing was changed.")
    with mldb.open(path, mode=mode, background_compaction=False, note_reads=False) as db:
        yield db
