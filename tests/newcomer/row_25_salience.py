"""A salience that my training changes while a pass runs.

It is the loss of each row, which I update after each batch. Elsewhere ``provenance()`` told other
rows than those that the batch had, and after a look at the next pass the running one broke off. I
expect the plan of a pass to stand from its beginning to its end, and the next pass to go by the new
losses.
"""

import tempfile
from typing import Any

import numpy as np

import mldb

EXPECTED = """\
batches told right: 10 of 10
asked in two passes: 2 times
next pass, rows of the upper half: all
"""


def main(path: str) -> None:
    """Change it in every step."""
    rows = np.random.default_rng(0).standard_normal((200, 8), dtype=np.float32)
    losses = np.ones(200)
    asked = []

    def salience(ids: Any) -> Any:
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
            if number == 3:
                next(iter(loader))  # a look at what the next pass would begin with
            told = loader.dataset.provenance(number, pass_number=0)["id"].tolist()
            right += told == batch.id.tolist()
        print(f"batches told right: {right} of {len(loader)}")
        print(f"asked in two passes: {len(asked)} times")
        assert (right, asked) == (10, [200, 200])
        upper = all((batch.id >= 100).all() for batch in loader)
        print("next pass, rows of the upper half:", "all" if upper else "not all")
        assert upper
        assert len(asked) == 3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
