"""A salience that my training changes while a pass runs.

It is the loss of each row, which I update after each batch. Elsewhere ``provenance()`` told other rows than
those that the batch had, and the function was called three times where the docs say once. I expect
the plan of a pass to stand from its beginning to its end, and the next pass to go by the new losses.
"""

import tempfile

import numpy as np

import mldb

EXPECTED = """\
batches told right: 10 of 10
asked: 1 time
next pass, rows of the upper half: all
"""


def main(path: str) -> None:
    """Change it in every step."""
    rows = np.random.default_rng(0).standard_normal((200, 8), dtype=np.float32)
    losses = np.ones(200)
    asked = []

    def salience(ids: np.ndarray) -> np.ndarray:
        asked.append(len(ids))
        return losses[ids].copy()

    with mldb.open(path) as db:
        lake = db.lake("rows", dim=8)
        lake.add_splats(rows)
        loader = lake.export_to_dataloader(
            20,
            fields=("mu", "id"),
            importance_sampling=mldb.Importance(gamma=1, floor=0),
            salience=salience,
        )
        right = 0
        for number, batch in enumerate(loader):
            losses[:] = 0
            losses[100 + number :] = 1 + number
            told = loader.dataset.provenance(number)["id"].tolist()
            right += told == batch.id.tolist()
        print(f"batches told right: {right} of 10")
        print(f"asked: {len(asked)} time")
        assert (right, asked) == (10, [200])
        upper = all((batch.id >= 100).all() for batch in loader)
        print("next pass, rows of the upper half:", "all" if upper else "not all")
        assert upper
        assert len(asked) == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
