"""A model that was built on the meta device is filled from a checkpoint.

Large models are built without memory first. Elsewhere loading into such a model returned normally
and did nothing: the first forward pass failed. I expect an error that tells me what to do, and that
what it tells me works.
"""

import tempfile

import torch

import mldb

EXPECTED = """\
refused, and the message names assign=True and to_empty
<LoadReport 4 loaded>
device: cpu, trainable: True
"""


def build() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))


def main(path: str) -> None:
    """Load into a model without memory."""
    trained = build()
    with torch.device("meta"):
        model = build()
    with mldb.open(path) as db:
        db.checkpoint({"model": trained}, epoch=1)
        try:
            db.load({"model": model})
        except mldb.MldbError as error:
            assert "assign=True" in str(error)
            assert "to_empty" in str(error)
            print("refused, and the message names assign=True and to_empty")
        assert model[0].weight.is_meta
        print(db.load({"model": model}, assign=True))
    x = torch.randn(2, 4)
    assert torch.equal(model(x), trained(x))
    model(x).sum().backward()
    assert model[0].weight.grad is not None
    print(f"device: {model[0].weight.device}, trainable: {model[0].weight.requires_grad}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
