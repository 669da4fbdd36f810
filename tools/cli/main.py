"""Find the command, run it, and turn what it raises into an exit status.

Statuses: 0 all is well, 1 a problem was found (damage, a full disk, a lock that is held), 2 the
call cannot be meant (usage, an unknown name, no store there); 130 after Ctrl-C and 141 after a
closed pipe, as shells say of signals.

``mldb --help`` imports no NumPy: a command is imported when it is called.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from mldb.errors import MissingError, MldbError, UsageError
from mldb.printable import printable
from mldb.tools.cli.wrapping import print_fitted

OK: Final = 0
PROBLEM: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

_GARBAGE_AT: Final = 100_000
"""Objects made and not freed after which garbage is looked for; Python's default is hundreds."""
_CLICK_LEAST: Final = 52
"""Columns below which click writes help wider than the terminal is."""
_HELP_LEAST: Final = 20

COMMAND_LINES: Final = {
    "ls": "Tensors, with type, shape, epoch and size.",
    "show": "One tensor: where it comes from, its values as a histogram and over epochs.",
    "history": "Every version of one tensor.",
    "log": "Commits and their events, newest first; --follow waits for more.",
    "diff": "What changed between two moments, tensor by tensor.",
    "query": "SQL over tensors, versions, relationships, checkpoints, metrics, events and lakes.",
    "graph": "Relationships as a tree, or as DOT for Graphviz.",
    "stats": "Figures of a store: counts, bytes, caches, what compaction would give back.",
    "du": "Bytes by name, and what deduplication and deltas saved.",
    "doctor": "Locks, live processes, registrations, who keeps which bytes.",
    "verify": "Read and check every byte.",
    "repair": "Salvage what is readable into a new store; the damaged one is left as it is.",
    "compact": "Give back what retention lets go, and encode what is cold.",
    "retention": "Show or set how much of the past is kept.",
    "tag": "Name a commit, list the names, or take one away.",
    "rewind": "Continue from an earlier moment; what is abandoned stays readable.",
    "backup": "Copy a store while it is written to.",
    "export": "Tensors into a safetensors, npz or npy file.",
    "import": "Tensors from a safetensors, npz or npy file, as one commit.",
    "replay": "Write a store anew from its events: up to a moment, of some names.",
    "report": "One page of HTML that shows a whole run; it opens offline.",
    "demo": "A training run recorded, killed, resumed, rewound and read back.",
    "bench": "Short measurements of this machine: writes, reads, time travel.",
    "selftest": "Check that this installation does what it says.",
    "completion": "Print the completion script of a shell.",
}
"""Each command with the line that ``mldb --help`` shows of it, in that order."""


class _Formatter(click.HelpFormatter):
    """Help whose options leave room for what is said of them in a narrow terminal."""

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        narrow = self.width < _CLICK_LEAST - 2
        super().write_dl(rows, self.width // 4 if narrow else col_max, col_spacing)


class _Context(click.Context):
    formatter_class = _Formatter


class _Commands(click.Group):
    """The group of all commands, imported when they are called."""

    context_class = _Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMAND_LINES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMAND_LINES:
            return None
        module = import_module(f"mldb.tools.cli.commands.{cmd_name}_command")
        command: click.Command = module.command
        command.context_class = _Context
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMAND_LINES.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMAND_LINES and not args[0].startswith("-"):
            ctx.fail(_unknown(args[0]))
        return super().resolve_command(ctx, args)


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMAND_LINES, 1)
    hint = f" Did you mean {near[0]!r}?" if near else " mldb --help lists them."
    return f"there is no command {printable(name)!r}.{hint}"


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="mldb", message="mldb %(version)s")
def _cli() -> None:
    """Look into a store of mldb, check it, change it, and show it to others.

    STORE is the folder of a store; without it $MLDB_STORE, or ./ml_storage. Every command takes
    --json. AS_OF is an epoch (3), lsn:17, a time with its zone (2026-11-30T09:00Z), the name of a
    tag or checkpoint, or head.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status. Prints errors on stderr, raises none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _print_anything()
    try:
        if _completes():
            return OK
        # Not _cli.main(): that answers a closed pipe with the status of a problem.
        with _cli.make_context("mldb", words, terminal_width=_narrow_width()) as context:
            status = _cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        print("interrupted; the store is as it was", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE
    except MldbError as error:
        print_fitted(f"mldb: {printable(str(error))}", sys.stderr)
        return status_of(error)
    return status if isinstance(status, int) else OK


def run_process() -> NoReturn:
    """Run the command line of this process and end it: the entry of ``mldb``.

    Modules are no garbage: looking through them for some, at the start and once more at the end, is
    a fifth of what a short command takes.
    """
    gc.set_threshold(_GARBAGE_AT)
    status = main()
    gc.freeze()
    sys.exit(status)


def root_command() -> click.Command:
    """The command of all commands, for what describes them."""
    return _cli


def _completes() -> bool:
    """Answer a shell that asks for completions; whether one did."""
    asked = os.environ.get("_MLDB_COMPLETE")
    if not asked:
        return False
    from click.shell_completion import shell_complete

    shell_complete(_cli, {}, "mldb", "_MLDB_COMPLETE", asked)
    return True


def status_of(error: MldbError) -> int:
    """The exit status that an error of mldb stands for."""
    return USAGE if isinstance(error, UsageError | MissingError) else PROBLEM


def _narrow_width() -> int | None:
    """The width of help in a terminal narrower than click knows; None for what it finds out."""
    columns = shutil.get_terminal_size().columns
    return max(columns - 2, _HELP_LEAST) if columns < _CLICK_LEAST else None


def _print_anything() -> None:
    """Have stdout write what its encoding lacks as escapes; a name is no reason to end."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and sys.stdout.errors == "strict":
        reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Let the interpreter end without another attempt to write to a closed pipe."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass
