"""A Trainer over a store: real training, killed and resumed bit-exactly; what it refuses."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import CorruptError, InvalidTypeError, MissingError, UsageError

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from mldb.adapters.huggingface import MldbCallback, MldbTrainer  # noqa: E402
from mldb.adapters.huggingface_state import find_checkpoint, resume_from  # noqa: E402
from mldb.adapters.package_version import require_package  # noqa: E402
from tests.adapters import huggingface_child as child  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


def _run(store: Path, out: Path, resume: str, kill: int) -> int:
    command = [sys.executable, str(Path(child.__file__)), str(store), str(out), resume, str(kill)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Into a file: a pipe would be held open by whatever a killed process leaves behind.
    said = store.with_name(f"{store.name}-{resume}.txt")
    with said.open("wb") as file:
        done = subprocess.run(
            command, env=environment, stdout=file, stderr=file, check=False, timeout=600
        )
    assert done.returncode in (0, -signal.SIGKILL), said.read_text()
    return done.returncode


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: value}
    return {k: v for key, part in items for k, v in _leaves(part, f"{name}/{key}").items()}


def _assert_same(one: Any, other: Any) -> None:
    first, second = _leaves(one), _leaves(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if hasattr(value, "shape"):
            np.testing.assert_array_equal(np.asarray(value), np.asarray(second[name]), name)
        else:
            assert value == second[name], name


@pytest.mark.slow
@pytest.mark.parametrize("kill", [11, 8])
def test_a_killed_training_goes_on_bit_exactly(tmp_path: Path, kill: int) -> None:
    assert _run(tmp_path / "straight", tmp_path / "out", "anew", 0) == 0
    assert _run(tmp_path / "killed", tmp_path / "out2", "anew", kill) == -signal.SIGKILL
    with mldb.open(tmp_path / "killed", mode="r") as db:
        assert db.checkpoints()[-1].step == kill // 3 * 3
    assert _run(tmp_path / "killed", tmp_path / "out2", "resume", 0) == 0
    assert os.listdir(tmp_path / "out") == []  # no folder of the Trainer's own
    with (
        mldb.open(tmp_path / "straight", mode="r") as one,
        mldb.open(tmp_path / "killed", mode="r") as other,
    ):
        assert [c.step for c in one.checkpoints()] == [3, 6, 9, 12, 15, 16]
        first, second = one.load(None), other.load(None)
        states = [json.loads(tree.pop("trainer")) for tree in (first, second)]
        _assert_same(first, second)
        for state in states:
            state["log_history"] = [
                {k: v for k, v in line.items() if not k.startswith("train_")}
                for line in state["log_history"]
            ]
        assert states[0] == states[1]
        for name in ("loss", "grad_norm", "learning_rate"):
            curve, resumed = one.metrics(name), other.metrics(name)
            assert list(curve.step) == list(resumed.step) == list(range(1, 17))
            np.testing.assert_array_equal(curve.value, resumed.value)


def _trainer(db: mldb.MLDatabase, out: Path, **options: Any) -> Any:
    own = {name: options.pop(name) for name in ("background", "rewind") if name in options}
    return MldbTrainer(
        child.new_model(),
        child.arguments(str(out), **options),
        train_dataset=child.rows(),
        eval_dataset=child.rows(8),
        db=db,
        **own,
    )


def test_the_best_model_is_loaded_and_an_older_checkpoint_resumed(tmp_path: Path) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    with mldb.open(tmp_path / "run") as db:
        trainer = _trainer(db, tmp_path / "out", background=True, max_steps=6, **best)
        trainer.train()
        name = trainer.state.best_model_checkpoint
        assert name == f"checkpoint-{trainer.state.best_global_step}"
        found = find_checkpoint(db, name)
        assert found is not None
        stored = db.state_dict(as_of=found.lsn, prefix="model/")
        for key, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, stored[key])
        again = _trainer(db, tmp_path / "out", max_steps=6, **best)
        again.train(resume_from_checkpoint="checkpoint-3")
        assert [c.name for c in db.checkpoints()] == ["checkpoint-3", "checkpoint-6"]
        assert list(db.metrics("loss").step) == [1, 2, 3, 4, 5, 6]
        assert again.state.global_step == 6


def test_a_callback_adds_checkpoints_that_the_trainer_resumes_from(tmp_path: Path) -> None:
    from transformers import Trainer

    with mldb.open(tmp_path / "run") as db:
        plain: Any = Trainer(
            child.new_model(),
            child.arguments(str(tmp_path / "out"), max_steps=4),
            train_dataset=child.rows(),
            callbacks=[MldbCallback(db)],
        )
        plain.train()
        assert [c.name for c in db.checkpoints()] == ["checkpoint-3", "checkpoint-4"]
        assert (tmp_path / "out" / "checkpoint-3" / "model.safetensors").exists()
        resumed = _trainer(db, tmp_path / "other", max_steps=4)
        resumed.train(resume_from_checkpoint="checkpoint-3")
        for one, other in zip(plain.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, other)
        # A folder of the Trainer's own goes on in a store as well.
        moved = _trainer(db, tmp_path / "other", max_steps=4)
        moved.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
        for one, other in zip(plain.model.parameters(), moved.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_model_alone(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run") as db:
        _trainer(db, tmp_path / "out", max_steps=3, save_only_model=True).train()
        assert set(db.load(None)) == {"model", "trainer"}
        again = _trainer(db, tmp_path / "out", max_steps=4, rewind=False)
        before = db.lsn
        again.train(resume_from_checkpoint=True)
        assert db.checkpoints()[-1].step == 4
        assert db.lsn >= before
        mldb.export_file(
            db, tmp_path / "m" / "model", prefix="model/", strip_prefix="model/", shard_bytes=4096
        )
        again.model.config.save_pretrained(tmp_path / "m" / "model")
        back = type(again.model).from_pretrained(tmp_path / "m" / "model")
        for one, other in zip(again.model.parameters(), back.parameters(), strict=True):
            assert torch.equal(one, other)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidTypeError, match=r"mldb\.open"):
        MldbCallback(str(tmp_path))  # type: ignore[arg-type]
    with mldb.open(tmp_path / "run") as db:
        trainer = _trainer(db, tmp_path / "out", max_steps=3)
        for wanted in (True, "checkpoint-7"):
            with pytest.raises(MissingError, match="checkpoint-"):
                trainer.train(resume_from_checkpoint=wanted)
        trainer.is_fsdp_enabled = True
        with pytest.raises(UsageError, match="FSDP"):
            trainer.train()
        assert len(db) == 0


@pytest.mark.parametrize(
    "text, error", [("{", CorruptError), ('{"gone": 1}', UsageError), (None, MissingError)]
)
def test_the_state_of_another_version_is_told(
    tmp_path: Path, text: str | None, error: type[Exception]
) -> None:
    with mldb.open(tmp_path / "run") as db:
        tree = {"model": {"w": torch.ones(2)}} | ({} if text is None else {"trainer": text})
        db.checkpoint(tree, epoch=0, name="checkpoint-1")
        found = find_checkpoint(db, True)
        assert found is not None
        with pytest.raises(error):
            resume_from(db, found)


@pytest.mark.parametrize("installed", ["4.57.0", "6.0.0", "5.19.1", "nonsense"])
def test_another_version_is_refused_by_name(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mldb.adapters.package_version.version", lambda name: installed)
    with pytest.raises(UsageError, match=installed.replace(".", r"\.")):
        require_package("transformers", (5, 20), (6, 0), "mldb.adapters.huggingface", "huggingface")

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("mldb.adapters.package_version.version", absent)
    with pytest.raises(UsageError, match="not installed"):
        require_package("transformers", (5, 20), (6, 0), "mldb.adapters.huggingface", "huggingface")
