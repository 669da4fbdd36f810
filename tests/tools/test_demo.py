"""The demo end to end, and its kill: SIGKILL at a seeded byte of a save, 20 times.

What "bit-equal" compares is a hash of the whole training state; a test shows that it sees every
part of it. The trainings run in processes that one worker forks, with torch loaded once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.tools.demo.main import main
from mldb.tools.demo.orders import Order, Settings
from mldb.tools.demo.run import (
    Attempt,
    DemoError,
    Worker,
    differences,
    store_digits,
    train_with_kills,
)

pytest.importorskip("torch")
pytest.importorskip("sklearn")

EPOCHS = 6
SETTINGS = Settings(epochs=EPOCHS)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as running:
        yield running


@pytest.fixture(scope="module")
def reference(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    path = str(tmp_path_factory.mktemp("demo") / "uninterrupted")
    store_digits(path)
    return worker.carry_out(Order(path=path, until=EPOCHS, settings=SETTINGS))


def test_the_reference_learns_and_saves(reference: Attempt) -> None:
    assert reference.status == 0
    assert reference.accuracy > 0.9
    assert len(reference.saves) == 2 * EPOCHS
    assert reference.saves.keys() == reference.hashes.keys()
    assert len(set(reference.hashes.values())) == 2 * EPOCHS
    assert {saved.behind for saved in reference.saves.values()} == {True, False}


@pytest.mark.slow
def test_twenty_kills_in_the_middle_of_a_save(
    worker: Worker, reference: Attempt, tmp_path: Path, seed: int
) -> None:
    path = str(tmp_path / "run")
    store_digits(path)
    order = Order(path=path, until=EPOCHS, settings=SETTINGS)
    kills = train_with_kills(worker, order, reference, 20, seed)
    assert len(kills) == 20
    steps = sorted(reference.saves)
    for kill in kills:
        ready = kill.after.ready
        recovery = ready["recovery"]
        before = max((step for step in steps if step < kill.step), default=0)
        if recovery["clean"]:
            assert ready["step"] == kill.step  # the last byte was reached
        else:
            assert ready["step"] == before
            assert recovery["dropped_bytes"] == kill.byte
            assert recovery["dropped_transactions"] == 1
        assert not differences(kill.after, reference)
        assert ready["resumed"] == (ready["step"] > 0)
    assert sum(not kill.after.ready["recovery"]["clean"] for kill in kills) >= 15
    assert kills[-1].after.status == 0
    assert kills[-1].after.curve == reference.curve
    with mldb.open(path) as db:
        assert db.recovery.clean
        assert db.verify().ok
        assert [item.step for item in db.checkpoints()] == steps


def test_a_resume_that_differs_is_found(
    worker: Worker, reference: Attempt, tmp_path: Path, seed: int
) -> None:
    path = str(tmp_path / "run")
    store_digits(path)
    other = copy.deepcopy(reference)
    other.hashes[max(other.hashes)] = "0" * 64
    order = Order(path=path, until=EPOCHS, settings=SETTINGS)
    with pytest.raises(DemoError, match=f"step {max(other.hashes)} differs"):
        train_with_kills(worker, order, other, 1, seed)
    assert differences(Attempt(curve=[1.0]), reference) == ["the loss curve differs"]


def test_the_fingerprint_sees_every_part_of_a_state(tmp_path: Path) -> None:
    import torch

    from mldb.tools.demo.train import Training, fingerprint

    path = str(tmp_path / "store")
    store_digits(path)
    with mldb.open(path) as db:
        training = Training(db, Settings(hidden=8))

    def hashed() -> str:
        return fingerprint(training.state())

    assert hashed() == hashed()
    seen = {hashed()}

    def expect_new() -> None:
        value = hashed()
        assert value not in seen
        seen.add(value)

    with torch.no_grad():
        weights = next(training.model.parameters()).numpy()
    weights.view(np.uint32)[3, 5] ^= 1  # the last bit of one weight
    expect_new()
    training.loader.next()
    expect_new()
    torch.rand(1)
    expect_new()
    training._noise.random()
    expect_new()
    training._shift.random()
    expect_new()
    training.optimizer.param_groups[0]["lr"] *= 1.5
    expect_new()
    training.scheduler.last_epoch += 1
    expect_new()
    training.curve.append(0.5)
    expect_new()


@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert main(["--path", str(folder), "--epochs", "4", "--kills", "2", "--json"]) == 0
    outcome: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert outcome["ok"], outcome
    steps = [row["step"] for row in outcome["rows"]]
    assert steps == [
        *("data", "record", "kill 1", "kill 2", "interrupted", "compare", "time travel", "diff"),
        *("tag", "history", "rewind", "left behind", "verify", "backup"),
    ]
    figures = outcome["figures"]
    assert figures["checkpoints"] == 8
    assert set(figures["norms"]) == {"1", "2", "4"}
    assert len(set(figures["norms"].values())) == 3
    # What it left is what it said.
    with mldb.open(folder / "run", mode="r") as db:
        assert db.at("best").epoch == figures["best_epoch"]
        for epoch, norm in figures["norms"].items():
            as_of: Any = int(epoch) if int(epoch) <= 2 else "first-run"
            found = db.query_tensor("model/0.weight", as_of=as_of)
            assert float(np.linalg.norm(found)) == norm
        assert db.epoch == 4
    with mldb.open(folder / "backup", mode="r") as db:
        assert db.verify().ok


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert main(["--path", str(folder), "--epochs", "2", "--kills", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "what", "happened", "ms"]
    assert lines[-1].startswith("in all")
    assert max(map(len, lines)) <= 80


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert main(["--path", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["--path", str(tmp_path / "mine")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(SystemExit):
        main(["--epochs", "1"])
