"""accelerate over a store: a tracker, its whole state as a commit, and lakes through prepare()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import InvalidTypeError, UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from accelerate import Accelerator  # noqa: E402

from mldb.adapters.accelerate import MldbTracker, load_state, save_state  # noqa: E402
from mldb.adapters.plain import numbers_of, plain_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def db(tmp_path: Path) -> Any:
    with mldb.open(tmp_path / "run") as opened:
        yield opened


def test_numbers_become_curves(db: mldb.MLDatabase) -> None:
    accelerator = Accelerator(cpu=True, log_with=MldbTracker(db))
    accelerator.init_trackers("run", config={"lr": 0.1, "name": "x", "none": None})
    for step in range(3):
        accelerator.log({"loss": 1.0 / (step + 1), "note": "text"}, step=step)
    accelerator.end_training()
    assert list(db.metrics("loss").value) == [1.0, 0.5, 1 / 3]
    assert db.metrics() == ["loss"]
    assert db.metadata("accelerate/config") == {"lr": 0.1, "name": "x", "none": None}
    assert accelerator.get_tracker("mldb", unwrap=True) is db
    with pytest.raises(InvalidTypeError):
        MldbTracker("path")  # type: ignore[arg-type]


def test_what_counts_as_a_number() -> None:
    logs = {
        "int": 1,
        "float": 0.5,
        "numpy": np.float32(2),
        "torch": torch.tensor(3.0),
        "bool": True,
        "text": "a",
        "list": [1],
        "none": None,
        "many": torch.ones(2),
        "epoch": 1,
    }
    assert numbers_of(logs) == {"int": 1.0, "float": 0.5, "numpy": 2.0, "torch": 3.0}


def _prepared(loader: Any = None) -> tuple[Any, ...]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    parts = accelerator.prepare(model, optimizer, schedule)
    if loader is not None:
        assert accelerator.prepare(loader) is loader
    return accelerator, *parts


def _steps(prepared: tuple[Any, ...], batches: Any) -> list[float]:
    accelerator, model, optimizer, schedule = prepared
    losses = []
    for batch in batches:
        loss = model(batch).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_the_whole_state_goes_on_bit_exactly(db: mldb.MLDatabase) -> None:
    batches = torch.rand((8, 5, 4), generator=torch.Generator().manual_seed(1))
    straight = _prepared()
    _steps(straight, batches[:4])
    saved = save_state(straight[0], db, epoch=0, step=4)
    rest = _steps(straight, batches[4:])
    again = _prepared()
    _steps(again, batches[:1])  # wherever it is
    load_state(again[0], db, as_of=saved.lsn)
    assert _steps(again, batches[4:]) == rest


def _lake(db: mldb.MLDatabase) -> mldb.Lake:
    lake = db.lake("rows", dim=4, geometry="euclid")
    lake.add_splats(np.arange(160, dtype=np.float32).reshape(40, 4))
    return lake


def _firsts(batches: Any) -> list[float]:
    return [float(np.asarray(_x(batch)).reshape(-1)[0]) for batch in batches]


def _x(batch: Any) -> Any:
    if isinstance(batch, dict):
        return next(iter(batch.values()))
    return batch[0] if isinstance(batch, tuple | list) else batch


def test_a_loader_of_a_lake_goes_through_prepare_as_it_is(db: mldb.MLDatabase) -> None:
    lake = _lake(db)
    loader = lake.export_to_dataloader(batch_size=8, seed=3)
    prepared = _prepared(loader)
    whole = _firsts(loader)
    assert len(whole) == 5
    iterator = iter(loader)
    head = _firsts([next(iterator) for _ in range(2)])
    save_state(prepared[0], db, epoch=0, name="middle")
    tail = _firsts(iterator)
    other = lake.export_to_dataloader(batch_size=8, seed=3)
    load_state(_prepared(other)[0], db)
    assert _firsts(other) == tail
    assert len(head) + len(tail) == 5


def test_accelerate_keeps_the_state_of_a_lakes_loader(db: mldb.MLDatabase, tmp_path: Path) -> None:
    """By its own files, too, which accelerate pickles: prepare and save_state know the loader."""
    lake = _lake(db)
    loader = lake.export_to_dataloader(batch_size=8, seed=3)
    accelerator = _prepared(loader)[0]
    iterator = iter(loader)
    next(iterator)
    accelerator.save_state(str(tmp_path / "state"))
    tail = _firsts(iterator)
    other = lake.export_to_dataloader(batch_size=8, seed=3)
    _prepared(other)[0].load_state(str(tmp_path / "state"))
    assert _firsts(other) == tail


def test_ranks_get_rows_of_their_own_after_prepare(db: mldb.MLDatabase) -> None:
    lake = _lake(db)
    seen: list[float] = []
    for rank in range(2):
        loader = lake.export_to_dataloader(batch_size=4, seed=3, rank=rank, world=2)
        _prepared(loader)
        for batch in loader:
            seen += np.asarray(_x(batch)).reshape(-1, 4)[:, 0].tolist()
    assert sorted(seen) == [4.0 * i for i in range(40)]


@pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")  # torchdata 0.11 under torch 2.13
def test_a_stateful_loader_of_torchdata_over_a_lake(db: mldb.MLDatabase) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    lake = _lake(db)

    def loader() -> Any:
        dataset = lake.export_to_dataloader(batch_size=8, seed=3).dataset
        return stateful.StatefulDataLoader(dataset, batch_size=None)

    first = loader()
    iterator = iter(first)
    next(iterator)
    state = first.state_dict()
    tail = _firsts(iterator)
    other = loader()
    other.load_state_dict(state)
    assert _firsts(other) == tail


def test_several_processes_are_refused(
    db: mldb.MLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = _prepared()[0]
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    for call in (
        lambda: save_state(accelerator, db, epoch=0),
        lambda: load_state(accelerator, db),
    ):
        with pytest.raises(UsageError, match="one process"):
            call()
    assert db.checkpoints() == []


def test_what_metadata_can_hold() -> None:
    """A configuration of a run may hold anything: what is no plain value becomes its text."""
    nested = {"lr": 1e-3, 3: [np.float32(0.5), (None, True)], "device": torch.device("cpu")}
    assert plain_of(nested) == {"lr": 1e-3, "3": [0.5, [None, True]], "device": "cpu"}
