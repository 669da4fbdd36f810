"""Rows of another dtype are written into a tensor that is made in pieces.

My labels went up to 300 and the tensor was int8. Elsewhere 300 was stored as 44, NaN as some
integer, 1e300 as infinity, and nobody said so. I expect what NumPy's casting rules allow, an error
for the rest, and ``casting=`` where I mean it.
"""

import tempfile
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
int16 into int8: refused
float64 into int64: refused
float64 into float32: refused
complex into float64: refused
1e300 into float32, same_kind: refused
nothing of these was stored: []
int8 into int16: [1 2 3]
0.1 into float32, same_kind: [0.1]
300 into int8, unsafe: [44]
"""


def write(db: mldb.MLDatabase, name: str, dtype: str, rows: Any, **options: Any) -> Any:
    with db.create_tensor(name, (len(rows),), dtype, **options) as writer:
        writer[:] = rows
    return db[name]


def main(path: str) -> None:
    """Try each cast, and look what is stored."""
    same_kind: dict[str, Any] = {"casting": "same_kind"}
    refused: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (
        ("int16 into int8", "int8", np.array([300], np.int16), {}),
        ("float64 into int64", "int64", np.array([np.nan]), {}),
        ("float64 into float32", "float32", np.array([0.1]), {}),
        ("complex into float64", "float64", np.array([1 + 2j]), {}),
        ("1e300 into float32, same_kind", "float32", np.array([1e300]), same_kind),
    )
    with mldb.open(path) as db:
        for title, dtype, rows, options in refused:
            try:
                write(db, "t", dtype, rows, **options)
            except mldb.MldbError as error:
                assert "'t'" in str(error)
                print(f"{title}: refused")
        print("nothing of these was stored:", list(db))
        print("int8 into int16:", write(db, "a", "int16", np.array([1, 2, 3], np.int8)))
        print(
            "0.1 into float32, same_kind:", write(db, "b", "float32", np.array([0.1]), **same_kind)
        )
        wrapped = write(db, "c", "int8", np.array([300]), casting="unsafe")
        print("300 into int8, unsafe:", wrapped)
        assert db["b"][0] == np.float32(0.1)
        assert list(db) == ["a", "b", "c"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
