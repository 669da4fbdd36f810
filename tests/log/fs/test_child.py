"""Processes beside this one: started without a fork, apart from its terminal, and always ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mldb.log.fs import child
from mldb.log.fs.child import Companion, absolute, plain_environment
from tests.support.background import is_alive, status_of, until
from tests.support.processes import Child, Line

START = "from mldb.log.fs.child import detach; detach()\n"


def run(code: str) -> Companion:
    environment = plain_environment() | {"PYTHONPATH": ":".join(absolute(sys.path))}
    return Companion([sys.executable, "-P", "-c", code], environment)


def test_the_exit_status_and_the_last_words_are_known() -> None:
    found = run("import sys; print('lost'); print('x' * 100_000, 'why', file=sys.stderr); exit(3)")
    until(lambda: found.said() and found.status() is not None)  # a full pipe would hold it
    assert found.status() == 3
    assert found.said().endswith("why\n")
    assert len(found.said()) <= 1 << 14
    assert "lost" not in found.said()


def test_it_stands_in_a_group_of_its_own_in_the_session_of_who_started_it() -> None:
    code = "import os, sys; print(os.getpgid(0), os.getsid(0), os.getpid(), file=sys.stderr)"
    found = run(code)
    assert status_of(found) == 0
    group, session, pid = map(int, found.said().split())
    assert group == pid == found.pid
    assert session == os.getsid(0)


def test_it_inherits_neither_descriptors_nor_folder_nor_ignored_signals(tmp_path: Path) -> None:
    with open(tmp_path / "held", "w", encoding="ascii") as file:
        os.set_inheritable(file.fileno(), True)
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            found = run(
                START + "import os, sys, signal\n"
                "names = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
                " if os.path.exists(f'/proc/self/fd/{n}')]\n"
                "print(os.getcwd(), signal.getsignal(signal.SIGHUP) == signal.SIG_DFL,"
                " any('held' in name for name in names), file=sys.stderr)"
            )
        finally:
            signal.signal(signal.SIGHUP, before)
        assert status_of(found) == 0
        assert found.said().split() == ["/", "True", "False"]


@pytest.mark.parametrize(
    "code, signum",
    [
        ("import time; time.sleep(60)", signal.SIGTERM),
        (
            "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', file=sys.stderr)"
            "; time.sleep(60)",
            signal.SIGKILL,
        ),
    ],
)
def test_it_is_ended_and_killed_where_it_does_not_listen(code: str, signum: int) -> None:
    found = run("import sys; " + code)
    if signum == signal.SIGKILL:
        until(lambda: "deaf" in found.said())
    began = time.monotonic()
    assert found.stop(0.3)
    assert time.monotonic() - began < 10
    assert found.status() == -signum
    assert found.stop(0.3)  # again, nothing happens


def test_what_cannot_be_started_is_an_oserror_and_leaves_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Companion([str(tmp_path / "none")], {})
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_somebody_else_waited_for_has_ended() -> None:
    found = run("exit(5)")
    until(lambda: not is_alive(found.pid))
    os.waitpid(found.pid, 0)
    assert found.status() == 0
    found.send(signal.SIGKILL)


def test_one_that_nobody_holds_is_ended_and_waited_for() -> None:
    found = run("import time; time.sleep(60)")
    pid = found.pid
    del found
    until(lambda: not is_alive(pid))
    assert status_of(run("pass")) == 0
    until(lambda: run("pass").status() is None and pid not in child._left)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_forked_child_neither_ends_nor_waits_for_it() -> None:
    found = run("import time; time.sleep(60)")

    def act(line: Line) -> None:
        found.send(signal.SIGKILL)
        line.say(found.status(), found.stop(0.1), found.said() == "")

    with Child(act) as forked:
        assert forked.hear() == ["None", "False", "True"]
    assert found.status() is None
    assert found.stop(5)


def test_the_environment_holds_nothing_that_steers_a_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("HOME", "/somewhere")
    found = plain_environment()
    assert found["HOME"] == "/somewhere"
    assert not {"PYTHONWARNINGS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"} & found.keys()


@pytest.mark.parametrize("pure", ["", "1"])
def test_python_alone_is_so_in_every_process(pure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker ran the compiled module of a store that was opened with MLDB_PURE=1."""
    monkeypatch.setenv("MLDB_PURE", pure)
    code = "import sys; from mldb.log import native; print(native.status, file=sys.stderr)"
    found = run(code)
    assert status_of(found) == 0
    assert (found.said() == "off: MLDB_PURE is set\n") == (pure == "1")


def test_a_search_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(["", "a", "/b"]) == [str(tmp_path), str(tmp_path / "a"), "/b"]


def _spawned_with(closed: tuple[int, ...]) -> Callable[[Line], None]:
    def act(line: Line) -> None:
        for number in closed:
            os.close(number)
        found = run("import sys; print('heard', file=sys.stderr)")
        while found.status() is None:
            time.sleep(0.01)
        line.say(found.status(), found.said().strip())

    return act


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2), (2,)])
def test_a_program_without_its_own_streams_may_start_one(closed: tuple[int, ...]) -> None:
    with Child(_spawned_with(closed)) as forked:
        assert forked.hear() == ["0", "heard"]
