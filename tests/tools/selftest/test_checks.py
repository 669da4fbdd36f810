"""The self-test holds on this tree, and says so when a promise does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import native
from mldb.tools.selftest import checks
from mldb.tools.selftest.outcomes import BrokenPromise, NotHere, require
from mldb.tools.selftest.run_checks import OPTIONAL, optional_parts, run_checks


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_every_promise_holds(check: checks.Check, tmp_path: Path) -> None:
    if check is checks.checkpoint:
        pytest.importorskip("torch")
    if check is checks.both_modes and native.twin is None:
        pytest.skip(f"native is {native.status}")
    assert check(str(tmp_path))


def test_without_the_compiled_module_nothing_is_compared(tmp_path: Path) -> None:
    with native.switched_off(), pytest.raises(NotHere, match="off: switched off"):
        checks.both_modes(str(tmp_path))


@pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")
@pytest.mark.parametrize("half", [False, True])
def test_a_twin_that_differs_is_found_out(
    half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that depend on what runs; or stores of it, which both halves then read alike."""
    real = mldb.MLDatabase.query_tensor

    def other(self: mldb.MLDatabase, name: str, **options: Any) -> Any:
        found = real(self, name, **options)
        wrong = self._log.fs.root.endswith("compiled") if half else native.twin is not None
        return found + 1 if wrong else found

    monkeypatch.setattr(mldb.MLDatabase, "query_tensor", other)
    with pytest.raises(BrokenPromise, match="stored differs" if half else "read differs"):
        checks.both_modes(str(tmp_path))


def test_a_promise_that_does_not_hold_is_said_and_the_next_one_is_tried(tmp_path: Path) -> None:
    def broken(_: str) -> str:
        """The sky is blue."""
        require(False, "it is grey")
        return ""

    def crashed(_: str) -> str:
        """Nothing fails."""
        raise ZeroDivisionError("by zero")

    def absent(_: str) -> str:
        """Needs more."""
        raise NotHere("install more")

    def held(folder: str) -> str:
        """Holds."""
        assert os.listdir(folder) == []
        return "all is well"

    began: list[str] = []
    found = list(run_checks((broken, crashed, absent, held), str(tmp_path), began.append))
    assert [(item.state, item.text) for item in found] == [
        ("broken", "The sky is blue. But it is grey."),
        ("broken", "Nothing fails. But ZeroDivisionError: by zero"),
        ("skipped", "install more"),
        ("held", "all is well"),
    ]
    assert began == ["broken", "crashed", "absent", "held"]


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_checks((interrupted,), str(tmp_path), lambda _name: None))


@pytest.mark.parametrize(
    ("check", "method", "instead"),
    [
        (checks.time_travel, "query_tensor", lambda self, name, as_of=None: np.zeros(200)),
        (checks.types, "__getitem__", lambda self, name: np.zeros(3)),
        (checks.crash, "epoch", property(lambda self: 1)),
    ],
)
def test_an_engine_that_answers_wrong_is_found_out(
    check: checks.Check, method: str, instead: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mldb.MLDatabase, method, instead)
    with pytest.raises(BrokenPromise):
        check(str(tmp_path))


def test_damage_that_nobody_finds_is_a_broken_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mldb.log.blocks.Blocks._verify_run", lambda *_: None)
    with pytest.raises(BrokenPromise):
        checks.damage(str(tmp_path))


def test_checksums_of_another_kind_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check64", lambda _: 0)
    with pytest.raises(BrokenPromise, match="xxh3-64"):
        checks.digests("")


def test_a_machine_without_torch_leaves_the_checkpoint_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(NotHere, match=r"mldb\[torch\]"):
        checks.checkpoint(str(tmp_path))
    assert "needs torch" in checks.lake(str(tmp_path))


def test_what_is_not_installed_is_named_with_how_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldb.tools.selftest.run_checks.find_spec", lambda _name: None)
    found = list(optional_parts())
    assert [item.name for item in found] == list(OPTIONAL)
    assert all("pip install" in item.text for item in found)
    assert {item.state for item in found} == {"skipped"}
