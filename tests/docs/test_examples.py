"""The scripts in examples/ run as they stand, and the one about resuming does resume."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mldb

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> Callable[..., Any]:
    """Return ``main`` of an example."""
    main: Callable[..., Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    return main


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert names
    assert [name for name in names if f'load("{name}")' not in source] == []
    assert set(names) - set(AS_SCRIPTS) == {"consolidate_texts"}


# The one about texts takes embeddings of a user's own, and has a test of its own.
AS_SCRIPTS = {
    "dcp_training": ["store", "2"],
    "huggingface_training": [],
    "import_export": [],
    "lake_training": ["store", "500", "numpy"],
    "lake_validation": ["1500", "numpy"],
    "lake_value": ["--quick"],
    "larger_than_memory": ["store", "2000"],
    "lightning_training": ["run", "500"],
    "time_travel": [],
    "train_and_resume": [],
}


_FRAMEWORKS = {"lightning_": "lightning", "huggingface": "transformers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.large] if name.startswith("lake_") else [])
        for name in sorted(AS_SCRIPTS)
    ],
)
def test_an_example_runs_as_a_script_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    """As its first lines say to run it; warnings of ours would puzzle who tries it."""
    pytest.importorskip("torch")
    for framework, module in _FRAMEWORKS.items():
        if name.startswith(framework):
            pytest.importorskip(module)
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *AS_SCRIPTS[name]]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    in_temporary_folders = {"lake_validation", "lake_value"}
    assert len(list(tmp_path.iterdir())) == (name not in in_temporary_folders)


def test_training_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one order of summation
    try:
        main = load("train_and_resume")
        straight = main(str(tmp_path / "straight"), 4)
        for epochs in (1, 3, 4):
            resumed = main(str(tmp_path / "resumed"), epochs)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_files_come_and_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    load("import_export")(str(tmp_path / "files"))
    printed = capsys.readouterr().out
    assert "left out: ('epoch',)" in printed
    assert "has the bias of epoch 3 again: True" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_trainer_of_hugging_face_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    main = load("huggingface_training")
    straight = main(str(tmp_path / "straight"), 2)
    main(str(tmp_path / "resumed"), 1)
    resumed = main(str(tmp_path / "resumed"), 2)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "checkpoint-32: epoch 2" in capsys.readouterr().out


def test_time_travel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("time_travel")(str(tmp_path / "store"))
    printed = capsys.readouterr().out
    assert "changed between epochs 2 and 5: ['layer/bias', 'layer/weight']" in printed
    assert "Rewound" in printed


@pytest.mark.slow
def test_dcp_training_goes_on(tmp_path: Path) -> None:
    """The ranks are processes of their own, so it is run as a script."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    main = load("dcp_training")
    assert main.__globals__["RANKS"] == 2
    command = [sys.executable, str(EXAMPLES / "dcp_training.py"), "store", "1"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    for names in ("epoch-1", "epoch-1, epoch-2"):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"checkpoints: {names}\n" in done.stdout
    assert "going on after epoch 1" in done.stdout


def test_larger_than_memory(tmp_path: Path) -> None:
    load("larger_than_memory")(str(tmp_path / "store"), 3000)
    with mldb.open(tmp_path / "store", mode="r") as db:
        assert sorted(db) == ["projected", "projection", "x", "x_mean"]
        assert abs(db["x"].mean(0) - db["x_mean"]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_lake_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("lake_training")(str(tmp_path / "store"), 1000, "numpy")
    printed = capsys.readouterr().out
    assert printed.count("rows/s") == 5
    assert "1000 rows; samples were made by numpy" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")  # of Lightning, by torch
def test_lightning_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    load("lightning_training")(str(tmp_path / "run"), 300)
    printed = capsys.readouterr().out
    assert "stopped in the middle of epoch 1" in printed
    assert "the same parameters, bit for bit" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_lake_validation(capsys: pytest.CaptureFixture[str]) -> None:
    load("lake_validation")(1500, "numpy")
    printed = capsys.readouterr().out
    for what in ("ingest", "past", "norms", "plain", "generated", "strength", "labels", "resume"):
        assert re.search(f"^{what}", printed, re.MULTILINE), what


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_lake_value(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs; what it shows is held to in test_lake_value."""
    path = EXAMPLES / "lake_value.py"
    tables = load("lake_value")(runpy.run_path(str(path))["QUICK"])
    assert [len(lines) for lines in tables.values()] == [6, 6, 5]
    assert capsys.readouterr().out.count("±") == 2 * 17


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_consolidate_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs on embeddings of any origin; what it shows of real ones is in docs/lake.md."""
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 600)
    x = rng.standard_normal((4, 24))[y] + rng.standard_normal((600, 24))
    np.savez(tmp_path / "texts.npz", X=x.astype(np.float16), y=np.array(list("abcd"))[y])
    quick = runpy.run_path(str(EXAMPLES / "consolidate_texts.py"))["QUICK"]
    claims = load("consolidate_texts")(str(tmp_path / "texts.npz"), quick)
    printed = capsys.readouterr().out
    assert "600 rows of 24 dimensions, 4 classes" in printed
    for what in ("kept of the rows", "natural, 2 seeds", "injected, 2 seeds", "augmentation"):
        assert what in printed
    assert len(claims) == printed.count(" ± ") - printed[: printed.index("must hold")].count(" ± ")
