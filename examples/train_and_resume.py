"""Train, be interrupted at any moment, go on from the last checkpoint as if nothing had happened.

Start it, stop it with Ctrl-C, start it again: python examples/train_and_resume.py [store]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

import mldb


def main(path: str, epochs: int = 20) -> nn.Module:
    """Fit a sine; return the model after the last epoch."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 512)[:, None]
    y = torch.sin(x)
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Dropout(0.05), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def state(epoch: int) -> dict[str, Any]:
        rng = torch.get_rng_state()
        return {"model": model, "optimizer": optimizer, "rng": rng, "epoch": epoch}

    with mldb.open(path) as db:
        done = 0
        if db.checkpoints():
            saved = db.load(state(0))  # fills model and optimizer, returns the rest
            torch.set_rng_state(saved["rng"])
            done = saved["epoch"]
            print(f"going on after epoch {done}; repaired at opening: {not db.recovery.clean}")
        for epoch in range(done + 1, epochs + 1):
            for picked in torch.randperm(len(x)).split(64):
                loss = nn.functional.mse_loss(model(x[picked]), y[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            # One atomic commit. When the call returns, it survives a power cut.
            db.checkpoint(state(epoch), epoch=epoch, metrics={"loss": loss.item()})
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    return model


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "train_and_resume_store")
