"""Mistakes of a first week, and what the messages say.

Elsewhere they ended in a ValueError of torch, in a RecursionError, or in advice that did not help:
"save the tensor" among two hundred, "pass a higher epoch" where that was refused as well. I expect
an ``mldb.MldbError`` each time, that it names the thing, and advice that I can follow.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch

import mldb

EXPECTED = """\
lazy layer: InvalidTypeError names 'lazy'
nested tensor: InvalidTypeError names 'ragged'
one of many tensors: InvalidTypeError names 'layer.17'
metrics: InvalidTypeError names 'metrics'
epoch: EpochOrderError names 'rewind'
long path: StorageIOError names 'too long'
the store is as it was: epoch 5, ['layer.0']
"""


def mistakes(db: mldb.MLDatabase, folder: str) -> dict[tuple[str, str], Callable[[], Any]]:
    """What somebody did, and the word that helps."""
    layers = {f"layer.{number}": torch.zeros(2) for number in range(20)}
    layers["layer.17"] = torch.zeros(2, device="meta")
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3))
    with warnings.catch_warnings():  # torch says that the interface is a prototype
        warnings.simplefilter("ignore")
        ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    return {
        ("lazy layer", "lazy"): lambda: db.checkpoint({"model": lazy}, epoch=6),
        ("nested tensor", "ragged"): lambda: db.checkpoint({"ragged": ragged}, epoch=6),
        ("one of many tensors", "layer.17"): lambda: db.checkpoint(layers, epoch=6),
        ("metrics", "metrics"): lambda: db.checkpoint(
            {"layer.0": torch.ones(2)}, epoch=6, metrics={"loss": object()}
        ),
        ("epoch", "rewind"): lambda: db.checkpoint({"layer.0": torch.ones(2)}, epoch=3),
        ("long path", "too long"): lambda: mldb.open(folder + "/deep" * 1000),
    }


def main(path: str) -> None:
    """Make each mistake and read the message."""
    folder = f"{path}-elsewhere"
    with mldb.open(path) as db:
        db.checkpoint({"layer.0": torch.zeros(2)}, epoch=5)
        for (title, word), call in mistakes(db, folder).items():
            try:
                call()
            except mldb.MldbError as error:
                assert word in str(error).lower(), error
                print(f"{title}: {type(error).__name__} names {word!r}")
        print(f"the store is as it was: epoch {db.epoch}, {list(db)}")
    assert not os.path.exists(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"{folder}/store")
