"""Tensors of torch that have no bytes: named, with a remedy, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import mldb

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:The PyTorch API of Mas"),
    pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*quant"),
]


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def lazy() -> Any:
    return torch.nn.LazyLinear(3).weight


def nested(layout: Any) -> Any:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


CASES: dict[str, tuple[Any, str]] = {
    "lazy": (lazy, "no shape yet.*Call the module with a first batch"),
    "nested": (lambda: nested(torch.strided), r"each part.*tensor\.unbind\(\)"),
    "jagged": (lambda: nested(torch.jagged), r"each part.*tensor\.values\(\) and tensor\.offsets"),
    "meta": (lambda: torch.empty(2, device="meta"), r"device meta.*to_empty"),
    "masked": (
        lambda: torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False])),
        r"lose its mask.*get_data\(\) and tensor\.get_mask\(\)",
    ),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        r"dequantize\(\)",
    ),
    "objects": (lambda: np.array([object()]), "need pickle"),
    "masked array": (lambda: np.ma.array([1, 2], mask=[False, True]), r"array\.mask"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bad_tensor_among_many_is_named_with_its_remedy(db: mldb.MLDatabase, case: str) -> None:
    """An error that named no tensor sent its reader through a state of hundreds."""
    make, words = CASES[case]
    state = {"model": {"fine": torch.ones(2), "bad": make()}, "more": [torch.ones(1)]}
    with pytest.raises(mldb.InvalidTypeError, match=f"(?s)^tensor 'model/bad': .*{words}"):
        db.checkpoint(state, epoch=1)
    with pytest.raises(mldb.InvalidTypeError, match=f"(?s)^tensor 'model/bad': .*{words}"):
        db.checkpoint(state, epoch=1, wait=False)
    with pytest.raises(mldb.InvalidTypeError, match=f"(?s)^tensor 'bad': .*{words}"):
        db.checkpoint({"fine": torch.ones(2), "bad": make()}, epoch=1)
    with pytest.raises(mldb.InvalidTypeError, match=f"(?s)^tensor 'bad': .*{words}"):
        db.update({"fine": np.ones(2), "bad": make()})
    with (
        pytest.raises(mldb.InvalidTypeError, match=f"(?s)^tensor 'bad': .*{words}"),
        db.transaction() as txn,
    ):
        txn.update({"good": np.ones(2), "bad": make()})
    with pytest.raises(mldb.InvalidTypeError, match=r"^tensor 'l_biases': "):
        db.store_model_layer("l", np.ones(2), make())
    assert list(db) == ["fine"]  # db.update is one call for each
    assert db.checkpoints() == []


def test_a_module_that_has_seen_no_data_yet_is_refused_with_a_typed_error(
    db: mldb.MLDatabase,
) -> None:
    """ValueError came out of the walk over the state."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LazyLinear(3))
    for state in (model, {"model": model}):
        with pytest.raises(mldb.InvalidTypeError, match=r"'.*1\.weight'.*with a first batch"):
            db.checkpoint(state, epoch=1)
    model(torch.ones(1, 2))
    db.checkpoint(model, epoch=1)
    assert db["1.weight"].shape == (3, 2)


def test_a_distributed_tensor_is_told_to_be_gathered(db: mldb.MLDatabase, tmp_path: Path) -> None:
    """The advice was to save its local tensor: that is one shard, and the rest was lost."""
    meet = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    try:
        mesh = device_mesh.init_device_mesh("cpu", (1,))
        tensor: Any = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])
        for state in (
            lambda: db.store_tensor("w", tensor),
            lambda: db.checkpoint({"w": tensor}, epoch=1),
        ):
            with pytest.raises(mldb.InvalidTypeError, match=r"'w'.*full_tensor\(\)") as caught:
                state()
            assert "local tensor is one shard" in str(caught.value)
        db["w"] = tensor.full_tensor()
    finally:
        torch.distributed.destroy_process_group()
    assert db["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_metrics_are_called_metrics(db: mldb.MLDatabase) -> None:
    wrong: list[tuple[Any, str]] = [
        ({"loss": torch.tensor(0.5)}, r"metrics\['loss'\] is a Tensor.*\.item\(\)"),
        ({"loss": torch.ones(1)}, r"metrics\['loss'\] is a Tensor.*\.item\(\)"),
        ({"a": [object()]}, r"metrics\['a'\]\[0\] is a object"),
        ([1], "metrics: a dict of plain values is needed, not a list"),
        (np.ones(2), "metrics: a dict .* not a ndarray"),
    ]
    for metrics, words in wrong:
        with pytest.raises(mldb.InvalidTypeError, match=words) as caught:
            db.checkpoint({"w": np.ones(2)}, epoch=1, metrics=metrics)
        assert "metadata" not in str(caught.value)
    with pytest.raises(mldb.LimitError, match=r"metrics\['a'\] of 2097152 characters"):
        db.checkpoint({"w": np.ones(2)}, epoch=1, metrics={"a": "x" * (2 << 20)})
    with pytest.raises(mldb.InvalidTypeError, match=r"metadata\['a'\]"):
        db.store_tensor("w", 1, {"a": object()})


def test_what_an_epoch_error_proposes_is_taken(db: mldb.MLDatabase) -> None:
    """A checkpoint was told to pass epoch=None, which it refuses."""
    db.checkpoint({"w": np.ones(2)}, epoch=5)
    with pytest.raises(
        mldb.EpochOrderError, match=r"db\.rewind\(3\).* pass epoch=5, or epoch=None"
    ):
        db.checkpoint({"w": np.ones(2)}, epoch=3)
    assert db.checkpoint({"w": np.ones(2)}, epoch=5).epoch == 5
    db.store_tensor("w", 1, epoch=None)
