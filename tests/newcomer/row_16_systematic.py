"""A systematic sample of a table whose labels go round: 0, 1, 2, ... 9, 0, 1, ...

Rows were added class by class in turn. A systematic sample takes every tenth place of the order, so
elsewhere all 500 rows of a pass had one label. I expect about 50 of each, in every pass.
"""

import tempfile

import numpy as np

import mldb

EXPECTED = """\
pass 0: 500 rows, 500 different, 10 labels, each 8 to 92 times: True
pass 1: 500 rows, 500 different, 10 labels, each 8 to 92 times: True
pass 2: 500 rows, 500 different, 10 labels, each 8 to 92 times: True
"""


def main(path: str) -> None:
    """Count labels in three passes."""
    count = 5000
    rows = np.random.default_rng(0).standard_normal((count, 8), dtype=np.float32)
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows, labels=np.arange(count) % 10)
        loader = lake.export_to_dataloader(
            100,
            fields=("id", "label"),
            importance_sampling=mldb.Importance(replacement="systematic"),
            draws=500,
        )
        for number in range(3):
            batches = list(loader)
            ids = np.concatenate([batch.id for batch in batches])
            times = np.bincount(np.concatenate([batch.label for batch in batches]), minlength=10)
            # 50 are expected; were it a simple random sample, with a deviation of 6.4.
            fair = bool((times >= 8).all() and (times <= 92).all())
            labels = np.count_nonzero(times)
            print(
                f"pass {number}: {len(ids)} rows, {len(set(ids.tolist()))} different, "
                f"{labels} labels, each 8 to 92 times: {fair}"
            )
            assert fair, times


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
