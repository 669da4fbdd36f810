"""The first rows of a lake fail; the lake is not there then.

I got the epoch wrong in my first ``add_splats``, saw "nothing was stored", noticed that my rows have 8 numbers
and not 16, and began again. Elsewhere an empty lake of 16 dimensions stood there already, for ever. I
expect that "nothing was stored" is true.
"""

import tempfile

import numpy as np

import mldb

EXPECTED = """\
EpochOrderError
lakes: []
commits since: 0
second try: 5 rows of 8 numbers
"""


def main(path: str) -> None:
    """Fail once, then do it right."""
    with mldb.open(path) as db:
        db.store_tensor("t", np.ones(2), epoch=5)
        before = db.lsn
        try:
            db.lake("rows", dim=16).add_splats(np.ones((3, 16)), epoch=1)
        except mldb.EpochOrderError as error:
            print(type(error).__name__)
        print("lakes:", db.lakes())
        assert db.lakes() == []
        print("commits since:", db.lsn - before)
        lake = db.lake("rows", dim=8)
        lake.add_splats(np.random.default_rng(0).standard_normal((5, 8)), epoch=5)
        print(f"second try: {len(lake)} rows of {lake.dim} numbers")
        assert db.lakes() == ["rows"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
