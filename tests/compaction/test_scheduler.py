"""The sandpile coupled with merging: where mass arrives, compaction follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.arrays import Float32s, Numbers
from mldb.compaction.soc.active import NONE
from mldb.compaction.soc.rows import SplatRows, plain_rows
from mldb.compaction.soc.scheduler import Toppled, carried_stress, topple_arrivals
from mldb.compaction.soc.sweep import sweep_rows
from mldb.errors import InvalidValueError
from mldb.sphere import vmf
from mldb.sphere.neighbours import nearest
from tests.support.parts import examples
from tests.support.splats import planted

K = 16


def graph_of(mu: Float32s, k: int = K) -> tuple[Numbers, Float32s]:
    found = nearest(mu, mu, k, exclude=np.arange(len(mu)))
    return found.rows.astype(np.int64), found.cosines


def rows_of(mu: Float32s, **columns: object) -> SplatRows:
    kappa = float(vmf.concentration(0.9, mu.shape[1]))
    return plain_rows(mu, kappa=kappa, **columns)  # type: ignore[arg-type]


def merged_rows(rows: SplatRows, done: Toppled) -> tuple[SplatRows, Numbers]:
    """What is left after a run, and the stress of each."""
    alone = np.setdiff1d(np.arange(len(rows)), done.merges.sources)
    first = done.merges.sources[done.merges.starts[:-1]]
    made = done.merges.made.splats
    columns = (
        np.concatenate([getattr(rows, name)[alone], getattr(made, name)])
        for name in SplatRows.__slots__
    )
    return SplatRows(*columns), np.concatenate([done.stress[alone], done.stress[first]])


@examples(20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.3, 1.0]))
def test_what_a_run_conserves(seed: int, p: float) -> None:
    """Grains, mass, labels and certificates; as many topplings as the grains allow."""
    rng = np.random.default_rng(seed)
    mu, _ = planted(rng, 15, 6, 0.4)
    mu = mu[:150]
    k = min(6, len(mu) - 1)
    rows = rows_of(mu, labels=rng.integers(0, 2, len(mu)), ids=rng.permutation(999)[: len(mu)])
    start = carried_stress(seed, rows.ids, k)
    done = topple_arrivals(rows, *graph_of(mu, k), np.arange(len(mu)), p=p, seed=seed, min_cos=0.9)
    merges = done.merges
    added = int(done.stress.sum()) + done.lost - int(start.sum())
    assert 0 <= added <= len(mu)  # a row that is merged with all it is near to has nowhere to
    assert merges.tries <= (start.sum() + added + 1) / (k * p)
    assert done.is_relaxed
    assert (done.stress < k).all()
    gone = np.setdiff1d(merges.sources, merges.sources[merges.starts[:-1]])
    assert not done.stress[gone].any()
    for low, high in zip(merges.starts[:-1], merges.starts[1:], strict=True):
        assert len(set(rows.labels[merges.sources[low:high]])) == 1
    assert merges.made.splats.alpha.sum() == len(merges.sources)
    if len(merges):
        assert merges.made.splats.min_cos.min() >= 0.9
        assert (merges.made.cosines >= merges.made.splats.min_cos - 1e-6).all()


@pytest.mark.slow
def test_runs_over_all_rows_recover_planted_duplicates(rng: np.random.Generator) -> None:
    mu, of = planted(rng, 400, 64)
    rows, stress, residue = rows_of(mu), None, 0
    for _ in range(4):
        done = topple_arrivals(
            rows, *graph_of(rows.mu), np.arange(len(rows)), stress=stress, residue=residue
        )
        rows, stress = merged_rows(rows, done)
        residue = done.residue
    assert rows.alpha.sum() == len(mu)
    assert 400 <= len(rows) <= 408
    assert len(set(of[[int(np.argmax(mu @ row)) for row in rows.mu]])) == 400


@pytest.mark.slow
def test_arrivals_of_copies_are_compacted_where_they_land(rng: np.random.Generator) -> None:
    """Most copies merge as they come, and what is far from them stays as it was."""
    mu, of = planted(rng, 300, 32)
    base, late = np.flatnonzero(of >= 0)[:600], np.flatnonzero(of >= 0)[600:1800]
    start = sweep_rows(rows_of(mu[base]))
    alone = np.setdiff1d(np.arange(len(base)), start.sources)
    seen = np.concatenate([mu[base][alone], start.made.splats.mu])
    rows = rows_of(np.concatenate([seen, mu[late]]), ids=np.arange(len(seen) + len(late)))
    arrivals = np.arange(len(seen), len(rows))
    done = topple_arrivals(rows, *graph_of(rows.mu), arrivals)
    absorbed = len(done.merges.sources) - len(done.merges)
    assert absorbed >= 0.3 * len(late)
    assert done.merges.tries <= 4 * len(late)  # 1/(k p) a grain, and what the pile held already
    quiet = topple_arrivals(rows, *graph_of(rows.mu), arrivals[:0])
    assert len(quiet.merges) == quiet.merges.tries == 0


def test_a_budget_is_kept_and_the_rest_topples_later(rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 60, 16, 0.4)
    rows, graph = rows_of(mu), graph_of(mu)
    everyone = np.arange(len(mu))
    first = topple_arrivals(rows, *graph, everyone, budget=5)
    assert first.merges.tries == 5
    assert not first.is_relaxed
    later, stress = merged_rows(rows, first)
    second = topple_arrivals(
        later, *graph_of(later.mu), everyone[:0], stress=stress, residue=first.residue
    )
    assert second.merges.tries > 0
    assert second.is_relaxed
    assert second.stress.sum() + second.lost == stress.sum()


def test_the_same_seed_gives_the_same_bytes(rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 40, 16, 0.4)
    rows, graph = rows_of(mu), graph_of(mu)
    one, two = (topple_arrivals(rows, *graph, np.arange(len(mu)), seed=3) for _ in range(2))
    assert one.stress.tobytes() == two.stress.tobytes()
    assert one.merges.sources.tobytes() == two.merges.sources.tobytes()
    assert one.avalanches == two.avalanches


def test_carried_stress_is_that_of_a_pile_at_rest() -> None:
    carried = carried_stress(0, np.arange(160_000), K)
    assert np.bincount(carried, minlength=K) == pytest.approx(10_000, rel=0.05)
    assert np.array_equal(carried_stress(0, np.arange(99, 109), K), carried[99:109])
    assert not np.array_equal(carried_stress(1, np.arange(100), K), carried[:100])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_rows_have_fewer_links(count: int, rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 3, 8, 0.01)
    mu = np.repeat(mu[:1], count, axis=0)
    links = np.full((count, K), NONE)
    cosines = np.full((count, K), -2, np.float32)
    for row in range(count):
        others = [other for other in range(count) if other != row]
        links[row, : len(others)] = others
        cosines[row, : len(others)] = 1
    done = topple_arrivals(rows_of(mu), links, cosines, np.arange(count))
    assert done.is_relaxed
    assert done.merges.kept <= max(count, 0)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"random_links": 2}, "random_links"),
        ({"budget": -1}, "budget"),
        ({"p": -0.1}, "p="),
        ({"min_cos": 1.0}, "min_cos"),
    ],
)
def test_wrong_settings(options: dict[str, float], match: str, rng: np.random.Generator) -> None:
    mu, _ = planted(rng, 20, 8)
    with pytest.raises(InvalidValueError, match=match):
        topple_arrivals(rows_of(mu), *graph_of(mu, 4), np.arange(3), **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="links"):
        topple_arrivals(rows_of(mu), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32),
                        np.arange(1))  # fmt: skip
