"""The label gate, and how well augmented digits keep their labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from mldb.arrays import Float32s, Numbers
from mldb.errors import InvalidValueError
from mldb.lake.augment.gate import gate, gate_walk, nearest_labels
from mldb.noise.keys import Keys
from mldb.noise.philox import normals
from mldb.sphere.graph import build_graph, walk


def unit(rows: npt.NDArray[Any]) -> Float32s:
    scaled: Float32s = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


class Case(NamedTuple):
    """Rows made from labelled ones, and the labelled ones."""

    originals: Float32s
    augmented: Float32s
    own: Numbers
    labelled: Float32s
    labels: Numbers


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    labelled = unit(rng.integers(-2, 3, (draw(st.integers(1, 12)), 3)) + 0.1)
    labels = rng.integers(0, 3, len(labelled))
    own = rng.integers(0, len(labelled), draw(st.integers(0, 20)))
    noise = rng.normal(size=(len(own), 3)) * draw(st.sampled_from([0.0, 0.3, 2.0]))
    return Case(labelled[own], unit(labelled[own] + noise), labels[own], labelled, labels)


@given(cases())
def test_what_passes_has_the_label_of_its_origin(case: Case) -> None:
    gated = gate(*case)
    for place, own in enumerate(case.own):
        cosines = case.labelled.astype(np.float64) @ case.augmented[place].astype(np.float64)
        first = int(np.argmax(cosines.astype(np.float32)))  # of equal ones the smaller number
        wrong = case.labels[first] != own
        assert gated.taken_back[place] == wrong
        source = case.originals if wrong else case.augmented
        assert np.array_equal(gated.rows[place], source[place])
    assert gated.rejected == np.count_nonzero(gated.taken_back)
    assert gated.rate == pytest.approx(gated.rejected / max(len(case.own), 1))


@given(cases(), st.data())
def test_a_row_is_judged_alike_in_any_batch(case: Case, data: st.DataObject) -> None:
    if not len(case.own):
        return
    place = data.draw(st.integers(0, len(case.own) - 1))
    one = slice(place, place + 1)
    alone = gate(
        case.originals[one], case.augmented[one], case.own[one], case.labelled, case.labels
    )
    assert alone.taken_back.tolist() == gate(*case).taken_back[one].tolist()


def test_walks_are_gated_by_look_up(rng: np.random.Generator) -> None:
    pool = unit(rng.normal(size=(200, 5)))
    labels = rng.integers(0, 3, 20)
    start, end = rng.integers(0, 20, 50), rng.integers(0, 200, 50)
    table = nearest_labels(pool, pool[:20], labels)
    by_table = gate_walk(start, end, labels[start], table)
    by_search = gate(pool[start], pool[end], labels[start], pool[:20], labels)
    assert np.array_equal(by_table.taken_back, by_search.taken_back)
    assert np.array_equal(pool[by_table.rows], by_search.rows)
    assert 0 < by_table.rate < 1


def test_what_does_not_fit_is_refused() -> None:
    x, labels = unit(np.eye(3)), np.arange(3)
    with pytest.raises(InvalidValueError, match="at least one labelled row"):
        nearest_labels(x, x[:0], labels[:0])
    with pytest.raises(InvalidValueError, match="one label for each"):
        nearest_labels(x, x, labels[:2])
    with pytest.raises(InvalidValueError, match="do not fit together"):
        gate(x, x[:2], labels, x, labels)
    with pytest.raises(InvalidValueError, match="do not fit"):
        gate_walk(labels, labels[:2], labels, labels)


# --- digits (labels by a vote of the five nearest of the fully labelled pool) ---------------------


class Digits(NamedTuple):
    """A pool whose first 100 rows are labelled, and a judge that knows all labels."""

    pool: Float32s
    labels: Numbers
    judge: KNeighborsClassifier

    def preserved(self, rows: Float32s, own: Numbers) -> float:
        return float((self.judge.predict(rows) == own).mean())


LABELLED = 100


@pytest.fixture
def digits(rng: np.random.Generator) -> Digits:
    data = load_digits()
    order = rng.permutation(len(data.data))
    pool, labels = unit(data.data[order]), data.target[order].astype(np.int64)
    return Digits(pool, labels, KNeighborsClassifier(5).fit(pool, labels))


def keys(rows: npt.NDArray[np.int64], seed: int) -> Keys:
    return Keys(seed, 0, rows.astype(np.uint64), np.zeros(len(rows), np.uint16))


def isotropic(x: Float32s, strength: float, noise: npt.NDArray[np.float32]) -> Float32s:
    """x' = rho x + sqrt(1 - rho^2) u, u uniform in the tangent sphere at x."""
    tangent = noise - x * (noise * x).sum(axis=1, keepdims=True)
    return unit(strength * x + np.sqrt(1 - strength**2) * unit(tangent))


def test_isotropic_noise_keeps_labels_of_digits(digits: Digits, seed: int) -> None:
    rows = np.arange(len(digits.pool))
    moved = isotropic(digits.pool, 0.95, normals(keys(rows, seed), 0, 64))
    np.testing.assert_allclose((moved * digits.pool).sum(axis=1), 0.95, atol=1e-5)
    assert digits.preserved(moved, digits.labels) >= 0.97
    far = isotropic(digits.pool, 0.3, normals(keys(rows, seed), 0, 64))
    assert digits.preserved(far, digits.labels) < 0.9  # the judge can say no


def test_gated_walks_keep_labels_of_digits(digits: Digits, seed: int) -> None:
    graph = build_graph(digits.pool, 10)
    labels = digits.labels[:LABELLED]
    table = nearest_labels(digits.pool, digits.pool[:LABELLED], labels)
    start = np.tile(np.arange(LABELLED), 20)
    walks = Keys(
        seed,
        0,
        start.astype(np.uint64),
        np.repeat(np.arange(20), LABELLED).astype(np.uint16),
    )
    end = walk(graph, start, 2, walks)
    gated = gate_walk(start, end, labels[start], table)
    assert digits.preserved(digits.pool[gated.rows], labels[start]) >= 0.96
    assert 0.01 < gated.rate < 0.4
    assert np.count_nonzero(gated.rows != start) > len(start) / 2  # most walks do arrive elsewhere
    assert digits.preserved(digits.pool[end], labels[start]) < digits.preserved(
        digits.pool[gated.rows], labels[start]
    )
