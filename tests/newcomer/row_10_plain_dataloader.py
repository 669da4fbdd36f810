"""A plain torch ``DataLoader`` with two workers over a lake.

Workers are copies of the dataset that is in the main process, and a copy does not know how many
epochs there were. Elsewhere every epoch had the order (and the noise) of the first. I expect that
each epoch is a pass of its own, the one that a loader without workers has, and that no row is lost
or doubled.
"""

import tempfile

import numpy as np
from torch.utils.data import DataLoader

import mldb

EXPECTED = """\
epoch 0: 60 rows, 60 different
epoch 1: 60 rows, 60 different
the same order twice: False
as without workers: True
"""


def main(path: str) -> None:
    """Two epochs with workers, two without."""
    rows = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows)
        plain = DataLoader(lake.dataset(10, fields=("id",)), batch_size=None, num_workers=2)
        epochs = [[batch.id.tolist() for batch in plain] for _ in range(2)]
        loader = lake.export_to_dataloader(10, fields=("id",))
        alone = [[batch.id.tolist() for batch in loader] for _ in range(2)]
    for number, batches in enumerate(epochs):
        ids = [row for batch in batches for row in batch]
        print(f"epoch {number}: {len(ids)} rows, {len(set(ids))} different")
        assert sorted(ids) == list(range(60))
    print("the same order twice:", epochs[0] == epochs[1])
    print("as without workers:", epochs == alone)
    assert epochs == alone


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
