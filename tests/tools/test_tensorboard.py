"""Curves to event files of TensorBoard and back; files of others, and damaged ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.log.fs.memory import MemoryFileSystem
from mldb.tools.tensorboard import export_metrics, import_metrics


def store() -> mldb.MLDatabase:
    return mldb.MLDatabase.on(MemoryFileSystem(), durability="os")


def filled() -> mldb.MLDatabase:
    db = store()
    for step in range(200):
        db.log({"loss": step / 4, "lr": float("inf") if step == 5 else 0.5}, step=2 * step)
    for value in (1.5, float("nan")):
        db.log({"val/acc": value})
    return db


def test_without_the_package_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        export_metrics(store(), tmp_path)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        import_metrics(tmp_path, store())


def test_what_is_exported_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    db = filled()
    assert export_metrics(db, tmp_path / "all") == 402
    assert export_metrics(db.at(mldb.Lsn(20)), tmp_path / "early") == 20
    assert export_metrics(db, tmp_path / "one", names=["lr"]) == 200
    other = store()
    assert import_metrics(tmp_path / "all", other, epoch=4) == 402
    assert other.metrics() == db.metrics()
    for name in db.metrics():
        old, new = db.metrics(name), other.metrics(name)
        np.testing.assert_array_equal(new.value, old.value.astype("f4"))
        assert new.step.tolist() == [
            place if step < 0 else step for place, step in enumerate(old.step.tolist())
        ]
        assert set(new.epoch.tolist()) == {4}
        apart = np.abs((new.time - old.time).astype("i8"))
        assert apart.max() <= 1000  # a float64 of seconds
    together = store()
    assert import_metrics(tmp_path, together) == 402 + 20 + 200
    assert together.metrics() == [
        *("all/loss", "all/lr", "all/val/acc", "early/loss", "early/lr", "one/lr")
    ]


def test_files_that_torch_wrote_are_read_and_what_is_no_scalar_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "run", max_queue=10) as writer:
        for step in range(5):
            writer.add_scalar("loss/train", step / 2, step)
            writer.add_scalar("new", step, step, new_style=True)
        writer.add_histogram("weights", np.arange(10.0), 1)
        writer.add_text("note", "hello", 1)
        writer.add_scalar("/odd\\ tag/..", 3.0, 7)
    db = store()
    assert import_metrics(tmp_path, db) == 11
    assert "run/loss/train" in db.metrics()
    assert db.metrics("run/loss/train").value.tolist() == [0, 0.5, 1, 1.5, 2]
    assert db.metrics("run/new").value.tolist() == [0, 1, 2, 3, 4]
    (odd,) = set(db.metrics()) - {"run/loss/train", "run/new"}
    assert db.metrics(odd).step.tolist() == [7]


def test_a_folder_without_files_and_a_damaged_file_are_errors(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(mldb.MissingError, match="no event file"):
        import_metrics(tmp_path, store())
    export_metrics(filled(), tmp_path)
    (path,) = tmp_path.glob("*tfevents*")
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[: len(data) // 2]))  # a run that still writes
    db = store()
    assert 0 < import_metrics(tmp_path, db) < 402
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(mldb.CorruptError, match="tfevents"):
        import_metrics(tmp_path, store())


def test_many_points_are_several_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("mldb.write.metric_plans.fmt.ATTR_BYTES_MAX", 24 * 50)
    export_metrics(filled(), tmp_path)
    db = store()
    assert import_metrics(tmp_path, db) == 402
    assert len({event.lsn for event in db.events()}) >= 4
    assert len(db.metrics("loss")) == 200
