"""An optimizer's state finds its parameters by their names.

The model of today defines its layers in another order than the one of the checkpoint. torch numbers
the parameters of an optimizer, so elsewhere the decoder got the moments of the encoder. Both sides
gave their optimizers names (``model.named_parameters()``), so I expect that each name gets its own.
Another shape, or the state of
another kind of optimizer, is refused at once, not by ``step()`` an hour later.
"""

import tempfile
from typing import Any

import torch

import mldb

EXPECTED = """\
encoder: its own moments True
decoder: its own moments True
another shape: refused, and it still takes a step
another kind: refused, and it still takes a step
"""


def build(*layers: str, width: int = 3) -> tuple[Any, torch.optim.Adam]:
    """A model and its optimizer after one step; each layer has gradients of its own."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(width, 3) for name in layers})
    optimizer = torch.optim.Adam(model.named_parameters())
    for layer in model.values():
        (torch.rand(()) * layer(torch.rand(4, width))).sum().backward()
    optimizer.step()
    return model, optimizer


def main(path: str) -> None:
    """Save in one order, load in another."""
    old_model, old = build("encoder", "decoder")
    model, optimizer = build("decoder", "encoder")
    with mldb.open(path) as db:
        db.checkpoint({"model": old_model, "optimizer": old}, epoch=1)
        db.load({"model": model, "optimizer": optimizer})
        for name in ("encoder", "decoder"):
            found = optimizer.state[model[name].weight]["exp_avg"]
            own = torch.equal(found, old.state[old_model[name].weight]["exp_avg"])
            print(f"{name}: its own moments {own}")
            assert own
        wider, its_optimizer = build("encoder", "decoder", width=5)
        plain = torch.optim.SGD(model.named_parameters(), lr=0.1)
        try:
            db.load({"optimizer": plain}, part=True)
        except mldb.MldbError as error:
            assert "SGD" in str(error)
        else:
            raise AssertionError("the options of Adam were taken for SGD")
        try:
            db.load({"optimizer": its_optimizer}, part=True)
        except mldb.MldbError as error:
            assert "encoder.weight" in str(error)
        else:
            raise AssertionError("moments of another shape were taken")
    wider["encoder"](torch.rand(4, 5)).sum().backward()
    its_optimizer.step()
    print("another shape: refused, and it still takes a step")
    plain.step()
    print("another kind: refused, and it still takes a step")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
