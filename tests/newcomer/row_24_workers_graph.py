"""Walks with two workers: the neighbour graph is made once.

A walk goes along the graph of nearest neighbours, which takes a while to make. Elsewhere each
worker made it again in each pass: the epochs began with 5 to 18 seconds of nothing. I look at the
processor time of the workers, which no other program on this machine adds to.
"""

import resource
import tempfile
import time
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
pass 0: 3000 rows, workers made no graph: True
pass 1: 3000 rows, workers made no graph: True
"""


def worker_seconds() -> float:
    """Processor time of the workers that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(path: str) -> None:
    """Time the graph once, then two passes with workers."""
    rows = np.random.default_rng(0).standard_normal((3000, 640), dtype=np.float32)
    walk = mldb.Augmentation(mode="walk")
    with mldb.open(path) as db:
        db.lake("rows").add_splats(rows)
    # Who only reads leaves no graph on the disk, and with so little memory keeps none either.
    poor: Any = {"mode": "r", "lake_cache_bytes": 1 << 16}
    with mldb.open(path, **poor) as db:
        started = time.process_time()
        db.lake("rows").augment(rows[:1], mode="walk", device="numpy")
        graph = time.process_time() - started
    with mldb.open(path, **poor) as db:
        lake = db.lake("rows")
        loader = lake.export_to_dataloader(
            300, generate_samples=walk, device="numpy", num_workers=2
        )
        for number in range(2):
            before = worker_seconds()
            count = sum(len(batch) for batch in loader)
            spent = worker_seconds() - before
            print(f"pass {number}: {count} rows, workers made no graph: {spent < graph}")
            assert spent < graph, (spent, graph)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
