"""The parts of the Lightning adapter one by one: markers, names, places, steps behind, data."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import threading
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch.loggers.logger import Logger as AnyLogger
from lightning.pytorch.utilities import rank_zero_only

import mldb
from mldb.adapters.lightning import (
    HYPERPARAMETERS,
    CheckpointIO,
    EvaluationLoader,
    LakeDataModule,
    Logger,
    TrainLoader,
)
from mldb.adapters.lightning_behind import Behind
from mldb.adapters.lightning_marker import (
    MARKER_BYTES_MAX,
    Marker,
    checkpoint_name,
    local_path,
    read_marker,
    remove_marker,
    write_marker,
)
from mldb.adapters.lightning_places import placed
from mldb.adapters.lightning_store import StoreHolder
from mldb.adapters.lightning_tree import LongKeys, with_long_keys, with_short_names

SAVED = {"epoch": 0, "global_step": 3, "state_dict": {"w": torch.arange(6.0).reshape(2, 3)}}


@pytest.fixture
def io(tmp_path: Path) -> Any:
    made = CheckpointIO(tmp_path / "store")
    yield made
    made.teardown()


# --- saving, loading, removing --------------------------------------------------------------------


def test_what_is_saved_comes_back_with_its_types(io: CheckpointIO, tmp_path: Path) -> None:
    tied = torch.ones(3)
    state = OrderedDict(a=tied, b=tied)
    saved = SAVED | {"state_dict": state, "tuple": (1, [2.5, None]), "callbacks": {"x": {1: True}}}
    io.save_checkpoint(saved, tmp_path / "c" / "one.ckpt")
    loaded = io.load_checkpoint(tmp_path / "c" / "one.ckpt", weights_only=True)
    assert list(loaded) == list(saved)
    assert type(loaded["state_dict"]) is OrderedDict
    assert loaded["state_dict"]["a"] is loaded["state_dict"]["b"]
    assert (loaded["tuple"], loaded["callbacks"]) == (saved["tuple"], saved["callbacks"])
    with mldb.open(io.path, mode="r") as db:
        (found,) = db.checkpoints()
        assert (found.name, found.epoch, found.step) == ("c/one", 0, 3)
        assert db.tags() == {"lightning/c/one": found.lsn}


def test_what_cannot_be_saved(io: CheckpointIO, tmp_path: Path) -> None:
    with pytest.raises(mldb.InvalidTypeError, match="callbacks/f"):
        io.save_checkpoint({"callbacks": {"f": print}}, tmp_path / "a.ckpt")
    with pytest.raises(mldb.InvalidTypeError, match="storage_options"):
        io.save_checkpoint(SAVED, tmp_path / "a.ckpt", storage_options={})
    with pytest.raises(mldb.InvalidNameError, match="s3://"):
        io.save_checkpoint(SAVED, "s3://bucket/a.ckpt")
    with pytest.raises(mldb.InvalidTypeError, match="not a dict"):
        io.save_checkpoint([1], tmp_path / "a.ckpt")  # type: ignore[arg-type]
    assert not (tmp_path / "a.ckpt").exists()


def test_tensors_may_change_right_after_the_call(tmp_path: Path) -> None:
    io = CheckpointIO(tmp_path / "store", wait=False)
    value = torch.zeros(1 << 18)
    for number in range(4):
        value.fill_(number)
        io.save_checkpoint({"epoch": 0, "state_dict": {"w": value}}, tmp_path / f"{number}.ckpt")
        value.fill_(-1)
    for number in range(4):
        loaded = io.load_checkpoint(tmp_path / f"{number}.ckpt")
        assert bool((loaded["state_dict"]["w"] == number).all())
    io.teardown()


def test_what_fails_behind_is_raised_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = CheckpointIO(tmp_path / "store", wait=False)
    io.save_checkpoint(SAVED, tmp_path / "old.ckpt")
    io.load_checkpoint(tmp_path / "old.ckpt")

    def full(*_: Any) -> None:
        raise mldb.StorageFullError("no space left")

    monkeypatch.setattr("mldb.adapters.lightning_io.write_marker", full)
    io.save_checkpoint(SAVED, tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    with pytest.raises(mldb.StorageFullError):
        io.teardown()
    assert (tmp_path / "old.ckpt").exists()
    assert not (tmp_path / "new.ckpt").exists()
    monkeypatch.undo()
    io.save_checkpoint(SAVED, tmp_path / "new.ckpt")
    io.teardown()
    assert io.load_checkpoint(tmp_path / "new.ckpt")["global_step"] == 3


def test_a_checkpoint_of_another_store(io: CheckpointIO, tmp_path: Path) -> None:
    io.save_checkpoint(SAVED, tmp_path / "a.ckpt")
    other = CheckpointIO(tmp_path / "other")
    other.save_checkpoint(SAVED, tmp_path / "b.ckpt")
    with pytest.raises(mldb.MissingError, match=r"does not have\. Give CheckpointIO the store"):
        other.load_checkpoint(tmp_path / "a.ckpt")
    other.teardown()
    with mldb.open(io.path, mode="r") as db:
        db.backup(tmp_path / "copy")
    copied = CheckpointIO(tmp_path / "copy")
    assert copied.load_checkpoint(tmp_path / "a.ckpt")["epoch"] == 0, "a backup has it"
    with pytest.raises(mldb.MissingError, match="no checkpoint at"):
        io.load_checkpoint(tmp_path / "none.ckpt")


def test_a_file_that_is_no_marker_is_not_removed(
    io: CheckpointIO, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"a": 1}, tmp_path / "torch.ckpt")
    with caplog.at_level(logging.WARNING, "mldb"):
        io.remove_checkpoint(tmp_path / "torch.ckpt")
    assert (tmp_path / "torch.ckpt").exists()
    assert "not removed" in caplog.text
    io.remove_checkpoint(tmp_path / "nothing.ckpt")


def test_it_travels_by_its_path(io: CheckpointIO, tmp_path: Path) -> None:
    io.save_checkpoint(SAVED, tmp_path / "a.ckpt")
    other = pickle.loads(pickle.dumps(io))  # noqa: S301 - of our own
    assert other.load_checkpoint(tmp_path / "a.ckpt")["global_step"] == 3
    with mldb.open(io.path) as db:
        given = CheckpointIO(db)
        given.save_checkpoint(SAVED, tmp_path / "b.ckpt")
        given.teardown()
        assert db.checkpoints()[-1].name == "b"
        with pytest.raises(mldb.InvalidTypeError, match="not pickled"):
            pickle.dumps(given)
        with pytest.raises(mldb.InvalidValueError, match="open already"):
            CheckpointIO(db, durability="os")


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")
def test_fabric_saves_and_loads(io: CheckpointIO, tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[io])
    model = torch.nn.Linear(3, 2)
    fabric.save(tmp_path / "f.ckpt", {"model": model, "step": 7})
    fresh = torch.nn.Linear(3, 2)
    state: dict[str, Any] = {"model": fresh, "step": 0}
    fabric.load(tmp_path / "f.ckpt", state)
    assert state["step"] == 7
    assert torch.equal(fresh.weight, model.weight)


# --- markers --------------------------------------------------------------------------------------


def _good() -> dict[str, Any]:
    return {
        "mldb": "a Lightning checkpoint, in a store beside it",
        "version": 1,
        "name": "a",
        "lsn": 5,
        "epoch": 0,
        "time": "2026-01-01T00:00:00+00:00",
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x05K\x01.",
        b"[" * 4000,
        b"9" * 4096,
        b"{" + b" " * MARKER_BYTES_MAX,
        b"[]",
        b'{"mldb": 1}',
        b"\xff\xfe",
        *(
            json.dumps(_good() | {key: value}).encode()
            for key, value in (
                *(("name", 1), ("name", "../../x"), ("name", "/etc/x"), ("name", "")),
                *(("lsn", 0), ("lsn", -1), ("lsn", 1 << 70), ("lsn", "5"), ("lsn", True)),
                *(("epoch", -1), ("epoch", None), ("epoch", 1.0), ("time", 3), ("time", "soon")),
                *(("version", 0), ("version", "1"), ("version", None), ("version", 2)),
            )
        ),
    ],
)
def test_a_hostile_marker_is_a_typed_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(mldb.FormatVersionError, match=r"x\.ckpt"):
        read_marker(str(tmp_path / "x.ckpt"))
    with pytest.raises(mldb.FormatVersionError):
        remove_marker(str(tmp_path / "x.ckpt"))
    assert (tmp_path / "x.ckpt").read_bytes() == data


def test_a_folder_or_a_loop_of_links_is_no_marker(tmp_path: Path) -> None:
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(mldb.FormatVersionError):
        read_marker(str(tmp_path / "folder.ckpt"))
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    with pytest.raises((mldb.FormatVersionError, mldb.MissingError)):
        read_marker(str(tmp_path / "loop.ckpt"))


def test_a_marker_of_another_commit_is_refused(io: CheckpointIO, tmp_path: Path) -> None:
    io.save_checkpoint(SAVED, tmp_path / "a.ckpt")
    good = read_marker(str(tmp_path / "a.ckpt"))
    for bad in (
        good._replace(lsn=good.lsn + 1),
        good._replace(name="b"),
        good._replace(lsn=1 << 60),
    ):
        write_marker(str(tmp_path / "b.ckpt"), bad)
        with pytest.raises(mldb.MissingError):
            io.load_checkpoint(tmp_path / "b.ckpt")


def test_a_marker_is_written_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "new" / "a.ckpt")
    marker = Marker("a", 5, 0, "2026-01-01T00:00:00+00:00")
    write_marker(path, marker)
    assert read_marker(path) == marker

    def fail(*_: Any) -> None:
        raise mldb.StorageIOError("refused")

    with monkeypatch.context() as patched:
        patched.setattr("mldb.adapters.lightning_marker.OsFileSystem.rename", fail)
        with pytest.raises(mldb.StorageIOError):
            write_marker(path, marker._replace(lsn=6))
    assert read_marker(path) == marker
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a.ckpt"]


def test_paths_and_their_names() -> None:
    names = {
        "/runs/one/a.ckpt": "a",
        "/runs/one/checkpoints/epoch=3-step=40.ckpt": "checkpoints/epoch=3-step=40",
        "/elsewhere/a.ckpt": "elsewhere/a",
        "/runs/one/.hidden.ckpt": "%2Ehidden",
        "/runs/one/with%.ckpt": "with%25",
    }
    assert {path: checkpoint_name(path, "/runs/one") for path in names} == names
    long = [checkpoint_name(f"/x/{'d/' * 150}{n}.ckpt", "/runs") for n in range(3)]
    assert len(set(long)) == 3
    assert max(map(len, long)) < 200
    assert local_path("file:///a/../b.ckpt") == "/b.ckpt"
    for path in (b"x", 3, "", "gs://x/y", "a\0b"):
        with pytest.raises((mldb.InvalidTypeError, mldb.InvalidNameError)):
            local_path(path)  # type: ignore[arg-type]


# --- long keys, places, steps behind --------------------------------------------------------------


def test_long_keys_come_back(io: CheckpointIO, tmp_path: Path) -> None:
    path = "/a/very/long/folder" * 12 + "/epoch=0.ckpt"
    kept = {"best_k_models": {path: torch.tensor(1.5), "short": [{path: np.ones(2)}]}, "k": 1}
    saved: dict[str, Any] = SAVED | {
        "callbacks": {"ModelCheckpoint{" + "'every': 1, " * 12 + "}": kept}
    }
    before = copy.deepcopy(saved)
    io.save_checkpoint(saved, tmp_path / "a.ckpt")
    loaded = io.load_checkpoint(tmp_path / "a.ckpt")
    ((key, value),) = loaded["callbacks"].items()
    assert key in before["callbacks"]
    assert list(value["best_k_models"]) == [path, "short"]
    assert value["best_k_models"][path] == 1.5
    assert value["best_k_models"]["short"][0][path].tolist() == [1, 1]
    with mldb.open(io.path, mode="r") as db:
        assert "state_dict/w" in db, "what fits keeps its name"
        assert max(len(name) for name in db) <= 255
    assert saved.keys() == before.keys(), "and what was given is as it was"


def test_what_fits_is_left_alone() -> None:
    assert with_short_names(SAVED) is SAVED
    assert with_long_keys(SAVED) is SAVED
    deep: dict[str, Any] = {}
    deep["x" * 300] = deep
    assert with_short_names(deep) is deep, "what holds itself is refused where it is stored"
    tree = {"a": LongKeys(("b",), (({"c": LongKeys((1,), (2,))},),))}
    assert with_long_keys(tree) == {"a": {"b": ({"c": {1: 2}},)}}


def test_tensors_go_where_they_are_asked_to() -> None:
    tied = torch.ones(2)
    state = {"a": [tied, (tied, 1)], "b": OrderedDict(c=tied)}
    assert placed(state, None) is state
    assert placed(state, "cpu")["a"] is state["a"]
    for where in ("meta", torch.device("meta"), {"cpu": "meta"}):
        moved = placed(state, where)
        assert moved["a"][0].device.type == "meta"
        assert moved["a"][0] is moved["a"][1][0] is moved["b"]["c"]
        assert type(moved["b"]) is OrderedDict
    assert placed(state, lambda storage, place: storage)["a"][0] is tied
    assert placed(state, lambda storage, place: None)["a"][0] is tied
    with pytest.raises(mldb.InvalidValueError, match="no device"):
        placed(state, "nowhere")
    with pytest.raises(mldb.InvalidTypeError, match="map_location"):
        placed(state, 3)


def test_steps_behind_one_that_fails_are_not_taken() -> None:
    behind, taken, gate = Behind(), [], threading.Event()

    def fail() -> None:
        raise ValueError("first")

    behind.run(gate.wait)
    behind.run(lambda: taken.append(1))
    behind.run(fail)
    behind.run(lambda: taken.append(2))
    gate.set()
    with pytest.raises(ValueError, match="first"):
        behind.drain()
    behind.run(lambda: taken.append(3))
    behind.drain()
    behind.stop()
    behind.stop()
    assert taken == [1, 3]


def test_one_handle_of_one_process(tmp_path: Path) -> None:
    one, two = StoreHolder(tmp_path / "s"), StoreHolder(str(tmp_path / "s"))
    other = StoreHolder(tmp_path / "s", {"durability": "os"})
    assert one.get() is two.get()
    assert other.get() is not one.get()
    db = one.get()
    one.close()
    one.close()
    assert len(db) == 0, "the second one has it still"
    two.close()
    with pytest.raises(mldb.ClosedError):
        len(db)
    two.get()
    del two
    other.close()
    for bad in (3, b"x", ""):
        with pytest.raises((mldb.InvalidTypeError, mldb.InvalidNameError)):
            StoreHolder(bad)  # type: ignore[arg-type]


# --- the logger -----------------------------------------------------------------------------------


def test_a_logger_keeps_curves_and_hyperparameters(tmp_path: Path) -> None:
    logger = Logger(tmp_path / "store", name="exp", version=3, prefix="run")
    assert isinstance(logger, AnyLogger)
    assert (logger.name, logger.version, logger.save_dir) == ("exp", 3, str(tmp_path))
    logger.log_hyperparams({"lr": 0.1, "layers": [1, {"f": print}], "path": Path("x")})
    logger.log_hyperparams(Namespace(lr=0.2))
    logger.log_hyperparams({"lr": 0.2})
    for step in range(3):
        logger.log_metrics({"loss": torch.tensor(1.0 * step), "epoch": 0}, step=step)
    logger.log_metrics({}, step=9)
    assert isinstance(logger.experiment, mldb.MLDatabase)
    assert len(logger.experiment.history(HYPERPARAMETERS)) == 2
    logger.finalize("success")
    with mldb.open(tmp_path / "store", mode="r") as db:
        assert db.metrics() == ["run/epoch", "run/loss"]
        assert db.metrics("run/loss").value.tolist() == [0, 1, 2]
        assert db.metadata(HYPERPARAMETERS) == {"lr": 0.2}
    with pytest.raises(mldb.InvalidTypeError):
        logger.log_hyperparams({"lr": 1}, "further")
    with pytest.raises(mldb.InvalidTypeError, match="prefix"):
        Logger(tmp_path / "store", prefix=3)  # type: ignore[arg-type]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = Logger(tmp_path / "store")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_hyperparams({"lr": 1})
    logger.experiment.log({"x": 1})
    logger.finalize("success")
    assert not (tmp_path / "store").exists()


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture
def lake_path(tmp_path: Path, rng: np.random.Generator) -> Path:
    with mldb.open(tmp_path / "data") as db:
        db.lake("default", dim=4).add_splats(rng.standard_normal((40, 4)))
    return tmp_path / "data"


def test_a_train_loader_counts_whole_passes(lake_path: Path) -> None:
    data = LakeDataModule(lake_path, options={"batch_size": 8})
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, TrainLoader)
    first = list(loader)
    batches = iter(loader)
    second = [next(batches) for _ in range(2)]
    state, kept = loader.state_dict(), data.state_dict()
    assert len(loader) == len(first) == 5

    again = LakeDataModule(lake_path, options={"batch_size": 8})
    again.setup("fit")
    again.load_state_dict(kept)
    resumed = again.train_dataloader()
    assert resumed.state_dict() == state | {"cursor": 2, "done": 0}
    iter(resumed)  # nothing is taken of this one
    rest = list(resumed)
    assert (len(resumed), len(rest)) == (5, 3)
    for one, other in zip(batches, rest, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(loader, resumed, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(second[0], first[0])
    for module in (data, again):
        module.teardown("fit")


def test_rows_that_came_later_are_not_read(lake_path: Path, rng: np.random.Generator) -> None:
    data = LakeDataModule(lake_path, val="default", options={"batch_size": 8})
    data.setup("fit")
    kept = data.state_dict()
    with mldb.open(lake_path) as db:
        db.lake("default").add_splats(rng.standard_normal((40, 4)))
    later = LakeDataModule(lake_path, val="default", options={"batch_size": 8})
    later.setup("fit")
    assert len(later.train_dataloader()) == 10
    later.load_state_dict(kept)
    assert len(later.train_dataloader()) == 5
    scores = later.val_dataloader()
    assert isinstance(scores, EvaluationLoader)
    one, two = list(scores), list(scores)
    assert len(one) == 5
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert later.test_dataloader() == []
    later.teardown("fit")
    for bad in ({"lakes": {"train": "x"}, "commit": 1}, {}, kept | {"commit": -1}):
        with pytest.raises(mldb.InvalidValueError):
            later.load_state_dict(bad)


def test_what_a_data_module_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(mldb.InvalidTypeError, match="val is a int"):
        LakeDataModule(tmp_path / "data", val=3)  # type: ignore[arg-type]
    with pytest.raises(mldb.InvalidTypeError, match="options is a int"):
        LakeDataModule(tmp_path / "data", options=3)  # type: ignore[arg-type]
    with pytest.raises(mldb.InvalidTypeError, match="no option"):
        LakeDataModule(tmp_path / "data", options={"batches": 3})
    with pytest.raises(mldb.StorageIOError):
        LakeDataModule(tmp_path / "none").setup("fit")
    assert not (tmp_path / "none").exists()
