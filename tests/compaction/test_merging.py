"""The law of a merge against high precision, and what it conserves and certifies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction.soc.merging import (
    certified,
    merge_groups,
    merge_laws,
    moment_lengths,
    row_angles,
)
from mldb.compaction.soc.rows import SplatRows, plain_rows
from mldb.errors import InvalidValueError
from mldb.sphere import vmf
from tests.support.parts import examples
from tests.support.splats import unit


def near_rows(rng: np.random.Generator, count: int, dim: int) -> SplatRows:
    """Rows of one cap, with different kappas and masses."""
    centre = rng.standard_normal(dim)
    mu = unit(centre / np.linalg.norm(centre) + 0.3 * rng.standard_normal((count, dim)) / dim**0.5)
    kappa = np.exp(rng.uniform(np.log(dim / 2), np.log(20 * dim), count))
    return plain_rows(mu, kappa=kappa, alpha=rng.integers(1, 9, count).astype(float))


def directions(rows: SplatRows) -> Any:
    """mu in float64, of length 1 to the last digit."""
    wide = rows.mu.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def reference_merge(mu: Any, kappa: Any, alpha: Any) -> tuple[list[Any], float]:
    """Mean direction and kappa with 40 digits."""
    with mpmath.workdps(40):
        dim = mu.shape[1]

        def ratio(k: mpmath.mpf) -> mpmath.mpf:
            return mpmath.besseli(mpmath.mpf(dim) / 2, k) / mpmath.besseli(
                mpmath.mpf(dim) / 2 - 1, k
            )

        total = [mpmath.mpf(0)] * dim
        for row, k, mass in zip(mu.tolist(), kappa.tolist(), alpha.tolist(), strict=True):
            scale = mpmath.mpf(mass) * ratio(mpmath.mpf(k))
            total = [t + scale * mpmath.mpf(x) for t, x in zip(total, row, strict=True)]
        length = mpmath.sqrt(mpmath.fsum(t * t for t in total))
        mean_cos = length / mpmath.fsum(alpha.tolist())
        start = mean_cos * (dim - mean_cos**2) / (1 - mean_cos**2)
        found = mpmath.findroot(lambda k: ratio(k) - mean_cos, start)
        return [t / length for t in total], float(found)


@pytest.mark.parametrize("dim", [2, 3, 16, 640])
def test_a_merge_is_what_high_precision_says(dim: int, rng: np.random.Generator) -> None:
    rows = near_rows(rng, 3, dim)
    merged = merge_laws(rows.mu, rows.kappa, rows.alpha)
    mean, kappa = reference_merge(directions(rows), rows.kappa, rows.alpha)
    assert np.abs(merged.mu - np.array([float(x) for x in mean])).max() <= 1e-9
    assert merged.kappa == pytest.approx(kappa, rel=1e-7)
    assert merged.alpha == rows.alpha.sum()


@pytest.mark.parametrize("dim", [3, 64, 640])
def test_any_association_gives_the_same_splat(dim: int, rng: np.random.Generator) -> None:
    rows = near_rows(rng, 6, dim)
    whole = merge_laws(rows.mu, rows.kappa, rows.alpha)
    for _ in range(10):
        order = rng.permutation(6)
        mu, kappa, alpha = (values[order] for values in (rows.mu, rows.kappa, rows.alpha))
        law = merge_laws(mu[:1], kappa[:1], alpha[:1])
        for row in range(1, 6):
            law = merge_laws(
                np.stack([law.mu, mu[row].astype(np.float64)]),
                np.array([law.kappa, kappa[row]]),
                np.array([law.alpha, alpha[row]]),
            )
        assert np.abs(law.mu - whole.mu).max() <= 1e-10
        assert law.kappa == pytest.approx(whole.kappa, rel=1e-8)
        assert law.alpha == whole.alpha


def test_identical_splats_keep_their_law(rng: np.random.Generator) -> None:
    rows = near_rows(rng, 1, 64)
    for kappa in (30.0, 3000.0, 1e6):
        merged = merge_laws(rows.mu.repeat(5, 0), np.full(5, kappa), np.ones(5))
        assert np.abs(merged.mu - rows.mu[0]).max() <= 1e-7
        assert merged.kappa == pytest.approx(kappa, rel=1e-6)


def test_opposite_splats_are_refused() -> None:
    row = unit(np.arange(1.0, 9)[None])
    with pytest.raises(InvalidValueError, match="cancel"):
        merge_laws(np.concatenate([row, -row]), np.full(2, 50.0), np.ones(2))
    kept = merge_laws(np.concatenate([row, -row]), np.full(2, 50.0), np.array([2.0, 1.0]))
    assert kept.alpha == 3


@examples(40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_groups_conserve_mass_and_first_moment(seed: int, dim: int) -> None:
    """In any cut of the memory; the sums are those of a loop over sources."""
    rng = np.random.default_rng(seed)
    rows = near_rows(rng, 40, dim)
    starts = np.unique(np.r_[0, rng.integers(1, 30, 6), 30])
    sources = rng.permutation(40)[:30]
    made = merge_groups(rows, sources, starts)
    assert made.splats.alpha.sum() == rows.alpha[sources].sum()
    lengths = moment_lengths(rows)
    before = (lengths[sources, None] * directions(rows)[sources]).sum(axis=0)
    after = np.zeros(dim)
    for group, (low, high) in enumerate(pairwise(starts.tolist())):
        part = sources[low:high]
        law = merge_laws(rows.mu[part], rows.kappa[part], rows.alpha[part])
        after += law.alpha * vmf.mean_cosine(law.kappa, dim) * law.mu
        assert np.abs(made.splats.mu[group] - law.mu).max() <= 1e-7
        assert made.splats.kappa[group] == pytest.approx(law.kappa, rel=1e-9)
        heaviest = max(part.tolist(), key=lambda row: (rows.alpha[row], -row))
        assert made.heaviest[group] == heaviest
        mean = made.splats.mu[group].astype(np.float64)
        cosines = rows.mu[part].astype(np.float64) @ mean / np.linalg.norm(mean)
        cosines /= np.linalg.norm(rows.mu[part].astype(np.float64), axis=1)
        assert made.cosines[group] == pytest.approx(cosines.min(), abs=1e-12)
        assert made.splats.min_cos[group] <= cosines.min() + 1e-12
        assert made.splats.min_cos[group] >= cosines.min() - 1e-6
        spread = vmf.divergence(rows.kappa[part], law.kappa, np.arccos(cosines.clip(-1, 1)), dim)
        parted = np.minimum(np.sqrt(spread / 2), 1)
        assert made.moved[group] == pytest.approx(rows.alpha[part] @ parted, rel=1e-6, abs=1e-6)
    assert np.abs(after - before).max() <= 1e-9 * rows.alpha.sum()


def test_a_certificate_counts_the_radius_of_its_sources(rng: np.random.Generator) -> None:
    """A source that is a splat itself may have members on its far side."""
    plain = near_rows(rng, 2, 16)
    wide = SplatRows(
        *(plain.mu, plain.norm, plain.kappa, plain.alpha, np.array([np.cos(0.2), 1.0])),
        *(plain.labels, plain.ids),
    )
    made = merge_groups(wide, np.array([0, 1]), np.array([0, 2]))
    angles = row_angles(wide.mu.astype(float), made.splats.mu.astype(float).repeat(2, 0))
    assert np.arccos(made.splats.min_cos[0]) == pytest.approx(
        max(0.2 + angles[0], angles[1]), abs=1e-6
    )


def test_a_certificate_is_never_rounded_up(rng: np.random.Generator) -> None:
    angles = rng.uniform(0, np.pi, 10_000)
    stored = certified(angles)
    assert (stored.astype(np.float64) <= np.cos(angles)).all()
    assert (stored.astype(np.float64) >= np.cos(angles) - 1.3e-7).all()


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.3, 3.0])
def test_small_angles_are_exact(angle: float) -> None:
    one = np.array([[1.0, 0, 0]])
    two = np.array([[np.cos(angle), np.sin(angle), 0]])
    assert row_angles(one, 5 * two)[0] == pytest.approx(angle, rel=1e-7)


@pytest.mark.parametrize(
    "column, value, match",
    [
        ("alpha", np.zeros(3), "alpha"),
        ("kappa", np.array([1, np.nan, 1]), "kappa"),
        ("min_cos", np.full(3, 1.5), "min_cos"),
        ("labels", np.zeros(4, np.int64), "labels has shape"),
        ("mu", np.ones((3, 4), np.float32), "unit"),
        ("mu", np.ones((3, 4)), "float32"),
    ],
)
def test_rows_that_mean_nothing_are_refused(
    column: str, value: object, match: str, rng: np.random.Generator
) -> None:
    rows = near_rows(rng, 3, 4)
    columns = {name: getattr(rows, name) for name in SplatRows.__slots__}
    with pytest.raises(InvalidValueError, match=match):
        SplatRows(**(columns | {column: value})).check()
