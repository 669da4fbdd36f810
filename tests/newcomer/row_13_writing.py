"""Tensors that may be written to, and arrays that may not.

``torch.from_numpy(db["big"]).add_(1)`` takes no notice of NumPy's read-only flag; elsewhere the
process was gone without a word. The documentation says: take ``.torch()``, ``state_dict`` or
``load``, or open the store with ``arrays="private"``. I do all of that, and look whether the file
changed.
"""

import tempfile
import warnings

import numpy as np
import torch

import mldb

EXPECTED = """\
.torch(): 2.0
state_dict: 2.0
load: 2.0
private array: 2.0
read-only: True
stored: 1.0 to 1.0, verified: True
"""


def main(path: str) -> None:
    """Write to everything that one may write to."""
    ones = torch.ones(1 << 20)
    with mldb.open(path) as db:
        db.checkpoint({"big": ones}, epoch=1)
        tensor = db.tensor("big").torch()
        tensor.add_(1)
        print(".torch():", tensor.mean().item())
        state = db.state_dict()["big"].add_(1)
        print("state_dict:", state.mean().item())
        loaded = db.load(None)["big"].add_(1)
        print("load:", loaded.mean().item())
    with mldb.open(path, arrays="private") as db, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the flag, once
        mine = torch.from_numpy(db["big"]).add_(1)
        print("private array:", mine.mean().item())
    with mldb.open(path, mode="r") as db:
        stored = db["big"]
        try:
            stored[0] = 5
        except ValueError:
            print("read-only:", not stored.flags.writeable)
        print(f"stored: {stored.min()} to {stored.max()}, verified: {db.verify().ok}")
        assert np.array_equal(stored, ones.numpy())
    assert tensor.mean() == state.mean() == loaded.mean() == mine.mean() == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
