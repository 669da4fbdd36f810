"""What runs, the compiled module or Python alone, and why."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mldb
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.checksum import check64, digest128


def module(**changes: Any) -> ModuleType:
    """A module that fits the Python beside it, but for *changes*."""
    made = ModuleType("made")
    plain: dict[str, Any] = {
        "VERSION": fmt.WRITER.decode().removeprefix("mldb "),
        "INTERFACE": native.INTERFACE,
        "HAS_XXHASH": True,
        "CONSTANTS": {"BLOCK_LOG2": fmt.BLOCK_LOG2},
        "check64": check64,
        "digest128": digest128,
    }
    vars(made).update(plain | changes)
    return made


def not_built() -> ModuleType:
    raise ImportError("no module")


def test_a_module_that_fits_runs() -> None:
    made = module()
    assert native.load({}, importer=lambda: made) == (made, "on")
    assert native.load({"MLDB_PURE": "0"}, importer=lambda: made)[0] is made
    made = module(HAS_XXHASH=False)
    assert native.load({}, importer=lambda: made) == (
        made,
        "on, with the hashes of the xxhash package",
    )


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"environment": {"MLDB_PURE": "1"}}, "off: MLDB_PURE is set"),
        ({"byteorder": "big"}, "off: this machine is big-endian"),
        ({"abiflags": "t"}, "off: this Python has no global lock"),
        ({"importer": not_built}, "off: not built"),
    ],
)
def test_elsewhere_python_runs_alone_and_says_why(settings: dict[str, Any], why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given: dict[str, Any] = {"environment": {}, "importer": module, **settings}
        assert native.load(**given) == (None, why)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"VERSION": "0.0.9"}, r"is of version 0\.0\.9"),
        ({"INTERFACE": -1}, r"is of version .* \(-1\)"),
        ({"CONSTANTS": {"BLOCK_LOG2": 19}}, "BLOCK_LOG2 = 19"),
        ({"CONSTANTS": {"NO_SUCH_THING": 1}}, "NO_SUCH_THING"),
        ({"check64": lambda data, seed: 7}, "hashes 0 bytes otherwise"),
        ({"digest128": lambda data: b"x" * 16}, "hashes 0 bytes otherwise"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_with_one_warning(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.warns(native.NativeWarning, match=fault) as said:
        twin, status = native.load({}, importer=lambda: module(**changes))
    assert twin is None
    assert status.startswith("off: it ")
    assert len(said) == 1


def test_the_store_says_what_runs(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        assert db.stats()["native"] == native.status
        with native.switched_off():
            assert db.stats()["native"] == "off: switched off"
        assert db.stats()["native"] == native.status


def test_the_environment_decides(tmp_path: Path) -> None:
    code = "from mldb.log import native; print(native.twin, native.status)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"MLDB_PURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None off: MLDB_PURE is set\n"


@pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")
def test_what_is_built_has_the_constants_of_the_format() -> None:
    assert native.fault_of(native.twin) is None
    assert len(native.twin.CONSTANTS) >= 10


def test_what_must_be_built_is_built() -> None:
    """CI says that there is a compiler: then a module that was not built is an error."""
    if os.environ.get("CI_REQUIRE_NATIVE") != "1" or os.environ.get("MLDB_PURE") == "1":
        pytest.skip("CI_REQUIRE_NATIVE is not set")
    assert native.status.startswith("on"), native.status
