"""A checkpoint in the body of the last step, and what a resumed run begins with.

I save the loader's state after each step, in the loop. After the last step of an epoch it named a
batch behind the end elsewhere: the resumed run had an empty epoch first, and its learning rate
schedule was one epoch off from then on. I expect the first batch of the next pass.
"""

import tempfile

import numpy as np

import mldb

EXPECTED = """\
epoch 0: 5 batches
resumed: 5 batches, as the run that was not stopped
"""


def main(path: str) -> None:
    """Save in the last step, go on in another process, as it were."""
    rows = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows)
        loader = lake.export_to_dataloader(10, fields=("id",), seed=3)
        steps = 0
        for _ in loader:
            steps += 1
            state = loader.state_dict()  # the last one that is kept is of the last step
        print("epoch 0:", steps, "batches")
        next_epoch = [batch.id.tolist() for batch in loader]

    with mldb.open(path, mode="r") as db:
        resumed = db.lake("rows").export_to_dataloader(10, fields=("id",), seed=3)
        resumed.load_state_dict(state)
        assert len(resumed) == 5
        found = [batch.id.tolist() for batch in resumed]
    print("resumed:", len(found), "batches, as the run that was not stopped")
    assert found == next_epoch


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
