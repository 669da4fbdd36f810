"""What workers need of a lake is made once, in the parent: forked or pickled, read-only or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.augment import graph_store, landscape
from tests.support.workers import METHODS

COUNTED = (
    (graph_store, "build_graph", "graph"),
    (landscape, "lake_bandwidth", "bandwidth"),
    (landscape, "nearest_labels", "labels"),
)


def noted(log: Path, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Write down who calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {name}\n")
        return function(*args, **kwargs)

    return call


def count(log: Path, worker: int = -1, set_attribute: Callable[..., None] = setattr) -> None:
    """Note all that is computed in this process; the first thing that a worker does."""
    for module, attribute, name in COUNTED:
        set_attribute(module, attribute, noted(log, name, getattr(module, attribute)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("cache", [1 << 28, 0], ids=["cached", "no cache"])
@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize(("mode", "what"), [("r", "walk"), ("r", "langevin"), ("rw", "langevin")])
def test_no_worker_builds_what_the_parent_has_built(
    cache: int,
    mode: Any,
    what: Any,
    how: str,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A read-only store has no hints, a small cache no room: each worker built it every pass."""
    log = tmp_path / "log"
    with mldb.open(tmp_path / "store", durability="os") as db:
        lake = db.lake(dim=12)
        for _ in range(2):
            lake.add_splats(rng.standard_normal((90, 12)), labels=rng.integers(-1, 3, 90))
        lake.remove([4])
    count(log, set_attribute=monkeypatch.setattr)
    with mldb.open(tmp_path / "store", mode=mode, lake_cache_bytes=cache) as db:
        loader = db.lake().export_to_dataloader(
            32,
            num_workers=2,
            generate_samples=mldb.Augmentation(mode=what),
            device="numpy",
            loader={"multiprocessing_context": how, "worker_init_fn": partial(count, log)},
        )
        assert [sum(len(batch) for batch in loader) for _ in range(2)] == [179, 179]
    made = [line.split() for line in log.read_text().splitlines()]
    parent = str(os.getpid())
    assert [name for pid, name in made if pid == parent].count("graph") == 1
    assert {name for pid, name in made if pid != parent} == set()
