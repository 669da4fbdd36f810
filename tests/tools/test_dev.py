"""The commands of a checkout: both kinds of test run are the same tests."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from mldb.tools import dev


@pytest.mark.parametrize(("name", "pure"), [("test", None), ("test-pure", "1")])
def test_all_tests_run_with_the_compiled_module_and_in_python_alone(
    name: str, pure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process inherits which it is, and what runs is said first."""
    ran: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        ran.append((command[1:], options["env"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.delenv("MLDB_PURE", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(subprocess, "run", run)
    # The type checker has nothing to do with it.
    monkeypatch.setitem(dev.COMMANDS, name, tuple(s for s in dev.COMMANDS[name] if s != dev.TYPES))
    assert dev.run(name, ["-k", "some"]) == 0
    assert "native.status" in ran[0][0][-1]
    assert ran[-1][0] == [*dev.TESTS, "-k", "some"]
    assert {environment.get("MLDB_PURE") for _, environment in ran} == {pure}
    assert not any("PYTHONDONTWRITEBYTECODE" in environment for _, environment in ran)


def test_other_commands_say_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert dev.run("demo", []) == 3
    assert ran == [["-m", "mldb.tools.demo"]]
