"""The sandpile alone: fixed piles against plain toppling, conservation, and mean avalanches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.compaction.soc.active import NONE
from mldb.compaction.soc.sandpile import LOSS_UNITS, Sandpile, loss_units
from mldb.errors import InvalidTypeError, InvalidValueError


def grid(side: int) -> list[list[int]]:
    """The four neighbours of each cell of a square; NONE beyond its edge."""
    cells = np.full((side + 2, side + 2), NONE)
    cells[1:-1, 1:-1] = np.arange(side * side).reshape(side, side)
    near = [cells[:-2, 1:-1], cells[2:, 1:-1], cells[1:-1, :-2], cells[1:-1, 2:]]
    return np.stack(near, axis=-1).reshape(-1, 4).tolist()


def plain_topplings(heights: Any, side: int) -> tuple[Any, int, int]:
    """Topple all unstable cells of a square at once, until none is; also how often, and losses."""
    pile = np.zeros((side + 2, side + 2), np.int64)
    pile[1:-1, 1:-1] = heights.reshape(side, side)
    topplings = 0
    while True:
        over = pile[1:-1, 1:-1] // 4
        if not over.any():
            break
        topplings += int(over.sum())
        pile[1:-1, 1:-1] -= 4 * over
        pile[:-2, 1:-1] += over
        pile[2:, 1:-1] += over
        pile[1:-1, :-2] += over
        pile[1:-1, 2:] += over
    inside = pile[1:-1, 1:-1].copy()
    return inside.reshape(-1), topplings, int(heights.sum() - inside.sum())


def test_a_pile_in_the_middle_of_a_square() -> None:
    """By hand: 16 grains in the middle of a square of nine cells."""
    stress = [0] * 9
    stress[4] = 16
    pile = Sandpile(grid(3), stress, threshold=4, p=0)
    pile.relax()
    assert pile.stress == [2, 1, 2, 1, 0, 1, 2, 1, 2]
    assert (pile.topplings, pile.lost) == (9, 4)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_final_heights_topplings_and_losses_of_any_order(seed: int, side: int) -> None:
    """Topplings commute: all at once, one after the other, and under any names of the cells."""
    rng = np.random.default_rng(seed)
    heights = rng.integers(0, 12, side * side)
    expected, topplings, lost = plain_topplings(heights, side)
    links = grid(side)
    names = rng.permutation(side * side)
    renamed: list[list[int]] = [[] for _ in names]
    for cell, near in enumerate(links):
        renamed[names[cell]] = [NONE if other == NONE else int(names[other]) for other in near]
    moved = np.empty_like(heights)
    moved[names] = heights
    for graph, start, back in (
        (links, heights, slice(None)),
        (renamed, moved, names),
    ):
        pile = Sandpile(graph, start.tolist(), threshold=4, p=0)
        pile.relax()
        assert np.array_equal(np.array(pile.stress)[back], expected)
        assert (pile.topplings, pile.lost) == (topplings, lost)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_a_budget_only_puts_off(seed: int, budget: int) -> None:
    """What is left unstable is so in the stress: another pile goes on from there."""
    rng = np.random.default_rng(seed)
    heights = rng.integers(0, 12, 25)
    expected, topplings, lost = plain_topplings(heights, 5)
    stress, taken, gone = heights.tolist(), 0, 0
    while True:
        pile = Sandpile(grid(5), stress, threshold=4, p=0)
        taken += pile.relax(budget)
        stress, gone = list(pile.stress), gone + pile.lost
        if pile.is_stable:
            break
    assert (stress, taken, gone) == (expected.tolist(), topplings, lost)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.3, 1.0]))
def test_grains_are_conserved_and_topplings_bounded(seed: int, p: float) -> None:
    rng = np.random.default_rng(seed)
    k, count = 5, 40
    links = rng.integers(0, count, (count, k)).tolist()
    start = rng.integers(0, k, count)
    pile = Sandpile(links, start.tolist(), threshold=k, p=p)
    grains = int(rng.integers(1, 300))
    for site in rng.integers(0, count, grains).tolist():
        pile.add(site)
        pile.relax()
    assert pile.is_stable
    assert sum(pile.stress) + pile.lost == start.sum() + grains
    assert pile.lost == (k * pile.topplings * loss_units(p)) // LOSS_UNITS
    assert pile.topplings <= (start.sum() + grains + 1) / (k * p)


def test_a_joined_site_keeps_all_grains() -> None:
    pile = Sandpile([[1], [0], [0]], [2, 2, 0], threshold=4, p=0.5)
    pile.join(0, 1)
    assert pile.stress == [4, 0, 0]
    assert not pile.is_stable


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.02])
@pytest.mark.parametrize("graph", ["cliques", "random", "ring"])
def test_a_grain_causes_one_toppling_in_kp(graph: str, p: float, rng: np.random.Generator) -> None:
    k, count, grains = 8, 900, 30_000
    near = {
        "cliques": np.arange(count)[:, None] // 9 * 9
        + (np.arange(count)[:, None] % 9 + np.arange(1, 9)) % 9,
        "random": rng.integers(0, count, (count, k)),
        "ring": (np.arange(count)[:, None] + np.r_[-4:0, 1:5]) % count,
    }[graph]
    pile = Sandpile(near.tolist(), rng.integers(0, k, count).tolist(), threshold=k, p=p)
    for site in rng.integers(0, count, grains).tolist():
        pile.add(site)
        pile.relax()
    warm = pile.topplings
    for site in rng.integers(0, count, 2 * grains).tolist():
        pile.add(site)
        pile.relax()
    assert (pile.topplings - warm) / (2 * grains) * k * p == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"p": 1.5}, InvalidValueError),
        ({"p": float("nan")}, InvalidValueError),
        ({"p": "0.1"}, InvalidTypeError),
        ({"threshold": 0}, InvalidValueError),
        ({"residue": -1}, InvalidValueError),
    ],
)
def test_wrong_settings(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        Sandpile([[0]], [0], **({"threshold": 4, "p": 0.1} | options))  # type: ignore[arg-type]
