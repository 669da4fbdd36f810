"""A recorded run that has everything a page shows, and a page of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.tools.report.build import ReportMade, make_report

HOSTILE = "</script><img src=x onerror=alert(1)>"
TURNED = "x\u202egnp.exe\"'<b>"
EPOCHS = 8


def record_run(path: Path) -> None:
    """Eight epochs with a rewind, metrics, a cycle of relationships, and a lake that was merged."""
    rng = np.random.default_rng(12)
    state = {
        "conv1.weight": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "conv1.bias": np.zeros(8, np.float32),
        "fc.weight": rng.standard_normal((10, 64)).astype(np.float32),
    }
    with mldb.open(path, durability="os", background_compaction=False) as db:
        for source, target in (("conv1", "relu"), ("relu", "fc"), ("fc", "loss")):
            db.create_relationship(source, target, "feeds_into")
        db.create_relationship("loss", "conv1", "feedback")
        db.create_relationship("conv1", "model/conv1.weight", "layer_params")
        for epoch in (1, 2, 3, 4, 5, 4, 5, 6, 7, 8):
            if epoch == 4 and db.epoch == 5:
                db.rewind(3)
                state["fc.weight"] = np.array(db["model/fc.weight"])
            state["fc.weight"] = state["fc.weight"] * np.float32(0.9)
            db.checkpoint({"model": state}, epoch=epoch, step=10 * epoch, metrics={"acc": epoch})
            db.log({"loss": 1 / epoch, "bad": float("nan")}, step=epoch)
        db.tag("best", 6)
        lake = db.lake("docs", dim=8)
        centres = rng.standard_normal((6, 8))
        for _ in range(3):
            rows = centres[rng.integers(0, 6, 60)] + rng.standard_normal((60, 8)) * 0.05
            lake.add_splats(rows.astype(np.float32), kappa=rng.uniform(1, 50, 60), epoch=EPOCHS)
            lake.consolidate(method="sandpile", min_cos=0.95)


def add_hostile_names(path: Path) -> None:
    """Names and metadata that are markup, turn the direction of writing, or are very long."""
    with mldb.open(path, durability="os", background_compaction=False) as db:
        db.store_tensor(HOSTILE, np.arange(5.0), {"layer": TURNED, "note": "y" * 10_000})
        db.store_tensor("q\"uote' & <i>", np.array([1, np.nan, np.inf]))
        db.store_tensor("N" * 255, np.zeros(3))
        db.create_relationship(HOSTILE, "a\u2066b</svg>", 'k"<ind>')
        db.tag(HOSTILE)
        db.log({HOSTILE: 1.0})
        db.lake("</title><b>", dim=2).add_splats(np.eye(2, dtype=np.float32))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, made once; nobody writes to it."""
    path = tmp_path_factory.mktemp("report") / "run"
    record_run(path)
    return path


@pytest.fixture(scope="session")
def hostile_store(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with names that would break a page."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(recorded, path)
    add_hostile_names(path)
    return path


@pytest.fixture(scope="session")
def hostile_page(hostile_store: Path) -> ReportMade:
    """The page of it."""
    with mldb.open(hostile_store, mode="r") as db:
        return make_report(db)
