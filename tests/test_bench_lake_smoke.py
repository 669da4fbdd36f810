"""The lake's harness itself, at a size that says nothing about speed: does it check and report?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mldb.gpu.reference import NumpyDevice
from tests.bench.children import Task
from tests.bench.report import Table, render_table, render_targets
from tests.bench.timing import Workspace
from tests.bench_lake import measure, runner, work_chains, work_stream
from tests.bench_lake.child import Child, Group
from tests.bench_lake.loaders import Loaders, chances_and_weights
from tests.bench_lake.setting import TINY, Setting, make_data
from tests.bench_lake.targets import TARGETS
from tests.bench_lake.work_ingest import Ingest
from tests.bench_lake.worker import AbsentError


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    workspace = Workspace(tmp_path_factory.mktemp("lake"), 0.0)
    data = make_data(workspace.fresh("rows"), TINY)
    return Setting(TINY, data, workspace, processes=False)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata asks torch for it
def test_the_workloads_run_and_measure_what_targets_name(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that opens no compiled device and starts no loader workers."""
    only = ["S1", "S2", "S3", "S4", "S8", "S10", "S11"]
    outcome = runner.run(setting, only)
    printed = capsys.readouterr().out
    assert {table.workload for table in outcome.tables} == set(only)
    for table in outcome.tables:
        assert all(value > 0 for values in table.samples.values() for value in values)
        assert "mldb" in table.samples
    for target in TARGETS:
        if target.workload in only:
            assert f"{target.workload} {target.figure}" in printed
            for bound in (*target.must, *target.aim):
                assert bound.measure in outcome.measures or bound.measure == "s1.ingest / lance"


def test_the_command_line_measures_in_processes_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--quick", "--only", "s1", "--rows", "500", "--rounds", "1"]
    assert runner.main([*arguments, "--path", str(tmp_path), "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["machine"]["rows"] == 500
    assert set(document["tables"][0]["samples"]) > {"mldb"}
    assert len(document["targets"]) == len(TARGETS)
    assert "S1 durable ingest" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.json"]


def test_a_contender_that_is_not_there_is_named_with_the_reason(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Ingest) -> Any:
        raise AbsentError("not installed: pip install pylance")

    monkeypatch.setattr(Ingest, "_prepare_lance", refuse)
    outcome = measure.ingest(setting)
    line = render_table(outcome.tables[0]).splitlines()[-1]
    assert line.split(maxsplit=1) == ["lance", "not installed: pip install pylance"]
    row = next(
        line
        for line in render_targets(outcome.measures, ["S1"], TARGETS).splitlines()
        if "against Lance" in line
    )
    assert row.split()[-5:] == ["not", "measured", "?", "/", "-"]


def test_a_child_that_fails_says_why(setting: Setting) -> None:
    task = setting.task("ingest", how="mldb")
    task["data"]["folder"] = "/nowhere"
    with pytest.raises(RuntimeError, match="No such file"):
        Child(task)


def test_a_group_ends_its_contenders_when_one_cannot_be_made(setting: Setting) -> None:
    tasks: dict[str, Task] = {"bad": setting.task("ingest", how="none")}
    with pytest.raises(KeyError):
        Group(tasks, processes=False)


class _Damaged:
    """A loader of which one batch has one bit turned, or that leaves its last batch out."""

    def __init__(self, loader: Any, *, drop: bool) -> None:
        self._loader, self._drop = loader, drop

    def __iter__(self) -> Iterator[torch.Tensor]:
        batches = [batch.clone() for batch in self._loader]
        if self._drop:
            batches.pop()
        else:
            batches[3].numpy().view(np.uint32)[1, 1] ^= 1
        return iter(batches)


@pytest.mark.parametrize("drop", [False, True])
def test_a_loader_that_returns_other_rows_gets_no_figures(setting: Setting, drop: bool) -> None:
    loader = Loaders(setting.task("stream")).make("torch", "shuffled")
    work_stream.checked(loader, "shuffled", setting.data)
    with pytest.raises(RuntimeError, match="no figures"):
        work_stream.checked(_Damaged(loader, drop=drop), "shuffled", setting.data)


def test_pytorch_draws_with_the_chances_and_weights_of_the_lake(setting: Setting) -> None:
    """Both sides return the same weight for the same row."""
    _, weights = chances_and_weights(setting.data)
    rows = {row.tobytes(): place for place, row in enumerate(setting.data.mapped())}
    loaders = Loaders(setting.task("stream"))
    for batch in loaders.make("mldb", "weighted"):
        places = [rows[row.tobytes()] for row in batch.mu.numpy()]
        np.testing.assert_allclose(batch.weight.numpy(), weights[places], rtol=1e-5)
    loaders.close()


def test_noise_has_the_cosine_of_the_augmentation(setting: Setting) -> None:
    loader = Loaders(setting.task("stream")).make("own", "sequential")
    torch.manual_seed(1)
    work_stream.checked(work_stream.Noisy(loader, TINY.batch, TINY.dim), "augmented", setting.data)
    with pytest.raises(RuntimeError, match="mean cosine"):
        work_stream.checked(loader, "augmented", setting.data)


@pytest.mark.parametrize("energy", ["self", "mixture"])
def test_the_torch_operations_move_as_the_reference_does(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, energy: str
) -> None:
    """The law is compared by the mean cosine, as the harness does; other steps must be caught."""
    monkeypatch.setattr(work_chains, "open_device", lambda *_, **__: NumpyDevice())
    sizes = {"rows": 512, "neighbours": TINY.neighbours, "steps": 4, "energy": energy}
    cosines = {
        device: work_chains.ChainRun(setting.task("chains", device=device) | sizes).ready["cosine"]
        for device in ("numpy", "eager")
    }
    measure._same_law(cosines, TINY.dim)
    longer = setting.task("chains", device="eager") | {**sizes, "steps": 40}
    cosines["longer"] = work_chains.ChainRun(longer).ready["cosine"]
    with pytest.raises(RuntimeError, match="different mean cosines"):
        measure._same_law(cosines, TINY.dim)


def test_absent_lines_stand_behind_those_with_figures() -> None:
    table = Table(workload="S0", title="t", unit="u", samples={"a": [1.0]}, absent={"b": "why"})
    assert render_table(table).splitlines()[-1].split() == ["b", "why"]
