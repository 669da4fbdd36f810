"""Things that a user hands in without a thought.

A batch size out of NumPy, a dtype by its name, ``~`` in a path, an empty path out of an unset
variable, a transaction that a helper thread goes on with, a machine whose clock was years ahead
once. Elsewhere they were refused, or did something else in silence. I expect that they are taken,
refused, or said.
"""

import os
import tempfile
import threading
import warnings
from datetime import UTC, datetime
from unittest import mock

import numpy as np

import mldb

EXPECTED = """\
batch: (4, 8)
dtype: bfloat16
home: True
empty path: InvalidNameError
another thread: UsageError
as_of=now, after a commit of the year 2100: a warning
"""


def main(path: str) -> None:
    """Do each of them."""
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(np.eye(8, dtype=np.float32))
        batch_size, seed = np.array([4, 7])  # out of a table of settings
        loader = lake.export_to_dataloader(batch_size, seed=seed)
        print("batch:", tuple(next(iter(loader)).shape))
        with db.create_tensor("half", (2,), "bfloat16") as writer:
            writer[:] = [1, 2]
        print("dtype:", db["half"].dtype)
    with mock.patch.dict(os.environ, {"HOME": path + "-home"}), mldb.open("~/run") as db:
        print("home:", os.path.samefile(db.path, path + "-home/run") and not os.path.exists("~"))
    try:
        mldb.open(os.environ.get("RUN_FOLDER_THAT_IS_NOT_SET", ""))
    except mldb.MldbError as error:
        print("empty path:", type(error).__name__)
    with mldb.open(path) as db:
        refused: list[str] = []

        def helper() -> None:
            try:
                txn.store_tensor("x", np.ones(2))
            except mldb.MldbError as error:
                refused.append(type(error).__name__)

        with db.transaction() as txn:
            thread = threading.Thread(target=helper)
            thread.start()
            thread.join()
        print("another thread:", *refused)
        assert "x" not in db
        wrong = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp() * 1e9)
        with mock.patch("time.time_ns", return_value=wrong):
            db["x"] = np.ones(2)
        db["y"] = np.ones(2)
        assert db.stats()["head_ahead_seconds"] > 3600 * 24 * 365
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with db.at(datetime.now(UTC)) as now:
                assert "y" not in now
        print("as_of=now, after a commit of the year 2100:", "a warning" if caught else "silence")
        assert caught


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
