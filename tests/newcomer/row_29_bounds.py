"""Numbers at the edge: right, or an error that names them.

Elsewhere a row number beyond the end gave the last row, -1 was called damage ("restore from a
backup"), a ``kappa`` of text was taken, ``strength=0.3`` gave a mean cosine of 0.12, a resumed
loader had the length of a whole pass, and a state at batch 10^12 was loaded.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import mldb

EXPECTED = """\
row 300: InvalidValueError
row -1: InvalidValueError
kappa of text: InvalidTypeError
kappa complex: InvalidTypeError
a state at batch 10^12: InvalidValueError
a writer inside itself: UsageError
chains between two rows: InvalidValueError
bfloat16 rows: 300
mean cosine near 0.3: True
left after 2 of 6 batches: 4
"""


def refusals(db: mldb.MLDatabase, lake: mldb.Lake, rows: Any) -> dict[str, Callable[[], Any]]:
    """What has to be refused."""
    loader = lake.export_to_dataloader(50)
    far = loader.state_dict() | {"cursor": 10**12}

    def nested() -> None:
        writer = db.create_tensor("t", (2,), "float32")
        with writer, writer:
            pass

    def two_rows() -> None:
        two = db.lake("two", dim=16)
        two.add_splats(rows[:2])
        list(two.export_to_dataloader(2, generate_samples=mldb.Augmentation(mode="langevin")))

    return {
        "row 300": lambda: lake.rows().gather("mu", np.array([300])),
        "row -1": lambda: lake.rows().gather("mu", np.array([-1])),
        "kappa of text": lambda: lake.add_splats(rows, kappa="3"),
        "kappa complex": lambda: lake.add_splats(rows, kappa=3 + 1j),
        "a state at batch 10^12": lambda: loader.load_state_dict(far),
        "a writer inside itself": nested,
        "chains between two rows": two_rows,
    }


def main(path: str) -> None:
    """Try the edges, then what is right."""
    rows = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=16)
        lake.add_splats(rows)
        for title, attempt in refusals(db, lake, rows).items():
            try:
                attempt()
            except mldb.MldbError as error:
                print(f"{title}: {type(error).__name__}")
            else:
                raise AssertionError(f"{title} was taken")
        brain = db.lake("brain", dim=16)
        print("bfloat16 rows:", len(brain.add_splats(rows.astype(ml_dtypes.bfloat16))))
        chains = mldb.Augmentation(mode="langevin", strength=0.3, keep=True)
        loader = lake.export_to_dataloader(100, generate_samples=chains, device="numpy")
        pairs = np.concatenate([batch.numpy().reshape(-1, 2, 16) for batch in loader])
        mean = (pairs[:, 0] * pairs[:, 1]).sum(1).mean()
        print("mean cosine near 0.3:", abs(mean - 0.3) < 0.1)
        assert abs(mean - 0.3) < 0.1, mean
        state = lake.export_to_dataloader(50)
        batches = iter(state)
        next(batches), next(batches)
        resumed = lake.export_to_dataloader(50)
        resumed.load_state_dict(state.state_dict())
        print("left after 2 of 6 batches:", len(resumed))
        assert len(resumed) == len(list(resumed)) == 4


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
