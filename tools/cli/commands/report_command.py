"""``mldb report``: one page of HTML that shows a whole run."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mldb.tools.cli.command import Call, opened, store_command
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import MOMENT_TYPE, shown_bytes

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.history.as_of import AsOf
    from mldb.tools.report.build import ReportSettings
    from mldb.tools.report.states import MeasureCache


@store_command("report", access="path")
@click.option(
    *("-o", "--output", "target"),
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where the page goes.",
)
@click.option("--as-of", "as_of", type=MOMENT_TYPE, default=None, help="The moment; now.")
@click.option("--title", default="", help="The heading; the name of the folder.")
@click.option(
    "--tensors",
    type=click.IntRange(0, 2000),
    default=48,
    show_default=True,
    help="How many tensors are drawn one by one, largest first.",
)
@click.option(
    "--epochs",
    type=click.IntRange(2, 1000),
    default=48,
    show_default=True,
    help="How many epochs are shown at most.",
)
@click.option("--watch", is_flag=True, help="Make it anew while a run writes, until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=5.0,
    show_default=True,
    help="Seconds between two looks with --watch.",
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in a browser.")
def command(
    call: Call,
    target: Path,
    as_of: AsOf,
    title: str,
    tensors: int,
    epochs: int,
    watch: bool,
    every: float,
    is_opened: bool,
) -> None:
    """Write one page that shows a whole run: it opens offline and asks nothing of any network.

    Timeline and metrics, norms and histograms of parameters over epochs, the architecture, where
    the bytes are, and the splat lakes. What is damaged is named in the page; the rest is there.

    \b
    mldb report run -o report.html
    mldb report run --as-of best --title "The best run" --open
    mldb report run --watch
    """
    from mldb.tools.report.build import ReportSettings
    from mldb.tools.report.states import MeasureCache

    if watch and as_of is not None:
        raise click.UsageError("--watch shows what is newest; leave --as-of out")
    settings = ReportSettings(
        title=title,
        moment="" if as_of is None else str(as_of),
        tensors=tensors,
        epochs=epochs,
        reload_seconds=every if watch else None,
    )
    cache = MeasureCache()
    with opened(call.path) as db:
        seen = _write(call, db, target, as_of, settings, cache)
        if is_opened:
            webbrowser.open(target.resolve().as_uri())
        while watch:
            if not call.out.as_json:
                click.echo("watching; Ctrl-C ends it", err=True)
            _wait_for_commit(db, seen, every)
            seen = _write(call, db, target, as_of, settings, cache)


def _wait_for_commit(db: MLDatabase, seen: int, seconds: float) -> None:
    """Wait until somebody committed; a look costs a stat."""
    time.sleep(seconds)
    while int(db.lsn) == seen:
        time.sleep(seconds)


def _write(
    call: Call,
    db: MLDatabase,
    target: Path,
    as_of: AsOf,
    settings: ReportSettings,
    cache: MeasureCache,
) -> int:
    """Make the page, put it at its place, say so; return the commit that it shows."""
    from mldb.tools.report.build import make_report, write_page

    start = time.perf_counter()
    with progress_bar("reading parameters") as advance:
        made = make_report(db, as_of=as_of, settings=settings, cache=cache, progress=advance)
    write_page(target, made.html)
    seconds = time.perf_counter() - start
    facts: dict[str, Any] = {
        "path": str(target),
        "bytes": len(made.html),
        "seconds": round(seconds, 3),
        "lsn": made.lsn,
        "epoch": made.epoch,
        "parts": {
            "epochs_shown": made.epochs_shown,
            "epochs": made.epochs_in_all,
            "metrics": made.metrics,
            "layers": made.layers,
            "tensors": made.tensors,
            "relationships": made.relationships,
            "lakes": made.lakes,
        },
        "read_bytes": made.read_bytes,
        "problems": list(made.problems),
    }
    if call.out.as_json:
        call.out.line_of(facts) if settings.reload_seconds is not None else call.out.document(facts)
    else:
        call.out.text(
            f"{target}: {shown_bytes(len(made.html))}, {made.tensors:,} tensors over "
            f"{made.epochs_shown} of {made.epochs_in_all:,} epochs, in {seconds:.1f} s"
        )
        for problem in made.problems:
            click.echo(f"not shown: {_one_line(problem)}", err=True)
    return made.lsn


def _one_line(text: str) -> str:
    from mldb.tools.cli.printable import printable

    return printable(text, limit=300)
