"""The original interface of the lake, as its documents use it, but for the import and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

import mldb
from mldb import M2MConfig, create_m2m

torch = pytest.importorskip("torch")


@pytest.mark.slow
def test_the_original_training_loop_runs(tmp_path: Path) -> None:
    m2m = create_m2m(M2MConfig(device="cpu", storage_path=str(tmp_path / "lake")))
    m2m.add_splats(torch.randn(2000, 640))
    dataloader = m2m.export_to_dataloader(
        batch_size=256, generate_samples=True, importance_sampling=True
    )
    model = torch.nn.Linear(640, 10)
    optimizer = torch.optim.Adam(model.parameters())
    seen = []
    for _ in range(5):
        for batch in dataloader:
            loss = model(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(len(batch))
    assert sum(seen) == 10_000
    assert "torch" in dataloader.stats()["device"]
    m2m.close()
    with create_m2m(M2MConfig(storage_path=str(tmp_path / "lake"))) as again:
        assert len(again) == 2000
        assert again.lake.dim == 640


def test_a_config_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    with pytest.raises(mldb.InvalidValueError, match="device='tpu'"):
        create_m2m(M2MConfig(device="tpu", storage_path=str(path)))
    assert not path.exists()
    with pytest.raises(mldb.LimitError):
        create_m2m(M2MConfig(latent_dim=1, storage_path=str(path)))
    with mldb.open(path):  # the store was closed again
        pass


def test_the_defaults_are_those_of_the_documents() -> None:
    config = M2MConfig()
    assert (config.device, config.storage_path, config.latent_dim) == ("auto", "ml_storage", 640)
