"""Two iterations over one loader, side by side.

I zip a loader with itself to make pairs, and look at the first batch in the middle of an epoch for
a plot. torch's loaders allow both. Elsewhere the second iteration ended the first: one pair of
five.
"""

import tempfile

import numpy as np

import mldb

EXPECTED = """\
pairs: 5
batches of an epoch with a look in between: 5
rows of that epoch: 50 different ones
"""


def main(path: str) -> None:
    """Five batches of ten rows."""
    rows = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows)
        loader = lake.export_to_dataloader(10, fields=("mu", "id"))
        pairs = len(list(zip(loader, loader, strict=True)))
        print("pairs:", pairs)
        seen = []
        for number, batch in enumerate(loader):
            if number == 2:
                look = next(iter(loader))
                assert look.mu.shape == (10, 8)
            seen.append(batch.id.tolist())
        print("batches of an epoch with a look in between:", len(seen))
        different = {row for batch in seen for row in batch}
        print("rows of that epoch:", len(different), "different ones")
    assert pairs == len(seen) == 5
    assert different == set(range(50))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
