"""The queries of the documents on a run that was really trained: conv1, pool1, conv2."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mldb

EPOCHS = 4
LAYERS = ("conv1", "pool1", "conv2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mldb.MLDatabase:
    """A network that learns to tell stripes from dots, with every epoch in the store."""
    path = tmp_path_factory.mktemp("run") / "store"
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("conv1", torch.nn.Conv2d(1, 4, 3))
    model.add_module("pool1", torch.nn.MaxPool2d(2))
    model.add_module("conv2", torch.nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(32, 1, 8, 8)
    labels = torch.arange(32) % 2
    images[labels == 1, :, ::2] += 2
    with mldb.open(path, durability="os") as db:
        for source, target in pairwise(LAYERS):
            db.create_relationship(source, target, "feeds_into")
        for epoch in range(EPOCHS):
            for _ in range(5):
                loss = torch.nn.functional.cross_entropy(model(images).mean((2, 3)), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for name in ("conv1", "conv2"):
                layer = model.get_submodule(name)
                with db.transaction(epoch=epoch) as txn:
                    for part in ("weight", "bias"):
                        kind = {"type": "weights" if part == "weight" else "biases", "layer": name}
                        txn.store_tensor(f"{name}.{part}", getattr(layer, part).detach(), kind)
            db.log({"loss": loss.item()}, epoch=epoch, step=5 * epoch)
            db.checkpoint({"model": model}, epoch=epoch, metrics={"loss": loss.item()})
    return mldb.open(path, mode="r")


def test_the_short_forms(run: mldb.MLDatabase) -> None:
    ask = run.query.execute_query
    assert ask("SELECT tensors WHERE type=weights ORDER BY creation_time") == [
        *("conv1.weight", "conv2.weight")
    ]
    assert ask("SELECT tensors WHERE type=layer ORDER BY position") == list(LAYERS)


def test_distributions_need_no_python(run: mldb.MLDatabase) -> None:
    found = run.sql("SELECT name, std FROM tensors WHERE layer='conv1' ORDER BY name").fetchall()
    assert [name for name, _ in found] == ["conv1.bias", "conv1.weight"]
    for name, std in found:
        assert std == pytest.approx(float(run[name].astype("f8").std()))
    text = "SELECT epoch, norm FROM versions WHERE name = 'conv1.weight' ORDER BY epoch"
    for epoch, norm in run.sql(text):
        value = run.query_tensor("conv1.weight", as_of=epoch).astype("f8")
        assert norm == pytest.approx(float(np.linalg.norm(value.ravel())))


def test_what_changed_between_two_epochs(run: mldb.MLDatabase) -> None:
    rows = run.sql(
        "SELECT a.name, a.mean - b.mean AS moved FROM tensors a "
        "JOIN tensors AS OF EPOCH 0 AS b ON a.name = b.name "
        "WHERE a.type IN ('weights', 'biases') ORDER BY abs(moved) DESC"
    ).fetchall()
    for name, moved in rows:
        first = run.query_tensor(name, as_of=0).astype("f8").mean()
        assert moved == pytest.approx(float(run[name].astype("f8").mean() - first))
    assert len(rows) == 4


def test_curves_and_checkpoints_belong_together(run: mldb.MLDatabase) -> None:
    rows = run.sql(
        "SELECT c.epoch, c.loss, m.value FROM checkpoints c JOIN metrics m "
        "ON m.epoch = c.epoch AND m.name = 'loss' ORDER BY c.epoch"
    ).fetchall()
    assert [row[0] for row in rows] == list(range(EPOCHS))
    assert all(loss == value for _, loss, value in rows)
    assert rows[-1][1] < rows[0][1], "it learned"
