"""``--pure`` measures Python alone, in every process, and the first line says what runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mldb.log import native
from tests.bench import runner
from tests.bench.children import REPOSITORY

_NOTHING = ("--quick", "--only", "IMPORT", "--peers")
"""Leaves out all that is measured."""


@pytest.mark.parametrize("pure", [False, True])
def test_the_first_line_says_what_runs(pure: bool, tmp_path: Path) -> None:
    options = [*_NOTHING, "--store-dir", str(tmp_path), *(["--pure"] if pure else [])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    runs = "off: MLDB_PURE is set" if pure else native.status
    assert done.stdout.startswith(f"native {runs}; scale quick; ")


def test_an_option_that_comes_too_late_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*_NOTHING, "--store-dir", str(tmp_path), "--pure"]
    if native.twin is not None:
        with pytest.raises(SystemExit):
            runner.main(arguments)
        assert "before mldb was imported" in capsys.readouterr().err
    with native.switched_off():
        assert runner.main(arguments) == 0
    assert capsys.readouterr().out.startswith("native off: switched off; ")
