"""One part of a checkpoint, two saves of one epoch, types that are kept, a layer that went.

Elsewhere I had to load everything, or loosely, to get the model alone; the second save of an epoch
hid the first; my named tuple came back as a tuple; and a layer that I had thrown out still stood
among today's tensors.
"""

import tempfile
from typing import NamedTuple

import torch

import mldb

EXPECTED = """\
model alone: <LoadReport 2 loaded>
names: ['epoch-1', 'epoch-1~2', 'epoch-2']
Cursor(shard=3, row=70)
after prune: ['model/0.bias', 'model/0.weight']
as of epoch 1: ['model/0.bias', 'model/0.weight', 'model/1.bias', 'model/1.weight']
"""


class Cursor(NamedTuple):
    """Where the data loader was."""

    shard: int
    row: int


def main(path: str) -> None:
    """Three checkpoints, the last one of a smaller model."""
    layers = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    state = {"model": torch.nn.Sequential(*layers), "cursor": Cursor(3, 70)}
    x = torch.randn(3, 4)
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with mldb.open(path) as db:
        db.checkpoint(state, epoch=1)
        db.checkpoint(state, epoch=1)
        state["model"] = torch.nn.Sequential(layers[0])
        db.checkpoint(state, epoch=2, prune=True)
        print("model alone:", db.load({"model": fresh}, part=True))
        assert torch.equal(fresh(x), layers[0](x))
        names = [checkpoint.name for checkpoint in db.checkpoints()]
        print("names:", names)
        assert len(set(names)) == 3
        cursor = db.load({"cursor": Cursor(0, 0)}, part=True)["cursor"]
        print(cursor)
        assert isinstance(cursor, Cursor)
        print("after prune:", sorted(name for name in db if name.startswith("model/")))
        with db.at(1) as past:
            print("as of epoch 1:", sorted(name for name in past if name.startswith("model/")))
            assert torch.equal(torch.from_numpy(past["model/1.bias"].copy()), layers[1].bias)
        try:
            db.load({"modle": fresh}, part=True)
        except mldb.MldbError as error:
            assert "modle" in str(error)
        else:
            raise AssertionError("a part that was never saved was loaded")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
