"""A command line in this process: what it prints, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.tools.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What one call printed, and its status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``ran("ls", path)``: run a command line, return what it printed."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return Ran(status, found.out, found.err)

    return run


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A small run: four epochs of two tensors, a relationship, a tag."""
    path = tmp_path / "run"
    with mldb.open(path, durability="os") as db:
        for epoch in range(1, 5):
            with db.transaction(epoch=epoch) as txn:
                weights = np.full((4, 8), epoch, np.float32)
                txn.store_model_layer("conv1", weights, np.zeros(8, np.float32) + epoch)
                if epoch == 1:
                    txn.create_relationship("conv1", "conv2", "feeds_into")
        db.tag("best", 3)
    return str(path)
