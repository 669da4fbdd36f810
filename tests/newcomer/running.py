"""Run a script of this folder, here or in a process of its own, and compare what it prints."""

from __future__ import annotations

import contextlib
import io
import runpy
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS_MAX = 240


def run(script: Path, folder: Path) -> None:
    """Run one script with its store in *folder*."""
    names = runpy.run_path(str(script), run_name=f"tests.newcomer.{script.stem}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names["main"](str(folder / "store"))
    assert printed.getvalue() == names["EXPECTED"]


def alone() -> Callable[[Path, Path], None]:
    """Return what runs a script in a process that has loaded torch and mldb and done nothing else.

    A server loads them once, and is forked for each script.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.data", "mldb.database"])

    def run_alone(script: Path, folder: Path) -> None:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_run_and_tell, args=(script, folder, there))
        child.start()
        there.close()
        ended = here.poll(SECONDS_MAX)
        try:
            problem = here.recv() if ended else f"no end after {SECONDS_MAX} s"
        except EOFError:
            problem = "the process ended before the script did"
        if not ended:
            child.kill()
        child.join()
        assert not problem, f"{script.name}: {problem}"
        assert child.exitcode == 0

    return run_alone


def _run_and_tell(script: Path, folder: Path, answer: Connection) -> None:
    """Run, and send what went wrong, "" where nothing did."""
    try:
        run(script, folder)
    except BaseException:  # noqa: BLE001 - whatever it was, the parent tells of it
        answer.send(traceback.format_exc())
    else:
        answer.send("")
