"""The command show: one tensor of any kind, its figures, histogram, curve, and what is damaged."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import mldb
from mldb.tools.cli.charts import Bins, bar, bin_lines, sparkline
from mldb.tools.cli.main import PROBLEM, USAGE
from mldb.tools.cli.portrait import BINS, bins_of, sampled_versions

Run = Callable[..., Any]


def nothing() -> None:
    """A step that nobody counts."""


def test_show_tells_what_a_tensor_is(ran: Run, store: str) -> None:
    found = ran("show", store, "conv1_weights")
    assert (found.status, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0] == "conv1_weights"
    told = dict(line.split(None, 1) for line in lines[1:] if "  " in line)
    assert (told["dtype"], told["shape"], told["layout"]) == ("float32", "4x8 = 32", "dense")
    assert (told["epoch"], told["versions"]) == ("4", "4, the first of epoch 1")
    assert (told["type"], told["layer"]) == ("weights", "conv1")
    assert told["relationship"] == "conv1_weights -> conv1_biases (layer_params)"
    assert (told["mean"], told["std"], told["norm"]) == ("4", "0", "22.6274")
    at = lines.index("norm over epochs 1 to 4, 5.657 to 22.63")
    assert lines[at + 1] == "▁▃▆█"
    assert lines[at - 2].split() == ["4", lines[at - 2].split()[1], "32"]


def test_as_of_shows_the_past_and_the_curve_up_to_it(ran: Run, store: str) -> None:
    found = ran("show", store, "conv1_weights", "--as-of", "2", "--curve", "mean", "--json").json
    assert (found["epoch"], found["versions"], found["statistics"]["mean"]) == (2, 2, 2.0)
    assert [point["value"] for point in found["curve"]["points"]] == [1.0, 2.0]
    assert found["metadata"] == {"type": "weights", "layer": "conv1", "position": 0}
    assert ran("show", store, "conv1_weights", "--as-of", "99").status == 0


def test_values_are_printed_as_numpy_does(ran: Run, store: str) -> None:
    with mldb.open(store, durability="os") as db:
        db.store_tensor("small", np.arange(6).reshape(2, 3))
        db.store_tensor("large", np.arange(1000))
    assert "[[0 1 2]\n [3 4 5]]\n" in ran("show", store, "small", "--values").out
    large = ran("show", store, "large", "--values").out
    assert large.endswith(" 96 97 98 99]\nthe first 100 of 1,000\n")
    assert ran("show", store, "large", "--values", "--json").json["values"] == list(range(100))


def test_a_name_that_is_none_names_the_nearest(ran: Run, store: str) -> None:
    found = ran("show", store, "conv1_weight")
    assert found.status == USAGE
    assert "Did you mean 'conv1_weights'?" in found.err
    with mldb.open(store, durability="os") as db:
        db.delete_tensor("conv1_biases")
    assert ran("show", store, "conv1_biases").status == USAGE
    assert ran("show", store, "conv1_biases", "--as-of", "4").status == USAGE
    assert ran("show", store, "conv1_biases", "--as-of", "3").status == 0


@pytest.mark.parametrize(
    ("value", "mean", "counts"),
    [
        (np.array([True, False, True, True]), 0.75, [1, 3]),
        (np.array([3 + 4j, 0]), 2.5, [1, *[0] * 10, 1]),
        (np.array([-1, 0, 0, 2], np.int8), 0.25, [1, 2, 0, 1]),
        (np.array(3.5), 3.5, [1]),
        (np.array([1.0, 2.0], ">f4"), 1.5, [1, *[0] * 10, 1]),
        (np.array([1, 2], ml_dtypes.bfloat16), 1.5, [1, *[0] * 10, 1]),
        (np.array([2**63, 2**63 + 1], np.uint64), 2.0**63, [2]),
        (np.zeros((0, 3)), None, None),
        (np.full(4, np.nan), None, None),
        (np.array(["a", "b"]), None, None),
        (np.array(["2026-01-01"], "M8[D]"), None, None),
        (scipy.sparse.csr_array(np.array([[0, 2.0], [0, 0]])), 0.5, [1]),
        (scipy.sparse.csr_array((3, 4)), 0.0, None),
    ],
    ids=str,
)
def test_tensors_of_every_kind(
    ran: Run, tmp_path: Path, value: Any, mean: float | None, counts: list[int] | None
) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("t", value)
    found = ran("show", tmp_path / "run", "t", "--json", "--values")
    assert found.status == 0
    assert found.json["statistics"]["mean"] == mean
    histogram = found.json["histogram"]
    assert (None if histogram is None else histogram["counts"]) == counts
    assert found.json["problems"] == []
    shown = ran("show", tmp_path / "run", "t", "--values")
    assert (shown.status, shown.err) == (0, "")


def test_infinities_stand_at_the_ends(ran: Run, tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("t", np.array([np.inf, np.inf, 1, -np.inf, np.nan]))
    found = ran("show", tmp_path / "run", "t")
    lines = [line.split() for line in found.out.splitlines()]
    assert [(line[0], line[-1]) for line in lines[-3:]] == [("-inf", "1"), ("1", "1"), ("inf", "2")]
    assert ran("show", tmp_path / "run", "t", "--json").json["histogram"]["above"] == 2


def damaged(path: Path, name: str, as_of: int) -> None:
    """Flip a byte of the values of one version."""
    with mldb.open(path, mode="r") as db:
        needle = np.ascontiguousarray(db.query_tensor(name, as_of=as_of)).tobytes()[-4096:]
    for segment in (path / "segments").iterdir():
        data = bytearray(segment.read_bytes())
        at = data.find(needle)
        if at >= 0:
            data[at] ^= 1
            segment.write_bytes(data)
            return
    raise AssertionError("the values were not found")


@pytest.mark.parametrize("epoch", [2, 3])
def test_what_is_damaged_is_named_and_the_rest_is_told(
    ran: Run, tmp_path: Path, rng: np.random.Generator, epoch: int
) -> None:
    path = tmp_path / "run"
    with mldb.open(path) as db:
        for number in range(1, 4):
            db.store_tensor("w", rng.standard_normal(50_000), {"note": "kept"}, epoch=number)
    damaged(path, "w", epoch)
    found = ran("show", path, "w", "--json")
    assert found.status == PROBLEM
    told = found.json
    assert (told["dtype"], told["shape"], told["metadata"]) == (
        "float64",
        [50_000],
        {"note": "kept"},
    )
    assert any("damaged" in problem or "checksum" in problem for problem in told["problems"])
    values = {point["epoch"]: point["value"] for point in told["curve"]["points"]}
    assert values[epoch] == "NaN"
    assert all(value != "NaN" for at, value in values.items() if at != epoch)
    assert (told["statistics"] is None) == (epoch == 3)
    shown = ran("show", path, "w", "--values")
    assert shown.status == PROBLEM
    assert "·" in shown.out
    assert "segments/" in shown.err
    assert ran("show", path, "w", "--brief").status == 0


def test_a_version_whose_commit_retention_dropped_is_on_the_curve(ran: Run, tmp_path: Path) -> None:
    # It stays as the newest version of its name at a later moment that is kept.
    path = tmp_path / "run"
    with mldb.open(path, durability="os", background_compaction=False) as db:
        db.store_tensor("w", np.full(8, 1.0), epoch=1)
        db.store_tensor("other", np.zeros(8), epoch=2)
        db.store_tensor("w", np.full(8, 3.0), epoch=3)
        db.pin(2)
        db.retention.set(last=1)
        db.compact()
        first = db.history("w")[0]
        with pytest.raises(mldb.VersionGoneError):
            db.tensor("w", as_of=first.lsn)
        assert db.tensor_version("w", first.lsn).numpy()[0] == 1.0
        with pytest.raises(mldb.VersionGoneError):
            db.tensor_version("w", first.lsn + 1)
    found = ran("show", path, "w", "--curve", "max", "--json").json
    assert [point["value"] for point in found["curve"]["points"]] == [1.0, 3.0]


def test_brief_and_no_points_read_less(
    ran: Run, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = ran("show", store, "conv1_weights", "--points", "0", "--json").json
    assert none["curve"]["points"] == []
    assert none["statistics"]["max"] == 4

    def refuse(*_: object) -> None:
        raise AssertionError("a value was read")

    monkeypatch.setattr("mldb.tensors.handle.stored_bytes", refuse)
    assert ran("show", store, "conv1_weights", "--brief").status == 0


def test_a_large_tensor_is_taken_in_blocks(ran: Run, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with mldb.open(path, durability="os") as db:
        for epoch in (1, 2):
            db.store_tensor("w", np.arange(6_000_000, dtype=np.float32), epoch=epoch)
    ran("show", path, "w")
    tracemalloc.start()
    try:
        assert ran("show", path, "w", "--values").status == 0
        assert tracemalloc.get_traced_memory()[1] < 12_000_000, "half of what one version takes"
    finally:
        tracemalloc.stop()


def test_ascii_needs_no_blocks(ran: Run, store: str) -> None:
    found = ran("show", store, "conv1_weights", "--ascii")
    assert found.out.isascii()
    assert found.out.splitlines()[-1] == "_-*@"


# --- charts ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(), max_size=60))
def test_a_sparkline_has_a_character_for_each_value(values: list[float]) -> None:
    for blocks in (True, False):
        line = sparkline(values, blocks=blocks)
        assert len(line) == len(values)
        for value, char in zip(values, line, strict=True):
            assert (char in "·?") == (not math.isfinite(value))
    known = [value for value in values if math.isfinite(value)]
    levels = sparkline(known)
    for one, two in zip(range(len(known)), range(1, len(known)), strict=False):
        if known[one] <= known[two]:
            assert levels[one] <= levels[two]


@given(st.floats(0, 1), st.integers(0, 80))
def test_a_bar_fits_and_is_seen(share: float, width: int) -> None:
    for blocks in (True, False):
        found = bar(share, width, blocks=blocks)
        assert len(found) <= max(width, 0)
        assert bool(found) == (share > 0 and width > 0)


@given(
    npst.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_, np.complex64]),
        npst.array_shapes(max_dims=1, max_side=60),
    )
)
def test_every_finite_value_is_in_one_bin(values: np.ndarray[Any, Any]) -> None:
    found = bins_of(values, nothing)
    with np.errstate(all="ignore"):
        flat = np.abs(values.astype(complex)) if values.dtype.kind == "c" else values.astype(float)
    finite = flat[np.isfinite(flat)]
    if found is None:
        assert not finite.size
        return
    assert sum(found.counts) == finite.size
    assert found.above == np.count_nonzero(flat == np.inf)
    assert len(found.counts) <= BINS
    assert list(found.edges) == sorted(found.edges)
    assert found.edges[0] == finite.min()
    for width in (80, 40):
        lines = bin_lines(found, width)
        assert all(len(line) <= width for line in lines)
        ends = bool(found.below) + bool(found.above)
        assert len(lines) == len(found.counts) + ends


def test_blocks_and_one_piece_give_one_histogram(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = rng.standard_normal(10_000)
    whole = bins_of(values, nothing)
    monkeypatch.setattr("mldb.tools.cli.portrait._BLOCK", 777)
    assert bins_of(values, nothing) == whole
    assert isinstance(whole, Bins)
    expected = np.histogram(values, np.asarray(whole.edges))[0]
    assert whole.counts == tuple(expected.tolist())


def test_sampled_versions_keep_both_ends(store: str) -> None:
    with mldb.open(store, durability="os") as db:
        for epoch in range(5, 60):
            db.store_tensor("conv1_biases", np.zeros(1), epoch=epoch)
            db.store_tensor("conv1_biases", np.ones(1), epoch=epoch)
        versions = db.history("conv1_biases")
    found = sampled_versions(versions, 10)
    assert len(found) == 10
    assert (found[0].epoch, found[-1]) == (1, versions[-1])
    assert [item.epoch for item in found] == sorted({item.epoch for item in found})
    assert len(sampled_versions(versions, 1000)) == 59
    assert sampled_versions(versions, 1) == [versions[-1]]
    assert sampled_versions(versions, 0) == []
    assert json.dumps([item.epoch for item in sampled_versions(versions, 2)]) == "[1, 59]"
