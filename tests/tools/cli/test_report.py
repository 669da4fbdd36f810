"""``mldb report``: what it writes and says, and that a watched run is shown anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.tools.cli.main import INTERRUPTED, PROBLEM, USAGE

PATIENCE_SECONDS = 60

HELP = """\
Usage: mldb report [OPTIONS] [STORE]

  Write one page that shows a whole run: it opens offline and asks nothing of
  any network.

  Timeline and metrics, norms and histograms of parameters over epochs, the
  architecture, where the bytes are, and the splat lakes. What is damaged is
  named in the page; the rest is there.

  mldb report run -o report.html
  mldb report run --as-of best --title "The best run" --open
  mldb report run --watch

Options:
  -o, --output FILE        Where the page goes.  [default: report.html]
  --as-of AS_OF            The moment; now.
  --title TEXT             The heading; the name of the folder.
  --tensors INTEGER RANGE  How many tensors are drawn one by one, largest
                           first.  [default: 48; 0<=x<=2000]
  --epochs INTEGER RANGE   How many epochs are shown at most.  [default: 48;
                           2<=x<=1000]
  --watch                  Make it anew while a run writes, until Ctrl-C.
  --every FLOAT RANGE      Seconds between two looks with --watch.  [default:
                           5.0; 0.1<=x<=3600]
  --open                   Open the page in a browser.
  --json                   Print JSON.
  -h, --help               Show this message and exit.
"""


def test_help(ran: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ran("report", "--help").out == HELP


def test_a_page_is_written_and_told_of(ran: Callable[..., Any], store: str, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    found = ran("report", store, "-o", target)
    assert (found.status, found.err) == (0, "")
    size, _, seconds = found.out.partition(": ")[2].partition(", 2 tensors over 4 of 4 epochs, in ")
    assert size.endswith(" KiB")
    assert seconds.endswith(" s\n")
    page = target.read_text()
    assert "<h1>run</h1>" in page
    assert "conv1_weights" in page


def test_json_says_what_is_in_the_page(ran: Callable[..., Any], store: str, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    found = ran("report", store, "-o", target, "--json")
    assert found.status == 0
    told = found.json
    assert told["bytes"] == target.stat().st_size
    assert told["path"] == str(target)
    assert told["seconds"] > 0
    assert told["parts"] == {
        "epochs_shown": 4,
        "epochs": 4,
        "metrics": 0,
        "layers": 1,
        "tensors": 2,
        "relationships": 2,
        "lakes": 0,
    }
    assert (told["epoch"], told["problems"]) == (4, [])


def test_the_moment_and_the_heading_are_chosen(
    ran: Callable[..., Any], store: str, tmp_path: Path
) -> None:
    target = tmp_path / "page.html"
    found = ran("report", store, "-o", target, "--as-of", "best", "--title", "<Best>", "--json")
    assert (found.json["epoch"], found.json["parts"]["epochs"]) == (3, 3)
    page = target.read_text()
    assert "<h1>&lt;Best&gt;</h1>" in page
    assert "As of best, " in page


def test_fewer_tensors_and_epochs_are_drawn(
    ran: Callable[..., Any], store: str, tmp_path: Path
) -> None:
    target = tmp_path / "page.html"
    found = ran("report", store, "-o", target, "--tensors", 1, "--epochs", 2, "--json")
    assert (found.json["parts"]["epochs_shown"], found.json["parts"]["epochs"]) == (3, 4)
    assert target.read_text().count('class="tensor"') == 1


def test_a_damaged_tensor_is_said_on_stderr_and_the_page_is_written(
    ran: Callable[..., Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    path, bad = tmp_path / "run", rng.standard_normal(4000)
    with mldb.open(path, durability="os") as db:
        db.store_tensor("bad\u202e", bad, epoch=1)
        db.store_tensor("good", bad + 1, epoch=1)
    (segment,) = (path / "segments").iterdir()
    content = bytearray(segment.read_bytes())
    content[content.index(bad.tobytes()[:64]) + 5] ^= 1
    segment.write_bytes(content)
    found = ran("report", path, "-o", tmp_path / "page.html")
    assert found.status == 0
    assert found.err.startswith("not shown: bad\\u202e: ")
    page = (tmp_path / "page.html").read_text()
    assert "Not shown:" in page
    assert 'data-name="good"' in page


def test_it_changes_nothing_in_the_store(
    ran: Callable[..., Any], store: str, tmp_path: Path
) -> None:
    def content() -> dict[Path, bytes]:
        files = (path for path in Path(store).rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = content()
    assert ran("report", store, "-o", tmp_path / "page.html").status == 0
    assert content() == before


def test_mistakes_of_the_call(ran: Callable[..., Any], store: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert ran("report", tmp_path / "none", "-o", page).status == USAGE
    assert ran("report", store, "-o", page, "--as-of", "never").status == USAGE
    found = ran("report", store, "-o", page, "--watch", "--as-of", "2")
    assert found.status == USAGE
    assert "leave --as-of out" in found.err
    assert not page.exists()
    found = ran("report", store, "-o", tmp_path / "none" / "page.html")
    assert found.status == PROBLEM
    assert "choose another place with -o" in found.err


def test_the_page_is_opened_in_a_browser(
    ran: Callable[..., Any], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = tmp_path / "page.html"
    assert ran("report", store, "-o", page, "--open").status == 0
    assert opened == [page.as_uri()]


def _next_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_a_watched_run_is_shown_anew_until_ctrl_c(store: str, tmp_path: Path) -> None:
    """Another process commits; the page follows, is whole at any time, and Ctrl-C ends it."""
    page = tmp_path / "page.html"
    words = ("report", store, "-o", str(page), "--watch", "--every", "0.1", "--json")
    code = "import sys; from mldb.tools.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert _next_line(process)["epoch"] == 4
        assert 'id="live"' in page.read_text()
        with mldb.open(store, durability="os") as db:
            db.store_tensor("conv1_weights", np.full((4, 8), 9, np.float32), epoch=9)
            told = _next_line(process)
            assert told["epoch"] == 9
            assert told["read_bytes"] == 2 * 128  # the new state and the one before it
            assert page.read_text().rstrip().endswith("</html>")
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == INTERRUPTED
            assert db.epoch == 9
        assert [path.name for path in tmp_path.glob(".*")] == []
    finally:
        process.kill()
        process.communicate()


def test_a_watch_waits_for_a_commit(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing is made anew, however often it looks."""
    from mldb.tools.cli.commands.report_command import _wait_for_commit

    waits: list[float] = []
    with mldb.open(store, durability="os") as db:

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 4:
                db.store_tensor("x", np.ones(2), epoch=5)

        monkeypatch.setattr(time, "sleep", sleep)
        _wait_for_commit(db, int(db.lsn), 2.5)
    assert waits == [2.5] * 4
