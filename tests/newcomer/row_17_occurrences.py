"""A row that is drawn many times in a pass is augmented differently each time.

One row stands for many (its mass is large), so that it is drawn hundreds of times with replacement.
Elsewhere all of its augmentations were one and the same row, and the augmentation did nothing. I
expect noise of its own for each draw, and the same noise again after a resume.
"""

import tempfile
from typing import Any

import numpy as np
import torch

import mldb

EXPECTED = """\
the heavy row was drawn often: True
different augmentations of it: all
after a resume: the same batches
"""


def main(path: str) -> None:
    """Count the different augmentations of one row."""
    rows = np.random.default_rng(0).standard_normal((400, 16), dtype=np.float32)
    alpha = np.ones(400)
    alpha[7] = 400
    settings: dict[str, Any] = {
        "fields": ("mu", "id"),
        "importance_sampling": mldb.Importance(beta=1),
        "generate_samples": True,
        "device": "numpy",
    }
    with mldb.open(path) as db:
        lake = db.lake("rows", dim=16)
        lake.add_splats(rows, alpha=alpha)
        loader = lake.export_to_dataloader(50, **settings)
        batches = []
        for batch in loader:
            batches.append(batch)
            if len(batches) == 3:
                state = loader.state_dict()
        drawn = torch.cat([batch.mu[batch.id == 7] for batch in batches])
        print("the heavy row was drawn often:", len(drawn) > 100)
        different = len(torch.unique(drawn, dim=0))
        print("different augmentations of it:", "all" if different == len(drawn) else different)
        assert different == len(drawn) > 100
        resumed = lake.export_to_dataloader(50, **settings)
        resumed.load_state_dict(state)
        for again, first in zip(resumed, batches[3:], strict=True):
            assert torch.equal(again.mu, first.mu)
        print("after a resume: the same batches")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
