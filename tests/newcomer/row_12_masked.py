"""Masked arrays do not go into a lake as if nothing were masked.

My pipeline masks what the sensor did not see. Elsewhere the mask was dropped, and the fill values
became embeddings, labels and columns. I expect that they are refused everywhere, with the way out,
and that the way out works.
"""

import tempfile
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
rows: refused
labels: refused
kappa: refused
columns: refused
store_tensor: refused
stored so far: 0 rows, []
with filled labels: 3 rows, labels [0, -1, 2]
"""


def main(path: str) -> None:
    """Hand in a mask at every door."""
    rows = np.eye(3, 4, dtype=np.float32)
    masked = np.ma.masked_array(rows, rows > 0.5)
    three = np.ma.masked_array([0, 1, 2], [False, True, False])
    doors: dict[str, tuple[Any, dict[str, Any]]] = {
        "rows": (masked, {}),
        "labels": (rows, {"labels": three}),
        "kappa": (rows, {"kappa": three + 1.0}),
        "columns": (rows, {"columns": {"age": three}}),
    }
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=4)
        for door, (mu, columns) in doors.items():
            try:
                lake.add_splats(mu, **columns)
            except mldb.MldbError as error:
                assert "mask" in str(error)
                print(f"{door}: refused")
        try:
            db.store_tensor("t", masked)
        except mldb.MldbError as error:
            assert "mask" in str(error)
            print("store_tensor: refused")
        print(f"stored so far: {len(lake)} rows, {list(db)}")
        lake.add_splats(rows, labels=three.filled(-1))
        labels = lake.get(fields=("label",))["label"].tolist()
        print(f"with filled labels: {len(lake)} rows, labels {labels}")
        assert labels == [0, -1, 2]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
