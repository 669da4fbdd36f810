"""Trainings with Lightning's own Trainer: killed, resumed, and the same as if they never were."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy

import mldb
from mldb.adapters.lightning import HYPERPARAMETERS, CheckpointIO, ExactResume, Logger
from mldb.adapters.package_version import require_package
from tests.support.lightning_runs import (
    EPOCHS,
    QUIET,
    STEPS,
    KillAt,
    Model,
    data_of,
    make_data,
    make_trainer,
    parameters,
    train,
)
from tests.support.processes import Child

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    *(pytest.mark.filterwarnings(line) for line in QUIET),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data; each test has a folder of its own in it."""
    folder = tmp_path_factory.mktemp("lightning")
    make_data(folder / "data")
    return folder


_straight: dict[str, tuple[list[np.ndarray[Any, Any]], list[float], list[float]]] = {}


@pytest.fixture
def straight(root: Path) -> tuple[list[np.ndarray[Any, Any]], list[float], list[float]]:
    """Parameters and curves of a run that nothing interrupted."""
    if str(root) not in _straight:
        model = train(root, "straight")
        _straight[str(root)] = (parameters(model), *_curves(root / "straight"))
    return _straight[str(root)]


def _curves(folder: Path) -> tuple[list[float], list[float]]:
    with mldb.open(folder / "store", mode="r") as db:
        curve = db.metrics("train_loss")
        assert curve.step.tolist() == list(range(EPOCHS * STEPS))
        return curve.value.tolist(), db.metrics("val_loss").value.tolist()


def _killed(root: Path, name: str, step: int, **options: Any) -> None:
    with Child(lambda _: _train_killed(root, name, step, options)) as child:
        assert child.wait() == -9


def _train_killed(root: Path, name: str, step: int, options: dict[str, Any]) -> None:
    train(root, name, KillAt(step), **options)


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, STEPS, STEPS + 4])
def test_a_killed_run_resumes_bit_for_bit(
    root: Path, straight: tuple[list[Any], list[float], list[float]], step: int
) -> None:
    """In the middle of an epoch, at its end before validation, and in the second epoch."""
    name = f"killed-{step}"
    _killed(root, name, step)
    resumed = train(root, name, resume="last")
    wanted, losses, scores = straight
    for one, other in zip(parameters(resumed), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    with mldb.open(root / name / "store", mode="r") as db:
        curve = db.metrics("train_loss")
        assert db.metrics("val_loss").value.tolist()[-1] == scores[-1]
    steps = curve.step.tolist()
    assert steps == sorted(set(steps)), "each step once"
    assert curve.value.tolist() == [losses[at] for at in steps]
    # Killed within a second, what waited is lost: with the last save that of the step before it.
    saved = step - step % 3
    assert set(range(EPOCHS * STEPS)) - set(steps) <= {saved - 1}


@pytest.mark.slow
def test_a_killed_run_that_saved_behind_resumes_bit_for_bit(
    root: Path, straight: tuple[list[Any], list[float], list[float]]
) -> None:
    _killed(root, "behind", 13, io=CheckpointIO(root / "behind" / "store", wait=False))
    assert (root / "behind" / "last.ckpt").exists()
    io = CheckpointIO(root / "behind" / "store", wait=False)
    resumed = train(root, "behind", resume="last", io=io)
    for one, other in zip(parameters(resumed), straight[0], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["epoch", "validation"])
def test_a_run_goes_on_from_the_end_of_an_epoch(
    root: Path, straight: tuple[list[Any], list[float], list[float]], when: str
) -> None:
    """Lightning iterates the loader once too often there; ours begins the same pass again."""
    kinds: dict[str, Any] = {"save_on_train_epoch_end": when == "epoch"}
    name = f"ends-{when}"
    first = ModelCheckpoint(root / name, save_top_k=-1, **kinds)
    train(root, name, epochs=1, checkpoints=first)
    again = ModelCheckpoint(root / name, save_top_k=-1, **kinds)
    resumed = train(root, name, checkpoints=again, resume=first.best_model_path)
    for one, other in zip(parameters(resumed), straight[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert _curves(root / name)[0] == straight[1]


@pytest.mark.slow
def test_going_back_to_an_earlier_checkpoint_rewinds_the_store(
    root: Path, straight: tuple[list[Any], list[float], list[float]]
) -> None:
    every = ModelCheckpoint(root / "back", every_n_train_steps=4, save_top_k=-1)
    train(root, "back", checkpoints=every)
    path = str(root / "back" / "epoch=0-step=4.ckpt")
    again = ModelCheckpoint(root / "back", every_n_train_steps=4, save_top_k=-1)
    resumed = train(root, "back", checkpoints=again, resume=path)
    for one, other in zip(parameters(resumed), straight[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert _curves(root / "back") == straight[1:]
    with mldb.open(root / "back" / "store", mode="r") as db:
        epochs = [item.epoch for item in db.checkpoints()]
        assert epochs == sorted(epochs)
        assert "lightning/epoch=1-step=16-v1" in db.tags()
        assert "lightning/epoch=1-step=16" in db.tags(), "what was left behind is still kept"


# --- ModelCheckpoint ------------------------------------------------------------------------------


@pytest.mark.slow
def test_top_k_removes_names_and_loses_nothing(root: Path) -> None:
    folder = root / "top"
    train(root, "top")
    files = sorted(path.name for path in folder.glob("*.ckpt"))
    assert files == ["epoch=1-step=15.ckpt", "epoch=1-step=18.ckpt", "last.ckpt"]
    with mldb.open(folder / "store") as db:
        assert sorted(db.tags()) == [f"lightning/{name.removesuffix('.ckpt')}" for name in files]
        removed = db.load(None, as_of="epoch=0-step=3")
        assert removed["global_step"] == 3
        assert {"state_dict", "loops", "callbacks", "optimizer_states"} <= set(removed)

        db.retention.set(last=1, checkpoints=0)
        db.compact()
        with pytest.raises(mldb.VersionGoneError):
            db.load(None, as_of="epoch=0-step=3")
        assert db.load(None, as_of="epoch=1-step=15")["global_step"] == 15
    for name in files:
        assert CheckpointIO(folder / "store").load_checkpoint(folder / name)["epoch"] == 1


@pytest.mark.slow
def test_last_may_be_a_link(root: Path) -> None:
    folder = root / "link"
    linked = ModelCheckpoint(folder, every_n_train_steps=5, save_last="link", save_top_k=1)
    train(root, "link", checkpoints=linked)
    assert (folder / "last.ckpt").is_symlink()
    io = CheckpointIO(folder / "store")
    assert io.load_checkpoint(folder / "last.ckpt")["global_step"] == 2 * STEPS
    io.remove_checkpoint(folder / "last.ckpt")
    assert not (folder / "last.ckpt").is_symlink()
    assert [path.name for path in folder.glob("*.ckpt")] == [f"epoch=1-step={2 * STEPS}.ckpt"]
    with mldb.open(folder / "store", mode="r") as db:
        assert list(db.tags()) == [f"lightning/epoch=1-step={2 * STEPS}"]


@pytest.mark.slow
def test_best_is_validated_and_hyperparameters_are_kept(root: Path) -> None:
    best = ModelCheckpoint(root / "best", monitor="val_loss", save_top_k=1)
    trainer = make_trainer(root / "best", checkpoints=best)
    model = Model(width=12)
    trainer.fit(model, datamodule=data_of(root))
    (score,) = trainer.validate(
        model, datamodule=data_of(root), ckpt_path="best", verbose=False, weights_only=True
    )
    assert best.best_model_score is not None
    assert score["val_loss"] == pytest.approx(float(best.best_model_score), rel=0, abs=0)
    with mldb.open(root / "best" / "store", mode="r") as db:
        assert db.metadata(HYPERPARAMETERS) == {"width": 12}
        name = Path(best.best_model_path).stem  # either epoch may be the better one
        saved = db.load(None, as_of=name)
        assert saved["hyper_parameters"] == {"width": 12}
        fresh = Model(**saved["hyper_parameters"])
        fresh.load_state_dict(db.state_dict(prefix="state_dict/", as_of=name))
    for one, other in zip(parameters(fresh), parameters(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_second_run_in_one_store(root: Path) -> None:
    """What is there stays; commits have the epoch of the head, checkpoints their own."""
    train(root, "twice", checkpoints=ModelCheckpoint(root / "twice"))
    train(root, "twice", checkpoints=ModelCheckpoint(root / "twice"), epochs=1)
    with mldb.open(root / "twice" / "store", mode="r") as db:
        assert [(item.name, item.epoch) for item in db.checkpoints()][-1] == ("epoch=0-step=10", 1)
        assert db.load(None)["epoch"] == 0
        assert sorted(db.tags()) == ["lightning/epoch=0-step=10", "lightning/epoch=1-step=20"]


# --- what Lightning's own tests of its plugin interface look at -----------------------------------


def _boring(folder: Path, io: Any, *, epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=1,
        limit_val_batches=0,
        limit_test_batches=1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options | ({} if io is None else {"plugins": [io]}),
    )


class _Counting(CheckpointIO):
    """Counts the calls of Lightning."""

    def __init__(self, store: Path, **options: Any) -> None:
        super().__init__(store, **options)
        self.calls: list[str] = []

    def save_checkpoint(self, *args: Any, **options: Any) -> None:
        self.calls.append("save")
        super().save_checkpoint(*args, **options)

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        self.calls.append(f"load {args} {options}")
        return super().load_checkpoint(*args, **options)

    def remove_checkpoint(self, *args: Any, **options: Any) -> None:
        self.calls.append("remove")
        super().remove_checkpoint(*args, **options)


@pytest.mark.slow
def test_the_plugin_is_called_by_strategy_and_trainer(tmp_path: Path) -> None:
    """Two runs into one folder, by either way to give the plugin: names, counts, test by path."""
    io = _Counting(tmp_path / "store")
    for run, names in enumerate((["epoch=1-step=2", "last"], ["epoch=1-step=2-v1", "last-v1"])):
        kept = ModelCheckpoint(dirpath=tmp_path, save_last=True)
        ways: list[dict[str, Any]] = [
            {"io": None, "strategy": SingleDeviceStrategy("cpu", checkpoint_io=io)},
            {"io": io, "strategy": SingleDeviceStrategy("cpu")},
        ]
        trainer = _boring(tmp_path, callbacks=[kept], **ways[run])
        model = BoringModel()
        io.calls.clear()
        trainer.fit(model)
        assert kept.best_model_path == str(tmp_path / f"{names[0]}.ckpt")
        assert kept.last_model_path == str(tmp_path / f"{names[1]}.ckpt")
        assert sorted(io.calls) == ["remove", *["save"] * 4]
        trainer.test(model, ckpt_path=kept.last_model_path, verbose=False)
        wanted = f"load ({kept.last_model_path!r},) {{'weights_only': None}}"
        assert io.calls[5:] == [wanted]
    assert len(list(tmp_path.glob("*.ckpt"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("behind", [True, False])
def test_saving_behind_as_lightning_does_and_as_we_do(tmp_path: Path, behind: bool) -> None:
    """Validate, then fit: teardown comes twice, and the store is opened again.

    Under Lightning's wrapper a removal is not behind the save that it belongs to, and may come
    first, when nothing is there yet; in ours it keeps its turn.
    """
    io = _Counting(tmp_path / "store", wait=not behind)
    plugin: Any = io if behind else AsyncCheckpointIO(io)
    top = ModelCheckpoint(dirpath=tmp_path, save_top_k=2, monitor="step", mode="max")
    trainer = _boring(tmp_path, plugin, epochs=3, callbacks=[top])
    model = BoringModel()
    trainer.validate(model, verbose=False)
    trainer.fit(model)
    assert sorted(io.calls) == ["remove", *["save"] * 3]
    io.teardown()
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert names[-2:] == ["epoch=1-step=2.ckpt", "epoch=2-step=3.ckpt"]
    assert not behind or len(names) == 2
    saved = io.load_checkpoint(tmp_path / names[-1])
    for name, value in model.state_dict().items():
        assert torch.equal(saved["state_dict"][name], value)


# --- another version, and what else cannot go on --------------------------------------------------


def _required() -> str:
    return require_package("lightning", (2, 6), (2, 7), "mldb.adapters.lightning", "lightning")


@pytest.mark.parametrize("found", ["2.5.6", "2.7.0", "3.0", "2.60.1", "unknown"])
def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("mldb.adapters.package_version.version", lambda _: found)
    with pytest.raises(
        mldb.UsageError, match=r"lightning >=2\.6,<2\.7, and lightning .* is installed"
    ) as e:
        _required()
    assert found in str(e.value)
    with pytest.raises(mldb.UsageError):
        importlib.reload(importlib.import_module("mldb.adapters.lightning_version"))


def test_a_missing_lightning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("mldb.adapters.package_version.version", none)
    with pytest.raises(mldb.UsageError, match=r"not installed.*pip install"):
        _required()


@pytest.mark.parametrize("found", ["2.6", "2.6.6", "2.6.0.dev20260101", "2.6.1rc1"])
def test_the_versions_that_fit(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("mldb.adapters.package_version.version", lambda _: found)
    assert _required() == found


def test_mldb_alone_imports_no_adapter() -> None:
    code = "import sys, mldb; mldb.open; print([n for n in sys.modules if 'adapters' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_exact_resume_needs_our_checkpoint_io(tmp_path: Path) -> None:
    class Other(LightningModule):
        pass

    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_checkpointing=False
    )
    trainer._checkpoint_connector._ckpt_path = "x.ckpt"
    with pytest.raises(mldb.UsageError, match="CheckpointIO"):
        ExactResume().on_fit_start(trainer, Other())


def test_a_value_that_is_not_stored_is_named(root: Path) -> None:
    class Stubborn(Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = {"function": print}

    trainer = make_trainer(
        root / "stubborn", checkpoints=ModelCheckpoint(root / "stubborn"), logger=False
    )
    with pytest.raises(mldb.InvalidTypeError, match="mine/function"):
        trainer.fit(Stubborn(), datamodule=data_of(root))
    assert list((root / "stubborn").glob("*.ckpt")) == []


def test_the_logger_of_a_run_is_told_of_its_end(root: Path) -> None:
    logger = Logger(root / "ended" / "store")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.finalize("failed")
    with mldb.open(root / "ended" / "store", mode="r") as db:
        assert db.metrics("loss").value.tolist() == [1.0]
