"""The first rows of a lake do not fit under the quota; the lake is not there then.

The error says that nothing was stored. I free space, notice that my rows have 8 numbers and not
640, and begin again. Elsewhere an empty lake of 640 dimensions stood there already, for ever. I
expect that "nothing was stored" is true.
"""

import resource
import tempfile

import numpy as np

import mldb

EXPECTED = """\
StorageFullError
lakes: []
commits since: 0
second try: 5 rows of 8 numbers
"""


def main(path: str) -> None:
    """Fail once, then do it right."""
    rows = np.random.default_rng(0).standard_normal((2000, 640), dtype=np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mldb.open(path) as db:
        before = db.lsn
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # a quota, in small
        try:
            db.lake("rows").add_splats(rows)
        except mldb.MldbError as error:
            print(type(error).__name__)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        print("lakes:", db.lakes())
        print("commits since:", db.lsn - before)
        assert db.lakes() == []
        assert db.lsn == before
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows[:5, :8])
        print(f"second try: {len(lake)} rows of {lake.dim} numbers")
        assert len(lake) == 5


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
