"""``python -m mldb.tools.demo``: a training run recorded, killed, resumed, rewound, read back."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mldb.errors import MldbError

if TYPE_CHECKING:
    from mldb.tools.demo.story import Story


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status: 0, or 1 when a promise of mldb did not hold."""
    options = _parser().parse_args(arguments)
    try:
        if options.path is not None:
            return _run(_empty_folder(options.path), options)
        with tempfile.TemporaryDirectory(prefix="mldb-demo-") as folder:
            return _run(Path(folder), options)
    except _Refused as error:
        print(error, file=sys.stderr)
        return 2


class _Refused(Exception):
    """The demo cannot begin."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mldb.tools.demo", description=__doc__)
    parser.add_argument("--path", help="an empty or new folder for the stores, which are kept")
    parser.add_argument("--epochs", type=_at_least(2), default=12, help="epochs to train (12)")
    parser.add_argument("--kills", type=_at_least(0), default=3, help="kills within saves (3)")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="seed of all chance (0)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number


def _empty_folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise _Refused(f"{folder} is not empty; give a new folder. Nothing was changed.")
    except OSError as error:
        raise _Refused(f"{folder} cannot be used: {error}") from error
    return folder


def _run(folder: Path, options: argparse.Namespace) -> int:
    from mldb.tools.demo.run import DemoError
    from mldb.tools.demo.story import Story

    start = time.perf_counter()
    story = Story(folder, epochs=options.epochs, kills=options.kills, seed=options.seed)
    failure: Exception | None = None
    try:
        story.tell()
    except (DemoError, MldbError) as error:
        failure = error
    seconds = time.perf_counter() - start
    if options.json:
        rows = [{"step": row.step, "text": row.text, "seconds": row.seconds} for row in story.rows]
        outcome = {"ok": failure is None, "seconds": seconds, "error": str(failure or "")}
        print(json.dumps({**outcome, "figures": story.figures, "rows": rows}, indent=2))
    else:
        _print(story, seconds)
    if failure is not None:
        print(f"the demo failed: {failure}", file=sys.stderr)
        return 1
    return 0


def _print(story: Story, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("step", no_wrap=True)
    table.add_column("what happened", overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    for row in story.rows:
        table.add_row(row.step, row.text, f"{row.seconds * 1e3:,.0f}")
    table.add_row("in all", "", f"{seconds * 1e3:,.0f}")
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
