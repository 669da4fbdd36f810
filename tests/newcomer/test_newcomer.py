"""Every script of this folder runs, and prints what it says that it prints.

Scripts whose story needs a process of its own get one; the others run here, one after the other, as
the cells of a notebook would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.newcomer.running import alone, run

pytest.importorskip("torch")

SCRIPTS = sorted(Path(__file__).parent.glob("row_*.py"))
ROWS = 29

ALONE = {
    "row_18_ctrl_c": "sends signals",
    "row_22_larger_than_memory": "limits its memory",
    "row_24_workers_graph": "counts the processor time of its children",
    "row_27_fork_while_compiling": "compiles what another script may have compiled",
}
COMPILED = ("row_23_device_auto", "row_27_fork_while_compiling")
SLOW = {*COMPILED, "row_24_workers_graph"}


def marked(script: Path) -> Any:
    """A script as a case; those that compile or measure take more than two seconds."""
    return pytest.param(script, id=script.stem, marks=[pytest.mark.slow] * (script.stem in SLOW))


@pytest.fixture(scope="module")
def run_alone() -> Callable[[Path, Path], None]:
    return alone()


@pytest.mark.parametrize("script", [marked(script) for script in SCRIPTS])
def test_a_script_prints_what_it_expects(
    script: Path, tmp_path: Path, run_alone: Callable[[Path, Path], None]
) -> None:
    if script.stem in COMPILED:
        pytest.importorskip("numba")
    (run_alone if script.stem in ALONE else run)(script, tmp_path)


def test_each_row_has_a_script() -> None:
    numbers = [int(script.stem.split("_")[1]) for script in SCRIPTS]
    assert numbers == list(range(1, ROWS + 1))
    assert {script.stem for script in SCRIPTS} >= {*ALONE, *SLOW}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_uses_public_names_only(script: Path) -> None:
    """A newcomer knows ``import mldb``, tells a story, and asserts what came of it."""
    source = script.read_text(encoding="utf-8")
    assert re.findall(r"^(?:import|from) mldb\b.*", source, re.MULTILINE) == ["import mldb"]
    assert not re.search(r"\w\._[a-z]\w*\(", source)
    assert re.search(r"^ +assert ", source, re.MULTILINE)


def test_what_is_printed_is_compared(tmp_path: Path) -> None:
    script = tmp_path / "row_00.py"
    script.write_text('EXPECTED = "1\\n"\n\n\ndef main(path):\n    print(2)\n', encoding="utf-8")
    with pytest.raises(AssertionError):
        run(script, tmp_path)
    with pytest.raises(AssertionError, match="AssertionError"):
        alone()(script, tmp_path)
