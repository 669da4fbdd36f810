"""Files of others into a store and back: safetensors, npz, torch.save, sharded repositories.

Run it anywhere: python examples/import_export.py [folder]
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

import mldb


def main(folder: str) -> nn.Module:
    """Bring a model from a .pt file, change it, and hand it on in three formats."""
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, f"{folder}/last.pt")

    # The tensors alone; nothing in the file is run, whoever made it.
    report = mldb.import_file(
        f"{folder}/store", f"{folder}/last.pt", strip_prefix="state_dict/", epoch=3
    )
    print(f"{report.tensors} tensors as epoch {report.epoch}; left out: {report.left_out}")

    with mldb.open(f"{folder}/store") as db:
        db.store_tensor("2.bias", torch.zeros(64), {"why": "reset"}, epoch=4)
        for path in ("model.safetensors", "model.npz"):
            written = mldb.export_file(db, f"{folder}/{path}")
            print(f"{path}: {written.bytes:,} bytes of epoch {written.epoch}")
        # As it was before the change, in shards and an index, as transformers reads them.
        written = mldb.export_file(db, f"{folder}/shards", as_of=3, shard_bytes=100_000)
        print(f"shards of epoch {written.epoch}: {', '.join(written.shards)}")

    back = mldb.import_file(f"{folder}/store", f"{folder}/shards", epoch=5)
    with mldb.open(f"{folder}/store", mode="r") as db:
        model.load_state_dict(db.state_dict())
        same = torch.equal(model.state_dict()["2.bias"], db.state_dict(as_of=3)["2.bias"])
        print(f"epoch {back.epoch} has the bias of epoch 3 again: {same}")
    return model


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "import_export_files")
