"""A sample of most rows, without replacement, where a few rows are very heavy.

Twenty crawled images stand for ten thousand copies each, 980 others for themselves. I take 900
different rows a pass, and weights that keep the mean over distinct rows. With replacement nearly
all draws would be of the twenty, and that is refused. Without, each comes once and the sample is as
good as uniform; elsewhere it was refused as if with. I expect that it is taken, and that its
weights do what they say.
"""

import tempfile
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
with replacement: refused, for its effective sample size
systematic: 900 different rows, effective size above 0.9: True, weighted mean 0.500: True
bottom_k: 900 different rows, effective size above 0.9: True, weighted mean 0.500: True
"""


def main(path: str) -> None:
    """Draw with each design."""
    rows = np.random.default_rng(0).standard_normal((1000, 8), dtype=np.float32)
    value = np.linspace(0, 1, 1000)
    alpha = np.r_[np.full(20, 1e4), np.ones(980)]
    chances: dict[str, Any] = {"beta": 1, "floor": 0.01, "target": "distinct"}
    fields = ("id", "weight")
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows, alpha=alpha)
        try:
            drawn = mldb.Importance(**chances)
            list(lake.export_to_dataloader(90, fields=fields, importance_sampling=drawn, draws=900))
        except mldb.InvalidValueError as error:
            assert "effective sample size" in str(error)
            print("with replacement: refused, for its effective sample size")
        for design in ("systematic", "bottom_k"):
            drawn = mldb.Importance(**chances | {"replacement": design})
            loader = lake.export_to_dataloader(
                90, fields=fields, importance_sampling=drawn, draws=900
            )
            ids, weights = (np.concatenate(part) for part in zip(*loader, strict=True))
            size = loader.stats()["importance"]["ess"]
            # A mean of 900 of 1,000 rows is off by .003 or so.
            near = abs(np.average(value[ids], weights=weights) - 0.5) < 0.03
            print(
                f"{design}: {len(set(ids.tolist()))} different rows, effective size above 0.9: "
                f"{size > 0.9}, weighted mean 0.500: {near}"
            )
            assert len(set(ids.tolist())) == 900
            assert size > 0.9
            assert near


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
