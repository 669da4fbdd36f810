"""A small lake, and streams of every kind over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb

DIM, ROWS, BATCH = 16, 500, 32

KINDS: dict[str, dict[str, Any]] = {
    "sequential": {"shuffle": False},
    "permutation": {"order": "permutation"},
    "windowed": {"order": "windowed", "window_rows": 1024},
    "drawn": {"importance_sampling": mldb.Importance(beta=0.5)},
    "systematic": {
        "importance_sampling": mldb.Importance(beta=0.5, replacement="systematic"),
        "draws": 300,
    },
    "bottom_k": {
        "importance_sampling": mldb.Importance(beta=0.5, replacement="bottom_k"),
        "draws": 300,
    },
    "isotropic": {"generate_samples": True},
    "copies": {"generate_samples": mldb.Augmentation(copies=3, keep=True)},
    "walk": {"generate_samples": mldb.Augmentation(mode="walk")},
    "langevin": {"generate_samples": mldb.Augmentation(mode="langevin", steps=3)},
}


@pytest.fixture
def data(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mu": rng.standard_normal((ROWS, DIM)),
        "alpha": rng.integers(1, 9, ROWS),
        "labels": rng.integers(0, 3, ROWS),
    }


def fill(db: mldb.MLDatabase, data: dict[str, Any], parts: int = 1, name: str = "default") -> Any:
    """Store the rows, cut into as many additions."""
    lake = db.lake(name, dim=DIM)
    for rows in np.array_split(np.arange(ROWS), parts):
        lake.add_splats(**{key: value[rows] for key, value in data.items()})
    return lake


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def stream(lake: Any, kind: str = "permutation", **options: Any) -> Any:
    chosen = {"device": "numpy", "seed": 5, **KINDS[kind], **options}
    return lake.export_to_dataloader(BATCH, **chosen)


def raw(batches: Any) -> list[bytes]:
    return [batch.numpy().tobytes() for batch in batches]
