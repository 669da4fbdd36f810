"""Random numbers of sampling: their range, their independence of chunks, and disjoint counters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.gpu.device import Dynamics
from mldb.noise.draws import (
    SAMPLING_STEP,
    Purpose,
    check_numbers,
    sampling_words,
    wide,
    wide_uniforms,
)
from mldb.noise.keys import STEPS_MAX, Keys
from mldb.noise.philox import SUBSPACE_STEP, counters, words
from mldb.sphere.graph import HOPS_MAX


def test_uniforms_are_never_0_or_1() -> None:
    ends = np.array([[0] * 4, [0xFFFFFFFF] * 4], np.uint32)
    assert wide_uniforms(ends).tolist() == [2.0**-53, 1 - 2.0**-53]
    assert wide_uniforms(ends, 2).tolist() == wide_uniforms(ends).tolist()
    assert wide(np.array([[1, 2, 3, 4]], np.uint32), 2).tolist() == [3 << 32 | 4]


def test_uniforms_are_uniform(seed: int) -> None:
    raw = sampling_words(seed, 0, Purpose.DRAW, np.arange(50_000, dtype=np.uint64))
    assert stats.kstest(wide_uniforms(raw), "uniform").pvalue > 1e-4
    assert stats.kstest(wide_uniforms(raw, 2), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(wide_uniforms(raw), wide_uniforms(raw, 2))[0, 1]) < 5 / np.sqrt(50_000)


def test_words_are_those_of_the_generator_in_any_selection(rng: np.random.Generator) -> None:
    numbers = rng.integers(0, 2**48, 20_000, dtype=np.uint64)
    raw = sampling_words(7, 3, Purpose.RANK, numbers)
    some = np.array([19_999, 0, 8192, 8191])
    assert np.array_equal(sampling_words(7, 3, Purpose.RANK, numbers[some]), raw[some])
    keys = Keys(7, 3, numbers[some], np.zeros(4, np.uint16))
    assert np.array_equal(words(keys, SAMPLING_STEP, 2)[:, 1], raw[some])


def test_no_counter_serves_two_ends() -> None:
    """Neither a chain and a draw, nor two purposes, whatever the rows."""
    steps = range(Dynamics(steps=STEPS_MAX, step_size=0.1).steps)
    assert SAMPLING_STEP not in steps
    assert SAMPLING_STEP & SUBSPACE_STEP == 0  # and that form sets the bit in all of its steps
    keys = Keys(0, 0, np.zeros(1, np.uint64), np.zeros(1, np.uint16))
    first = {tuple(counters(keys, SAMPLING_STEP, 1, first=p)[0, 0].tolist()) for p in Purpose}
    assert len(first) == len(Purpose)
    assert max(Purpose) == Purpose.WALK  # the only one of several blocks
    assert Purpose.WALK + HOPS_MAX // 4 < 1 << 16


def test_what_does_not_fit_the_counter_is_refused() -> None:
    one = np.zeros(1, np.uint64)
    with pytest.raises(InvalidValueError, match="seed=18446744073709551616 does not fit in 64"):
        sampling_words(2**64, 0, Purpose.DRAW, one)
    with pytest.raises(InvalidValueError, match="pass_number=-1"):
        sampling_words(0, -1, Purpose.DRAW, one)
    with pytest.raises(InvalidTypeError, match="seed is a float"):
        sampling_words(0.0, 0, Purpose.DRAW, one)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="below 2\\^48"):
        check_numbers("ids", np.array([2**48], np.uint64))
