"""Train on generated samples of a splat lake: the original interface, only the import is new.

python examples/lake_training.py [new store] [rows] [device]
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from mldb import M2MConfig, create_m2m


def main(
    path: str = "lake_training_store", rows: int | str = 100_000, device: str = "auto"
) -> nn.Module:
    """Store random rows, then fit a linear classifier to what the loader makes of them."""
    torch.manual_seed(0)
    m2m = create_m2m(M2MConfig(device=device, storage_path=path))
    m2m.add_splats(torch.randn(int(rows), 640))
    loader = m2m.export_to_dataloader(
        batch_size=256, generate_samples=True, importance_sampling=True
    )

    teacher = torch.randn(640, 10)  # random rows have no classes; these are linear
    model = nn.Linear(640, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(5):
        seen, correct, start = 0, 0, time.perf_counter()
        for batch in loader:
            x = batch.cpu()  # a device with memory of its own hands out tensors that lie there
            target = (x @ teacher).argmax(1)
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(x)
            correct += int((logits.argmax(1) == target).sum())
        rate = seen / (time.perf_counter() - start)
        print(f"epoch {epoch}: {correct / seen:.1%} right, {rate:,.0f} rows/s")

    print(f"{len(m2m)} rows; samples were made by {loader.stats()['device']}")
    m2m.close()
    return model


if __name__ == "__main__":
    main(*sys.argv[1:4])
