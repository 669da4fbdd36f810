"""The batch: planted duplicates, certificates, conservation, and the rules in their plain form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.arrays import Float32s
from mldb.compaction.soc.active import ActiveSplats, largest_angle
from mldb.compaction.soc.merging import moment_lengths, row_angles
from mldb.compaction.soc.rows import SplatRows, plain_rows
from mldb.compaction.soc.sweep import LEVELS, Merges, exact_search, sweep_rows
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.sphere import vmf
from mldb.sphere.draws import sample_rows
from mldb.sphere.energy import energy
from tests.support.parts import examples
from tests.support.splats import PlainSweep, partition, planted, unit


def rows_of(mu: Float32s, **columns: object) -> SplatRows:
    kappa = float(vmf.concentration(0.9, mu.shape[1]))
    return plain_rows(mu, kappa=kappa, **columns)  # type: ignore[arg-type]


def groups(merges: Merges) -> list[list[int]]:
    return [part.tolist() for part in np.split(merges.sources, merges.starts[1:-1])]


@pytest.mark.slow
def test_planted_duplicates_are_recovered(rng: np.random.Generator) -> None:
    mu, of = planted(rng)
    rows = rows_of(mu)
    merges = sweep_rows(rows, min_cos=0.97)
    assert 1000 <= merges.kept <= 1010
    assert merges.passes <= 4
    assert all(len(set(of[group])) == 1 for group in groups(merges))
    assert (merges.made.cosines >= merges.made.splats.min_cos - 1e-6).all()
    assert merges.made.splats.min_cos.min() >= 0.97
    assert merges.made.splats.alpha.sum() + len(mu) - len(merges.sources) == len(mu)


@examples(25)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.sampled_from([3, 8]),
    st.sampled_from([0.5, 0.9, 0.97, 0.99]),
)
def test_merges_are_those_of_the_plain_rules(
    seed: int, count: int, dim: int, min_cos: float
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(count // 4, 1), dim))
    mu = unit(
        centres[rng.integers(0, len(centres), count)] + 0.3 * rng.standard_normal((count, dim))
    )
    rows = rows_of(
        mu,
        alpha=rng.integers(1, 4, count).astype(float),
        labels=rng.integers(0, 2, count),
        ids=rng.permutation(1000)[:count],
    )
    merges = sweep_rows(rows, min_cos=min_cos, k=64, seed=seed)
    expected = PlainSweep(rows, min_cos, seed).run()
    assert partition(merges.sources, merges.starts, count) == expected
    assert merges.kept == len(set(expected))


@examples(15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.6, 0.9, 0.97]), st.integers(1, 12))
def test_what_a_run_conserves_and_certifies(seed: int, min_cos: float, k: int) -> None:
    rng = np.random.default_rng(seed)
    mu, _ = planted(rng, 20, 6, 0.5)
    rows = rows_of(mu, labels=rng.integers(-1, 2, len(mu)))
    merges = sweep_rows(rows, min_cos=min_cos, k=k, seed=seed)
    assert merges.kept == len(mu) - len(merges.sources) + len(merges) <= len(mu)
    assert len(set(merges.sources.tolist())) == len(merges.sources)
    for group, made in zip(groups(merges), range(len(merges)), strict=True):
        assert len(group) > 1
        assert len(set(rows.labels[group])) == 1
        assert merges.made.splats.labels[made] == rows.labels[group[0]]
        assert merges.made.splats.alpha[made] == len(group)
    if len(merges):
        assert merges.made.splats.min_cos.min() >= min_cos
        assert (merges.made.cosines >= merges.made.splats.min_cos - 1e-6).all()
        lengths = moment_lengths(rows)
        before = (lengths[merges.sources, None] * mu[merges.sources].astype(np.float64)).sum(0)
        splats = merges.made.splats
        after = (moment_lengths(splats)[:, None] * splats.mu.astype(np.float64)).sum(0)
        assert np.abs(before - after).max() <= 1e-7 * len(mu)  # means are rounded to float32


@examples(15)
@given(st.integers(0, 2**32 - 1))
def test_no_eligible_pair_is_left_among_all(seed: int) -> None:
    """With as many neighbours as there are rows nothing that is left may merge."""
    rng = np.random.default_rng(seed)
    mu, _ = planted(rng, 12, 5, 0.4)
    mu = mu[:60]
    rows = rows_of(mu)
    merges = sweep_rows(rows, min_cos=0.9, k=64)
    alone = np.setdiff1d(np.arange(len(mu)), merges.sources)
    splats = merges.made.splats
    left = SplatRows(
        *(
            np.concatenate([getattr(rows, name)[alone], getattr(splats, name)])
            for name in SplatRows.__slots__
        )
    )
    again = sweep_rows(left, min_cos=0.9 + 1e-5, k=64)  # by more than what a plan leaves as slack
    assert len(again) == 0


def test_a_tiny_lake_of_far_groups_has_one_partition(rng: np.random.Generator) -> None:
    centres = np.eye(8)[:5]
    of = np.repeat(np.arange(5), [1, 2, 3, 4, 7])
    mu = unit(centres[of] + 0.01 * rng.standard_normal((len(of), 8)))
    seen = set()
    for seed in range(50):
        order = rng.permutation(len(of))
        merges = sweep_rows(rows_of(mu[order], ids=order), seed=seed)
        seen.add(frozenset(frozenset(order[group].tolist()) for group in groups(merges)))
    assert seen == {frozenset(frozenset(np.flatnonzero(of == i).tolist()) for i in range(1, 5))}


def test_the_same_seed_gives_the_same_bytes(rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 60, 16, 0.4)
    rows = rows_of(mu)
    first, second = (sweep_rows(rows, min_cos=0.95, seed=5) for _ in range(2))
    assert first.sources.tobytes() == second.sources.tobytes()
    assert first.made.splats.mu.tobytes() == second.made.splats.mu.tobytes()
    other = sweep_rows(rows, min_cos=0.95, seed=6)
    assert abs(other.kept - first.kept) <= 0.02 * len(mu)


def test_a_heavy_splat_does_not_dilute_what_is_far() -> None:
    """A cap on the resultant R alone would let it: R of the union is above .95 at cosine .5."""
    mu = unit(np.array([[1.0, 0, 0], [0.5, 0.75**0.5, 0]]))
    alpha = np.array([100.0, 1.0])
    resultant = np.linalg.norm((alpha[:, None] * mu).sum(axis=0)) / alpha.sum()
    assert resultant >= 0.95
    assert len(sweep_rows(rows_of(mu, alpha=alpha), min_cos=0.95)) == 0
    assert len(sweep_rows(rows_of(mu, alpha=alpha), min_cos=0.49)) == 1


def test_energy_stays_within_its_bound(rng: np.random.Generator) -> None:
    """At any x, for kernels of unit height: by the largest move, and by the certificate."""
    mu, _ = planted(rng, 40, 16, 0.5)
    rows = rows_of(mu, alpha=rng.integers(1, 5, len(mu)).astype(float))
    merges = sweep_rows(rows, min_cos=0.9)
    alone = np.setdiff1d(np.arange(len(mu)), merges.sources)
    splats = merges.made.splats
    x = unit(np.concatenate([rng.standard_normal((500, 16)), mu[rng.integers(0, len(mu), 500)]]))
    after_mu = np.concatenate([mu[alone], splats.mu])
    after_alpha = np.concatenate([rows.alpha[alone], splats.alpha])
    which = np.repeat(np.arange(len(merges)), np.diff(merges.starts))
    angles = row_angles(mu[merges.sources].astype(float), splats.mu.astype(float)[which])
    move = 2 * np.sin(angles.max() / 2)
    assert move <= np.sqrt(2 * (1 - 0.9))
    for kappa in (10.0, 100.0):
        before = energy(x, mu, kappa, rows.alpha, normalized=False)
        after = energy(x, after_mu, kappa, after_alpha, normalized=False)
        difference = np.abs(before.astype(np.float64) - after).max()
        assert 0 < difference <= kappa * move + 1e-3  # energies are float32 here


@pytest.mark.parametrize(
    "dim, mean_cos, min_cos",
    [(3, 0.9, 0.97), (3, 0.5, 0.9), (16, 0.5, 0.97), (16, 0.9, 0.97), (640, 0.9, 0.9)],
)
def test_the_density_stays_within_its_bound(
    dim: int, mean_cos: float, min_cos: float, rng: np.random.Generator
) -> None:
    """Total variation as what draws of the density before say: E[max(0, 1 - f after / f)]."""
    mu, _ = planted(rng, 40, dim, 0.3)
    mu = mu[:200]
    rows = plain_rows(
        mu,
        kappa=float(vmf.concentration(mean_cos, dim)) * rng.uniform(0.8, 1.25, len(mu)),
        alpha=rng.integers(1, 5, len(mu)).astype(float),
    )
    merges = sweep_rows(rows, min_cos=min_cos)
    alone = np.setdiff1d(np.arange(len(mu)), merges.sources)
    splats, mass = merges.made.splats, rows.alpha.sum()
    drawn = rng.choice(len(mu), 20_000, p=rows.alpha / mass)
    x = sample_rows(mu.astype(float)[drawn], rows.kappa[drawn], rng)
    before = energy(x, mu.astype(float), rows.kappa, rows.alpha)
    after = energy(
        x,
        *(
            np.concatenate([getattr(rows, name)[alone], getattr(splats, name)]).astype(float)
            for name in ("mu", "kappa", "alpha")
        ),
    )
    lost = np.maximum(-np.expm1(before - after), 0)
    variation, error = lost.mean(), lost.std() / len(lost) ** 0.5
    bound = merges.made.moved.sum() / mass
    merged = rows.alpha[merges.sources].sum() / mass
    assert 5 * error < variation <= bound + 3 * error
    assert bound <= (0.7 if dim < 100 else 1) * merged  # laws of many dimensions hardly overlap


def test_a_number_of_splats_is_reached_under_widening_caps(rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 60, 16, 0.4)
    rows = rows_of(mu)
    merges = sweep_rows(rows, keep=20)
    assert merges.kept == 20
    assert merges.level in LEVELS
    assert merges.made.splats.min_cos.min() >= merges.level
    assert sweep_rows(rows, keep=len(mu)).kept == len(mu)
    assert len(sweep_rows(rows, keep=len(mu))) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows(count: int) -> None:
    mu = unit(np.ones((3, 4)))[:count]
    merges = sweep_rows(rows_of(mu))
    assert merges.kept == min(count, 1)


@pytest.mark.parametrize("min_cos", [0.9, 0.99, 0.9999, 0.999999, 1 - 1e-9])
def test_no_certificate_is_rounded_below_the_cap(min_cos: float, rng: np.random.Generator) -> None:
    """Rows just inside and just outside of it: what merges is certified, in float32, as asked."""
    centre = np.eye(8)[0]
    angle = np.arccos(min_cos) * np.repeat(rng.uniform(0.9, 1.1, 60), 2)
    aside = np.repeat(rng.standard_normal((60, 7)), 2, axis=0) * np.tile([[1], [-1]], (60, 1))
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    mu = unit(
        np.cos(angle)[:, None] * centre + np.pad(np.sin(angle)[:, None] * aside, ((0, 0), (1, 0)))
    )
    mu = np.concatenate([mu, mu[:6]])
    labels = np.concatenate([np.repeat(np.arange(60), 2), np.repeat(np.arange(3), 2)])
    merges = sweep_rows(rows_of(mu, labels=labels), min_cos=min_cos)
    assert 3 <= len(merges) < 60
    assert merges.made.splats.min_cos.min() >= np.float32(min_cos)


def test_rows_each_of_a_label_of_their_own_stay(rng: np.random.Generator) -> None:
    mu = unit(np.ones((50, 4)))
    assert sweep_rows(rows_of(mu, labels=np.arange(50))).kept == 50
    assert sweep_rows(rows_of(mu, labels=np.arange(50) % 7)).kept == 7


def test_certificates_are_tightened_between_passes(rng: np.random.Generator) -> None:
    """The bound that a chain of merges leaves is wider than what its members say."""
    mu, _ = planted(rng, 1, 8, 0.3)
    mu = unit(mu[:1] + 0.05 * rng.standard_normal((30, 8)))
    active = ActiveSplats(rows_of(mu), 16)
    active.refresh(np.arange(30), exact_search)
    cap = largest_angle(0.9)
    while (todo := np.flatnonzero(active.is_alive & ~active.is_clean)).size:
        active.merge_best(int(todo[0]), cap)
    sources, starts = active.groups()
    merged = sources[starts[:-1]]
    wide = active.rad[merged].copy()
    active.tighten()
    angles = [
        row_angles(mu[part].astype(float), active.means[part[:1]].astype(float)).max()
        for part in np.split(sources, starts[1:-1])
    ]
    assert active.rad[merged] == pytest.approx(angles, abs=1e-12)
    assert (active.rad[merged] <= wide + 1e-12).all()
    assert (active.rad[merged] < 0.9 * wide).any()


@pytest.mark.parametrize(
    "settings, error, match",
    [
        ({"min_cos": 1}, InvalidValueError, "min_cos"),
        ({"min_cos": -0.1}, InvalidValueError, "min_cos"),
        ({"min_cos": float("nan")}, InvalidValueError, "min_cos"),
        ({"min_cos": "0.9"}, InvalidValueError, "min_cos"),
        ({"k": 0}, InvalidValueError, "neighbours"),
        ({"k": 2.5}, InvalidTypeError, "k is"),
        ({"keep": -1}, InvalidValueError, "keep"),
        ({"seed": 2**64}, InvalidValueError, "seed"),
    ],
)
def test_wrong_settings(settings: dict, error: type[Exception], match: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(error, match=match):
        sweep_rows(rows_of(unit(np.ones((3, 4)))), **settings)
