"""A permutation read in pieces: a bijection for every n, and a random one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import mldb.lake.order.permutation as module
from mldb.errors import InvalidValueError, LimitError
from mldb.lake.order.permutation import SORTED_MAX, Permutation, permutation
from mldb.noise.draws import Purpose

PASSES = st.integers(0, 2**32 - 1)
LARGE = 20_011  # a prime above SORTED_MAX: no two bases have it as their product


def make(n: int, pass_number: int = 0, seed: int = 0) -> Permutation:
    return permutation(n, seed=seed, pass_number=pass_number)


def whole(n: int, pass_number: int = 0, seed: int = 0) -> npt.NDArray[np.int64]:
    return make(n, pass_number, seed).at(np.arange(n))


@given(st.integers(0, 2000) | st.integers(SORTED_MAX - 3, SORTED_MAX + 30_000), PASSES)
def test_every_number_stands_somewhere_once(n: int, pass_number: int) -> None:
    assert np.array_equal(np.sort(whole(n, pass_number)), np.arange(n))


@given(st.integers(1, 2**48 - 1), PASSES, st.data())
def test_pieces_are_those_of_the_whole_and_can_be_undone(
    n: int, pass_number: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, n - 1))
    positions = np.arange(start, min(start + 300, n))
    order = make(n, pass_number)
    numbers = order.at(positions)
    assert ((numbers >= 0) & (numbers < n)).all()
    assert np.array_equal(order.place(numbers), positions)
    one = data.draw(st.integers(0, len(positions) - 1))
    assert order.at(positions[one : one + 1]).tolist() == [numbers[one]]
    assert np.array_equal(order.at(positions[::-1]), numbers[::-1])


@pytest.mark.parametrize("n", [1000, LARGE])
def test_orders_of_other_passes_seeds_and_purposes_have_nothing_in_common(n: int) -> None:
    base = whole(n)
    others = [
        whole(n, pass_number=1),
        whole(n, seed=1),
        *(
            permutation(n, seed=0, pass_number=0, purpose=purpose, window=window).at(np.arange(n))
            for purpose, window in ((Purpose.WINDOW, 0), (Purpose.WINDOW, 1), (Purpose.CHOSEN, 0))
        ),
    ]
    for other in others:  # two random permutations agree at about one place
        assert np.count_nonzero(base == other) < 10
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / math.sqrt(n)


def test_orders_are_a_stored_promise() -> None:
    assert whole(10, 3, 7).tolist() == [6, 5, 9, 3, 8, 0, 2, 7, 4, 1]
    spots = np.array([0, 1, 2, 9_999_999])
    assert make(10**7, 3, 7).at(spots).tolist() == [9716006, 7437302, 4205684, 6429516]


def test_small_orders_are_equally_likely(seed: int) -> None:
    counts: dict[tuple[int, ...], int] = {}
    for number in range(2400):
        order = tuple(whole(4, number, seed).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


# --- statistical quality of the computed orders ---------------------------------------------------


def cells(values: npt.NDArray[np.int64], n: int, count: int) -> npt.NDArray[np.int64]:
    return values * count // n


def uniformity(n: int, seed: int, passes: int) -> list[float]:
    """p-values over passes: where single positions land, and pairs of positions, in coarse cells.

    The pairs share one digit of their position, which is where a weak order shows first.
    """
    base = module._bases(n)[1]
    spots = np.array([0, 1, base, n // 2, n - 1])
    seen = np.array([make(n, number, seed).at(spots) for number in range(passes)])
    found = [
        stats.chisquare(np.bincount(cells(seen[:, spot], n, 50), minlength=50)).pvalue
        for spot in range(len(spots))
    ]
    for left, right in ((0, 1), (0, 2), (3, 4)):
        joint = cells(seen[:, left], n, 8) * 8 + cells(seen[:, right], n, 8)
        found.append(stats.chisquare(np.bincount(joint, minlength=64)).pvalue)
        gap = (seen[:, left] - seen[:, right]) % n  # uniform as well
        found.append(stats.chisquare(np.bincount(cells(gap, n, 50), minlength=50)).pvalue)
        low = (seen[:, left] - seen[:, right]) % base  # differences of the low digit
        found.append(stats.chisquare(np.bincount(low, minlength=base)).pvalue)
    return [float(p) for p in found]


def structure(n: int, seed: int, passes: int) -> list[float]:
    """p-values of whole orders: serial correlation, ascents, fixed points, cycles, digit pairs."""
    orders = [whole(n, number, seed) for number in range(passes)]
    steps = np.arange(n)
    serial, rises, fixed, cycles = [], [], [], []
    for order in orders:
        serial.append(np.corrcoef(order[:-1], order[1:])[0, 1] * math.sqrt(n))
        rises.append((np.count_nonzero(np.diff(order) > 0) - (n - 1) / 2) / math.sqrt((n + 1) / 12))
        fixed.append(np.count_nonzero(order == steps))
        cycles.append(cycle_count(order))
    harmonic = sum(1 / k for k in range(1, n + 1))
    spread = math.sqrt((harmonic - sum(1 / k**2 for k in range(1, n + 1))) / passes)
    base = module._bases(n)[1]
    joint = np.zeros((16, 16))
    for order in orders:
        np.add.at(joint, (cells(steps % base, base, 16), cells(order % base, base, 16)), 1)
    return [
        float(stats.kstest(serial, "norm").pvalue),
        float(stats.kstest(rises, "norm").pvalue),
        float(2 * min(stats.poisson.cdf(sum(fixed), passes), stats.poisson.sf(sum(fixed), passes))),
        float(2 * stats.norm.sf(abs(np.mean(cycles) - harmonic) / spread)),
        float(stats.chi2_contingency(joint).pvalue),
    ]


def cycle_count(order: npt.NDArray[np.int64]) -> int:
    following, seen, count = order.tolist(), bytearray(len(order)), 0
    for start in range(len(following)):
        if not seen[start]:
            count += 1
            while not seen[start]:
                seen[start] = 1
                start = following[start]
    return count


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[int]:
    """Orders of as many rounds as the test's parameter says."""
    monkeypatch.setattr(module, "FEISTEL_ROUNDS", request.param)
    permutation.cache_clear()
    yield request.param
    permutation.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [6, 8], indirect=True)
def test_computed_orders_look_random(rounds: int, seed: int) -> None:
    found = uniformity(LARGE, seed, 1500) + structure(LARGE, seed, 30)
    assert min(found) > 1e-3 / len(found), found


@pytest.mark.parametrize("rounds", [2, 3], indirect=True)
def test_too_few_rounds_are_caught(rounds: int, seed: int) -> None:
    found = structure(LARGE, seed, 20)
    assert min(found) < 1e-6, found


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(InvalidValueError, match="negative"):
        make(-1)
    with pytest.raises(LimitError, match="more than a counter can number"):
        make(2**48)
    with pytest.raises(LimitError, match="window"):
        permutation(5, seed=0, pass_number=0, purpose=Purpose.WINDOW, window=2**32)
