"""What workers need of a lake is made once, in the parent: forked or spawned, read-only or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mldb

_SCRIPT = """
import os, sys
import mldb
from mldb.lake.augment import graph_store, landscape

store, log, mode, how, what, cache = sys.argv[1:7]

def note(name, function):
    def noted(*args, **kwargs):
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {name}\\n")
        return function(*args, **kwargs)
    return noted

def count(worker=None):
    graph_store.build_graph = note("graph", graph_store.build_graph)
    landscape.lake_bandwidth = note("bandwidth", landscape.lake_bandwidth)
    landscape.nearest_labels = note("labels", landscape.nearest_labels)

if __name__ == "__main__":
    count()
    with mldb.open(store, mode=mode, lake_cache_bytes=int(cache)) as db:
        loader = db.lake().export_to_dataloader(
            32,
            num_workers=2,
            generate_samples=mldb.Augmentation(mode=what),
            device="numpy",
            loader={"multiprocessing_context": how, "worker_init_fn": count},
        )
        for _ in range(2):
            print(sum(len(batch) for batch in loader))
    print(os.getpid())
"""


@pytest.mark.slow
@pytest.mark.parametrize("cache", [1 << 28, 0], ids=["cached", "no cache"])
@pytest.mark.parametrize(
    ("how", "mode", "what"),
    [
        ("fork", "r", "walk"),
        ("fork", "rw", "langevin"),
        ("spawn", "r", "walk"),
        ("spawn", "r", "langevin"),
        pytest.param("spawn", "rw", "langevin", marks=pytest.mark.large),
    ],
)
def test_no_worker_builds_what_the_parent_has_built(
    cache: int, mode: str, how: str, what: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """A read-only store has no hints, a small cache no room: each worker built it every pass."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(_SCRIPT)
    with mldb.open(tmp_path / "store", durability="os") as db:
        lake = db.lake(dim=12)
        for _ in range(2):
            lake.add_splats(rng.standard_normal((90, 12)), labels=rng.integers(-1, 3, 90))
        lake.remove([4])
    arguments = [str(tmp_path / "store"), str(log), mode, how, what, str(cache)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *counts, parent = done.stdout.split()
    assert counts == ["179", "179"]
    made = [line.split() for line in log.read_text().splitlines()]
    assert [name for pid, name in made if pid == parent].count("graph") == 1
    assert {name for pid, name in made if pid != parent} == set()
