"""The loader of a lake in odd hands: copies, workers, odd options, functions of the user."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

import mldb
from mldb.lake.order import passes
from mldb.log.fs import machine as os_memory
from tests.support.lakes import BATCH, DIM, ROWS, data, db, fill, raw, stream
from tests.support.workers import METHODS

__all__ = ["data", "db"]

torch = pytest.importorskip("torch")


def test_a_salience_that_writes_to_its_ids_harms_nobody(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    """It was given the ids that all readers of the lake share."""
    lake = fill(db, data)

    def careless(ids: Any) -> Any:
        ids %= 10
        return (ids == 3) + 0.1

    importance = mldb.Importance(gamma=1.0, least_ess=0.0)
    next(iter(stream(lake, "drawn", importance_sampling=importance, salience=careless)))
    assert lake.get([400], fields=["id"])["id"].tolist() == [400]
    with pytest.raises(mldb.InvalidValueError, match="is taken"):
        lake.add_splats(data["mu"][:1], ids=[400])


def test_ranks_choose_one_order(
    db: mldb.MLDatabase, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They asked for the memory that was free, each at its own moment."""
    lake = fill(db, data)
    assert stream(lake, order="auto").dataset.options.order == "permutation"
    lines = os_memory._lines
    little = {"/proc/meminfo": ["MemAvailable: 1 kB"]}
    monkeypatch.setattr(os_memory, "_lines", lambda path: little.get(path) or lines(path))
    assert os_memory.available_memory() == 1024
    assert stream(lake, order="auto").dataset.options.order == "permutation"
    monkeypatch.setattr(passes, "total_memory", lambda: 1000)
    assert stream(lake, order="auto").dataset.options.order == "windowed"


def test_a_copy_made_in_the_middle_of_a_pass_begins_the_next_one(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    """Workers that were spawned then lost as many batches as had been handed out, each."""
    lake = fill(db, data)
    loader = stream(lake)
    list(loader)
    second = raw(loader)
    dataset = stream(lake).dataset
    for _ in zip(dataset, range(3), strict=False):
        copied = copy.copy(dataset)  # as pickling does it
    assert raw(copied) == second


@pytest.mark.slow
def test_workers_that_persist_follow_the_dataset(store_path: Path, data: dict[str, Any]) -> None:
    with mldb.open(store_path) as db:
        lake = fill(db, data)
        options = {"multiprocessing_context": "fork", "persistent_workers": True}
        loader = stream(lake, "isotropic", num_workers=2, loader=options)
        list(loader)
        next(iter(loader.dataset))
        iterator = iter(loader)
        got = raw(itertools.islice(iterator, 2))
        state = loader.state_dict()
        alone = stream(lake, "isotropic")
        alone.dataset.set_pass(2)
        want = raw(alone)
        assert (got, state["pass"]) == (want[:2], 2)
        assert raw(iterator) == want[2:]


@pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")  # torchdata 0.11 under torch 2.13
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_workers_resume_at_the_commit_of_their_state(
    store_path: Path, data: dict[str, Any], method: str
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    with mldb.open(store_path) as db:
        lake = fill(db, data)

        def made() -> Any:
            options = {"num_workers": 2, "multiprocessing_context": method}
            return stateful(stream(lake).dataset, batch_size=None, **options)

        whole = raw(made())
        loader = made()
        for _ in zip(loader, range(5), strict=False):
            state = loader.state_dict()
        lake.add_splats(data["mu"][:100])
        resumed = made()
        resumed.load_state_dict(state)
        assert raw(resumed) == whole[5:]


def test_a_collate_function_is_used(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    lake = fill(db, data)
    loader = stream(lake, loader={"collate_fn": lambda batch: batch.shape[0]})
    assert list(loader) == [BATCH] * 15 + [20]
    assert next(iter(stream(lake, num_workers=2, loader={"collate_fn": len}))) == BATCH


def test_a_batch_larger_than_the_lake_takes_the_memory_of_the_lake(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = fill(db, data)
    for augment in (False, mldb.Augmentation(copies=2)):
        loader = lake.export_to_dataloader(1 << 24, device="numpy", generate_samples=augment)
        assert [len(batch) for batch in loader] == [ROWS * (2 if augment else 1)]


def test_equal_settings_have_one_name(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    lake = fill(db, data)
    one, other = (
        stream(lake, "drawn", importance_sampling=mldb.Importance(beta=beta)) for beta in (1, 1.0)
    )
    other.load_state_dict(one.state_dict())
    assert raw(one) == raw(other)


def test_a_state_of_a_commit_without_the_fields_changes_nothing(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    lake = db.lake(dim=DIM)
    lake.add_splats(data["mu"])
    old = stream(lake, fields=("mu",)).state_dict()
    lake.add_splats(data["mu"], labels=data["labels"])
    loader = stream(lake, fields=("mu", "label"))
    with pytest.raises(mldb.MissingError, match="label"):
        loader.load_state_dict(old)
    assert loader.dataset.lsn > old["lsn"]
    assert sum(len(batch.mu) for batch in loader) == 2 * ROWS


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"device": "cuda:7"}, mldb.GpuUnavailableError, "cuda:7"),
        ({"draws": 5, "drop_last": True, "importance_sampling": True}, ValueError, "no batch"),
        (
            {"draws": 501, "importance_sampling": mldb.Importance(replacement="bottom_k")},
            mldb.InvalidValueError,
            "draws=501 without replacement",
        ),
        ({"shuffle": False, "importance_sampling": True}, ValueError, "do not fit"),
        ({"fields": 5}, mldb.InvalidTypeError, "give a list of str"),
        ({"fields": [["mu"]]}, mldb.InvalidTypeError, "give a list of str"),
        ({"fields": ["class"]}, mldb.InvalidValueError, "field of a named tuple"),
        ({"warm_bytes": "x"}, mldb.InvalidTypeError, "warm_bytes"),
        ({"hot_bytes": -1}, mldb.InvalidValueError, "hot_bytes"),
        ({"loader": [1]}, mldb.InvalidTypeError, "loader is a list"),
        ({"loader": {"foo": 1}}, mldb.InvalidValueError, "foo"),
        ({"loader": {"drop_last": True}}, mldb.InvalidValueError, "drop_last"),
        ({"num_workers": -1}, mldb.InvalidValueError, "num_workers=-1"),
        ({"num_workers": "2"}, mldb.InvalidValueError, "num_workers='2'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(
    db: mldb.MLDatabase, data: dict[str, Any], options: dict[str, Any], error: Any, text: str
) -> None:
    """Each of them was a bare error of Python or torch, or passed over in silence."""
    lake = db.lake(dim=DIM)
    lake.add_splats(data["mu"], columns={"class": data["labels"]})
    with pytest.raises(error, match=text) as caught:
        lake.export_to_dataloader(BATCH, **options)
    assert isinstance(caught.value, mldb.MldbError)


@pytest.mark.parametrize(
    "salience", [lambda ids: ["a"] * len(ids), lambda ids: {}, lambda ids: [[1], [2, 3]]]
)
def test_a_salience_that_is_no_numbers_is_said_so(
    db: mldb.MLDatabase, data: dict[str, Any], salience: Any
) -> None:
    lake = fill(db, data)
    loader = stream(
        lake, "drawn", importance_sampling=mldb.Importance(gamma=1.0), salience=salience
    )
    with pytest.raises(mldb.MldbError):
        next(iter(loader))


def test_single_batches_are_asked_for_by_a_number(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    dataset = stream(fill(db, data)).dataset
    for number in ("x", None, 1.5):
        with pytest.raises(mldb.InvalidTypeError, match="number of a batch"):
            dataset.batch(number)
        with pytest.raises(mldb.InvalidTypeError, match="number of a batch"):
            dataset.provenance(number)
