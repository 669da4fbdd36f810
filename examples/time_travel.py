"""Read any tensor as of any epoch, time or tag; compare epochs; go back and go on from there.

python examples/time_travel.py [new store]
"""

from __future__ import annotations

import sys

import numpy as np

import mldb


def main(path: str = "time_travel_store") -> None:
    """Write a short history, then travel through it."""
    rng = np.random.default_rng(0)
    weights = np.zeros((4, 3), np.float32)
    with mldb.open(path) as db:
        for epoch in range(1, 6):
            weights += rng.standard_normal(weights.shape).astype(np.float32)
            with db.transaction(epoch) as txn:  # both tensors or none, for every reader
                txn.store_tensor("layer/weight", weights, {"role": "weights"})
                txn.store_tensor("layer/bias", weights.sum(0))
        db.tag("trained")

        # As of an epoch, a tag, or a moment. Reading the past costs what reading today's costs.
        second = db.query_tensor("layer/weight", as_of=2)
        moment = db.history("layer/weight")[1].time
        assert np.array_equal(second, db.query_tensor("layer/weight", as_of=moment))
        assert np.array_equal(db["layer/weight"], db.query_tensor("layer/weight", as_of="trained"))

        for version in db.history("layer/weight"):
            norm = np.linalg.norm(db.query_tensor("layer/weight", as_of=version.lsn))
            print(f"epoch {version.epoch}: {version.shape} {version.dtype}, norm {norm:.3f}")

        # A snapshot is the whole read surface, fixed at one commit.
        with db.at(2) as old, db.at("trained") as new:
            changed = [name for name in new if not np.array_equal(old[name], new[name])]
            print(f"changed between epochs {old.epoch} and {new.epoch}: {changed}")

        # Epoch 2 becomes the head again. Epochs 3 to 5 stay readable by tag and by LSN.
        db.rewind(2)
        assert np.array_equal(db["layer/weight"], second)
        db.store_tensor("layer/weight", second * 0.5, epoch=3)
        assert not np.array_equal(db["layer/weight"], second)
        assert np.array_equal(db.query_tensor("layer/weight", as_of="trained"), weights)
        print("events:", [type(event).__name__ for event in db.events()][-4:])


if __name__ == "__main__":
    main(*sys.argv[1:2])
