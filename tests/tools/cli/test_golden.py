"""Help and output as users see them, word for word: golden/ holds what is expected.

A file of golden/ that is deleted is written anew by a run, which fails and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb

Run = Callable[..., Any]

_GOLDEN = Path(__file__).parent / "golden"
_COMMANDS = ("bench", "doctor", "du", "export", "import", "selftest")


def _compare(name: str, text: str) -> None:
    path = _GOLDEN / name
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"golden/{name} was not there and has been written; look at it")
    assert text == path.read_text()


@pytest.mark.parametrize("name", _COMMANDS)
def test_help(ran: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    found = ran(name, "--help")
    assert found.status == 0
    _compare(f"{name}.help", found.out)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run whose numbers do not depend on anything."""
    path = tmp_path / "run"
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for epoch in range(1, 4):
            with db.transaction(epoch=epoch) as txn:
                txn.store_tensor("model/a.weight", np.full(20_000, epoch, np.float32))
                txn.store_tensor("model/a.bias", np.full(100, epoch, np.float32))
                txn.store_tensor("step", np.int64(epoch))
        db.tag("best", 2)
        db.retention.set(last=1)
    return str(path)


def test_du(ran: Run, run: str) -> None:
    _compare("du.out", ran("du", run).out + ran("du", run, "--depth", 1).out)


def test_doctor(ran: Run, run: str) -> None:
    found = ran("doctor", run, "--all").out.replace(run, "RUN")
    found = re.sub(r"[\d,]+ bytes are free on a file system \S+", "SO MANY bytes are free", found)
    lines = [line for line in found.splitlines() if "not known to be of this machine" not in line]
    _compare("doctor.out", "\n".join(lines) + "\n")


def test_export_and_import(ran: Run, run: str, tmp_path: Path) -> None:
    file, other = tmp_path / "x.safetensors", tmp_path / "other"
    found = ran("export", run, file, "--prefix", "model/").out
    found += ran("import", other, file, "--new", "--epoch", 2).out
    found = re.sub(r"lsn:\d+", "lsn:N", found.replace(str(tmp_path), "TMP"))
    _compare("files.out", found)
