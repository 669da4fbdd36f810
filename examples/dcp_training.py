"""Train a sharded model on two processes, save and load it with torch.distributed.checkpoint.

Each rank writes its shards into one store, side by side, and a checkpoint comes to exist by one
commit. Start it again and it goes on; afterwards one process reads the same checkpoints, whole:
python examples/dcp_training.py [store] [epochs]
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mldb
from mldb.adapters.dcp import StorageReader, StorageWriter, list_checkpoints

RANKS = 2


def train(rank: int, store: str, meeting: str, epochs: int) -> None:
    """Be one rank: go on after the newest checkpoint, and save one every epoch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x = torch.randn(256, 16)
    y = x.square().sum(1, keepdim=True).sqrt()

    def state(epoch: int) -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments, "epoch": epoch}

    done = 0
    if Path(store).exists():
        saved = state(0)
        dcp.load(saved, storage_reader=StorageReader(store))
        set_state_dict(
            model,
            optimizer,
            model_state_dict=saved["model"],
            optim_state_dict=saved["optimizer"],
        )
        done = saved["epoch"]
        if rank == 0:
            print(f"going on after epoch {done}", flush=True)
    for epoch in range(done + 1, done + epochs + 1):
        for part in torch.randperm(len(x)).split(64):
            loss = nn.functional.mse_loss(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        dcp.save(state(epoch), storage_writer=StorageWriter(store, epoch=epoch))
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}, saved by {RANKS} ranks", flush=True)
    dist.destroy_process_group()


def main(store: str = "dcp_store", epochs: int | str = 3) -> None:
    """Run the ranks, then look at what they saved from one process."""
    # A file through which the ranks find each other; gloo removes it.
    meeting = Path(store).absolute().with_suffix(".meeting")
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=train, args=(rank, store, meeting.as_uri(), int(epochs)))
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    meeting.unlink(missing_ok=True)
    if any(process.exitcode for process in ranks):
        raise SystemExit("a rank failed")
    names = [found.name for found in list_checkpoints(store)]
    print("checkpoints:", ", ".join(names))
    with mldb.open(store, mode="r") as db:
        weight = db["model.0.weight"]
        first = db.at(names[0])["model.0.weight"]
        print(
            f"model.0.weight is whole, {weight.shape}; it moved by {abs(weight - first).max():.3f}"
        )
        alone = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
        alone.load_state_dict(db.load(None)["model"])
    print("one process loaded the model")


if __name__ == "__main__":
    main(*sys.argv[1:3])
