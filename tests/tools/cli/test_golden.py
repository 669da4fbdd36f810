"""Output as users see it, word for word; ``tests.support.golden_text`` says how it is made anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.log import native
from tests.support.golden_text import check_golden

Run = Callable[..., Any]


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
    check_golden("output_du", ran("du", run).out + ran("du", run, "--depth", 1).out)


def test_doctor(ran: Run, run: str) -> None:
    found = ran("doctor", run, "--all").out.replace(run, "RUN")
    found = re.sub(r"[\d,]+ bytes are free on a file system \S+", "SO MANY bytes are free", found)
    found = found.replace(f"\tnative\t{native.status}\t", "\tnative\tWHAT RUNS\t")
    lines = [line for line in found.splitlines() if "not known to be of this machine" not in line]
    check_golden("output_doctor", "\n".join(lines) + "\n")


def test_export_and_import(ran: Run, run: str, tmp_path: Path) -> None:
    file, other = tmp_path / "x.safetensors", tmp_path / "other"
    found = ran("export", run, file, "--prefix", "model/").out
    found += ran("import", other, file, "--new", "--epoch", 2).out
    found = re.sub(r"lsn:\d+", "lsn:N", found.replace(str(tmp_path), "TMP"))
    check_golden("output_files", found)
