"""What a page shows is what the store holds."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import mldb
from mldb.log.format import ENCODING_REFERENCE
from mldb.tools.report.build import make_report
from mldb.tools.report.facts import ParameterFacts, RunFacts
from mldb.tools.report.gather_lakes import gather_lakes, read_counts
from mldb.tools.report.gather_parameters import (
    chosen_epochs,
    gather_parameters,
)
from mldb.tools.report.gather_run import CURVES_SHOWN, gather_run
from mldb.tools.report.gather_storage import ENCODING_LABELS, gather_storage
from mldb.tools.report.layers import OTHER_LAYERS, layer_of, natural_order
from mldb.tools.report.states import MeasureCache


def run_of(db: mldb.MLDatabase, as_of: object = None) -> RunFacts:
    with db.at(as_of) as at:  # type: ignore[call-overload]
        found: RunFacts = gather_run(db, at, "run", "")
        return found


def parameters_of(db: mldb.MLDatabase, **settings: object) -> ParameterFacts:
    with db.at() as at:
        run = gather_run(db, at, "run", "")
        epochs = np.unique(run.epochs[run.is_kept])
        return gather_parameters(db, at, epochs, **settings)  # type: ignore[arg-type]


def damage(store: Path, values: np.ndarray) -> None:
    """Turn a bit of a stored array over."""
    data = values.tobytes()[64:192]
    for path in (store / "segments").iterdir():
        content = bytearray(path.read_bytes())
        place = content.find(data)
        if place >= 0:
            content[place + 17] ^= 4
            path.write_bytes(content)
            return
    raise AssertionError("the array is in no segment")


# --- the run --------------------------------------------------------------------------------------


def test_commits_that_a_rewind_left_are_told_apart(recorded: Path) -> None:
    with mldb.open(recorded, mode="r") as db:
        found = run_of(db)
        versions = {int(version.lsn) for version in db.history("model/fc.weight")}
    assert len(found.rewinds) == 1
    assert found.lsns.tolist() == sorted(found.lsns.tolist())
    left = set(found.lsns[~found.is_kept].tolist())
    assert left
    assert not left & versions
    assert versions <= set(found.lsns[found.is_kept].tolist())
    assert found.tags["best"] in found.lsns


def test_curves_are_those_of_the_lineage(recorded: Path) -> None:
    with mldb.open(recorded, mode="r") as db:
        curves = {curve.name: curve for curve in run_of(db).curves}
        earlier = {curve.name: curve for curve in run_of(db, 2).curves}
    assert curves["loss"].x.tolist() == list(range(1, 9))
    assert curves["loss"].y.tolist() == [1 / step for step in range(1, 9)]
    assert (curves["loss"].x_label, curves["loss"].source) == ("step", "logged")
    assert curves["acc"].source == "from checkpoints"
    assert earlier["loss"].x.tolist() == [1, 2]


def test_more_metrics_than_fit_are_counted(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        db.log({f"m{number:03}": float(number) for number in range(100)}, epoch=1)
        found = run_of(db)
        db.checkpoint({"w": np.ones(2)}, epoch=1, metrics={"acc": 0.5, "note": "text"})
        assert run_of(db).curves_in_all == 101
    assert (len(found.curves), found.curves_in_all) == (CURVES_SHOWN, 100)
    assert found.curves[0].x_label == "epoch"


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", (1, 2, 47, 48, 49, 200, 1000, 123_457))
def test_epochs_are_chosen_evenly_with_both_ends(count: int) -> None:
    epochs = np.arange(count) * 3
    found = chosen_epochs(epochs, 48)
    assert found[0] == 0
    assert found[-1] == epochs[-1]
    assert len(found) <= 49
    steps = np.diff(found)
    assert len(set(steps[:-1].tolist())) <= 1
    assert len(found) >= min(count, 20)


def test_epochs_chosen_before_stay_while_a_run_grows() -> None:
    before = chosen_epochs(np.arange(130), 48)
    after = chosen_epochs(np.arange(131), 48)
    assert set(before[:-1]) <= set(after)


def test_norms_and_ratios_are_those_of_the_values(recorded: Path) -> None:
    with mldb.open(recorded, mode="r") as db:
        found = parameters_of(db)
        values = [db.query_tensor("model/fc.weight", as_of=epoch) for epoch in found.epochs[1:]]
    assert found.epochs == [0, *range(1, 9)]
    assert not found.is_sampled
    layers = {layer.name: layer for layer in found.layers}
    assert set(layers) == {"model/conv1", "model/fc"}
    (tensor,) = layers["model/fc"].tensors
    norms = [float(np.linalg.norm(value)) for value in values]
    assert tensor.figures["norm"][1:] == pytest.approx(norms, rel=1e-5)
    assert math.isnan(tensor.figures["norm"][0])
    assert tensor.figures["ratio"][2:] == pytest.approx([0.1] * 7, rel=1e-4)
    assert layers["model/fc"].figures["norm"][1:] == pytest.approx(norms, rel=1e-5)
    assert tensor.figures["max"][-1] == values[-1].max()
    assert tensor.histogram.sum(axis=1)[1:] == pytest.approx([1] * 8)
    assert layers["model/conv1"].figures["ratio"][2:].tolist() == [0.0] * 7
    zeros = {one.name: one.figures["zeros"][-1] for one in layers["model/conv1"].tensors}
    assert zeros["model/conv1.bias"] == 1


def test_equal_bytes_are_read_once(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        for epoch in range(1, 6):
            db.store_tensor("same", np.ones(10_000), epoch=epoch)
        cache = MeasureCache()
        assert parameters_of(db, cache=cache).read_bytes == 80_000
        assert parameters_of(db, cache=cache).read_bytes == 0
        db.store_tensor("same", np.zeros(10_000), epoch=6)
        found = parameters_of(db, cache=cache)
    assert found.read_bytes == 160_000  # the new state, and the one that it is compared with
    assert found.layers[0].figures["ratio"][-1] == 1


def test_a_large_store_is_sampled_and_summed_up(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        for epoch in range(12):
            with db.transaction(epoch=epoch) as txn:
                for number in range(9):
                    txn.store_tensor(f"l{number}/w", np.full(number + 1, epoch + 1.0))
        found = parameters_of(db, tensors_drawn=3, epochs_shown=4)
    assert found.is_sampled
    assert found.epochs == [0, 5, 10, 11]
    assert sum(len(layer.tensors) for layer in found.layers) == 3
    assert [layer.name for layer in found.layers if layer.tensors] == ["l6", "l7", "l8"]
    assert found.layers[0].figures["norm"].tolist() == [1, 6, 11, 12]


def test_a_damaged_tensor_is_named_and_the_rest_is_there(store_path: Path) -> None:
    rng = np.random.default_rng(3)
    bad = rng.standard_normal(5000)
    with mldb.open(store_path, durability="os") as db:
        db.store_tensor("good", rng.standard_normal(5000), epoch=1)
        db.store_tensor("bad", bad, epoch=1)
        db.store_tensor("bad", rng.standard_normal(5000), epoch=2)
    damage(store_path, bad)
    with mldb.open(store_path, mode="r") as db:
        found = parameters_of(db)
        made = make_report(db)
    assert [text.partition(":")[0] for text in found.problems] == ["bad"]
    layers = {layer.name: layer for layer in found.layers}
    assert np.isfinite(layers["good"].figures["norm"]).all()
    assert np.isnan(layers["bad"].figures["norm"]).tolist() == [True, False]
    assert b"Not shown:" in made.html
    assert len(made.problems) == 1


def test_epochs_that_retention_pruned_are_left_out(store_path: Path) -> None:
    with mldb.open(store_path, durability="os", background_compaction=False) as db:
        for epoch in range(1, 11):
            db.store_tensor("w", np.full(100, float(epoch)), epoch=epoch)
        db.retention.set(last=2)
        db.compact()
        found = parameters_of(db)
        assert make_report(db).epochs_shown == len(found.epochs)
    assert found.epochs[-2:] == [9, 10]
    assert found.layers[0].figures["norm"][-1] == 100


@pytest.mark.parametrize(
    "values",
    (
        np.array(["a", "b"]),
        np.array([1, 2], "M8[s]"),
        np.array(3.5),
        np.zeros((0, 4)),
        np.array([1 + 2j]),
        np.array([True, False]),
        np.ones(3, ml_dtypes.bfloat16),
        np.ones(4, ml_dtypes.float8_e5m2),
        np.ones(4, ml_dtypes.int4),
        np.ones(4, ml_dtypes.float4_e2m1fn),
    ),
    ids=lambda values: str(values.dtype),
)
def test_tensors_of_any_type_make_a_page(store_path: Path, values: object) -> None:
    with mldb.open(store_path, durability="os") as db:
        try:
            db.store_tensor("x", values, epoch=1)
        except mldb.MldbError:
            pytest.skip("no dtype that can be stored")
        made = make_report(db)
    assert made.problems == ()
    assert made.tensors == 1


def test_a_sparse_tensor_is_measured_by_the_values_it_stores(store_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(30, 20, density=0.1, random_state=1, format="csr")
    with mldb.open(store_path, durability="os") as db:
        db.store_tensor("s", matrix, epoch=1)
        found = parameters_of(db)
    assert found.layers[0].figures["norm"][-1] == pytest.approx(sparse.linalg.norm(matrix))


def test_tensors_come_and_go(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        db.store_tensor("w", np.ones(4), epoch=1)
        with db.transaction(epoch=2) as txn:
            txn.delete_tensor("w")
            txn.store_tensor("other", np.ones(4))
        db.store_tensor("w", np.ones((2, 3)), epoch=3)
        found = {layer.name: layer.figures for layer in parameters_of(db).layers}
    assert np.isnan(found["w"]["norm"]).tolist() == [False, True, False]
    assert np.isnan(found["w"]["ratio"]).all()


def test_layers_are_told_or_guessed_and_in_their_order() -> None:
    assert layer_of("a/b/w", {"layer": "told"}) == "told"
    assert layer_of("model/blocks.0.fc.weight", {}) == "model/blocks.0.fc"
    assert [layer_of(name, {"layer": 3}) for name in ("w", ".w", "/w")] == ["w", ".w", "/w"]
    names = ["b.10", "b.9", "a", "b.100", "b"]
    assert sorted(names, key=natural_order) == ["a", "b", "b.9", "b.10", "b.100"]
    sorted(["1", "a1", "1a", "", "²", "9" * 500], key=natural_order)


def test_layers_beyond_some_number_stand_together(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        with db.transaction(epoch=1) as txn:
            for number in range(70):
                txn.store_tensor(f"l{number:02}/w", np.ones(number + 1))
        found = parameters_of(db)
    assert len(found.layers) == 61
    assert (found.layers[-1].name, found.layers[-1].count) == (OTHER_LAYERS, 10)
    assert sum(layer.count for layer in found.layers) == 70


# --- storage --------------------------------------------------------------------------------------


def test_bytes_are_those_of_all_versions(store_path: Path) -> None:
    with mldb.open(store_path, durability="os", deduplicate=True) as db:
        for epoch in range(1, 4):
            db.store_tensor("grows", np.full(100_000, float(epoch)), epoch=epoch)
            db.store_tensor("same", np.arange(200_000.0), epoch=epoch)
        with db.at() as at:
            run = run_of(db)
            found = gather_storage(db, at, run.lsns, run.epochs)
    rows = {name: row for name, *row in found.by_name}
    assert rows["grows"][:2] == [3, 2_400_000]
    assert rows["same"][:2] == [3, 4_800_000]
    assert found.versions == 6
    assert found.by_encoding[ENCODING_LABELS[ENCODING_REFERENCE]] == (2, 3_200_000, 0)
    assert [(epoch, decoded) for epoch, decoded, _ in found.by_epoch] == [
        (epoch, 2_400_000) for epoch in (1, 2, 3)
    ]
    assert found.file_bytes >= sum(row[3] for row in found.by_name)


# --- lakes ----------------------------------------------------------------------------------------


def test_lakes_tell_rows_merges_and_avalanches(recorded: Path) -> None:
    with mldb.open(recorded, mode="r") as db:
        with db.at() as at:
            run = run_of(db)
            (lake,) = gather_lakes(db, at, run.lsns, run.epochs).lakes
        rows = len(db.lake("docs"))
    assert lake.rows == rows == len(lake.kappa) == lake.growth[-1][2]
    assert lake.mass == pytest.approx(180, rel=1e-5)
    assert lake.merges
    for merge in lake.merges:
        assert merge.sizes.sum() == merge.sources
        assert len(merge.sizes) == merge.made
        assert merge.avalanches.sum() == 60  # one a grain that arrived


def test_avalanches_of_another_shape_are_none() -> None:
    assert read_counts("3 0 12").tolist() == [3, 0, 12]
    for other in (None, 7, "", "a b", "-1", "1" * 30, "1 " * 2000, "²"):
        assert len(read_counts(other)) == 0
