"""Settings that would do nothing are refused by name.

I set ``strength`` for walks for a week, and every run was the same. I expect to be told, at the
call, and by the name of the setting.
"""

import tempfile
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
strength: refused by name
k: refused by name
steps: refused by name
method: refused by name
draws: refused by name
target: refused by name
gamma: refused by name
floor: refused by name
window_rows: refused by name
hot_bytes: refused by name
salience: refused by name
"""


def attempts(lake: mldb.Lake) -> dict[str, Any]:
    """What somebody set, by the setting that says nothing there."""

    def stream(importance: Any = False, **options: Any) -> Any:
        return lake.export_to_dataloader(10, importance_sampling=importance, **options)

    draw = mldb.Importance
    return {
        "strength": lambda: mldb.Augmentation(mode="walk", strength=0.5),
        "k": lambda: mldb.Augmentation(mode="walk", k=31),
        "steps": lambda: mldb.Augmentation(mode="isotropic", steps=40),
        "method": lambda: mldb.Augmentation(mode="isotropic", method="mala"),
        "draws": lambda: stream(draw(beta=1, replacement="bottom_k")),
        "target": lambda: stream(draw(beta=1, target="rows")),
        "gamma": lambda: stream(draw(gamma=1)),
        "floor": lambda: stream(draw(floor=0.5)),
        "window_rows": lambda: stream(window_rows=512),
        "hot_bytes": lambda: stream(hot_bytes=1 << 20, device="numpy"),
        "salience": lambda: stream(salience="age"),
    }


def main(path: str) -> None:
    """Try each of them."""
    rows = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows, columns={"age": np.arange(60)})
        for setting, attempt in attempts(lake).items():
            try:
                attempt()
            except mldb.MldbError as error:
                assert setting in str(error), error
                print(f"{setting}: refused by name")
            else:
                raise AssertionError(f"{setting} was taken and does nothing")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
