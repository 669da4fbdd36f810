"""The counter generator: known answers, the layout, and normals against exact arithmetic."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mldb.noise import philox, philox_compiled
from mldb.noise.keys import Keys

ZEROS = (0, 0, 0, 0)
ONES = (0xFFFFFFFF,) * 4
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


def make_keys(rng: np.random.Generator, count: int) -> Keys:
    return Keys(
        int(rng.integers(0, 1 << 64, dtype=np.uint64)),
        int(rng.integers(0, 1 << 32)),
        rng.integers(0, 1 << 48, count, dtype=np.uint64),
        rng.integers(0, 1 << 16, count).astype(np.uint16),
    )


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        (ZEROS, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (ONES, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    assert philox.philox(np.array(counter, np.uint32), key).tolist() == list(answer)


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's own integers."""
    a, b, c, d = counter
    for number in range(10):
        k0 = (key[0] + number * 0x9E3779B9) % 2**32
        k1 = (key[1] + number * 0xBB67AE85) % 2**32
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            (second >> 32) ^ b ^ k0,
            second % 2**32,
            (first >> 32) ^ d ^ k1,
            first % 2**32,
        )
    return a, b, c, d


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**48 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**16 - 1),
)
def test_words_are_philox_of_the_documented_layout(
    seed: int, pass_number: int, row: int, augmentation: int, step: int, block: int
) -> None:
    keys = Keys(seed, pass_number, np.array([row], np.uint64), np.array([augmentation], np.uint16))
    counter = (block | step << 16, pass_number, row % 2**32, row >> 32 | augmentation << 16)
    expected = plain_philox(counter, (seed % 2**32, seed >> 32))
    assert philox.words(keys, step, 1, first=block)[0, 0].tolist() == list(expected)


def test_layout_two_is_what_it_was() -> None:
    """These numbers are in stored provenance; another layout needs another LAYOUT_VERSION."""
    keys = Keys(2**63 + 7, 3, np.array([2**47 + 11], np.uint64), np.array([5], np.uint16))
    assert philox.LAYOUT_VERSION == 2
    bits = philox.normals(keys, 9, 6).view(np.uint32)
    assert " ".join(f"{value:08x}" for value in bits[0]) == (
        "bff43b65 3ecf7d67 3ed04c94 beae2dd9 3ea13005 beaafe12"
    )


@pytest.mark.parametrize("field", ["seed", "pass_number", "rows", "augmentations", "step"])
def test_no_two_keys_share_noise(field: str, rng: np.random.Generator) -> None:
    keys, step = make_keys(rng, 50), 3
    other, other_step = keys, step
    if field == "step":
        other_step = step | philox.SUBSPACE_STEP
    else:
        other = replace(keys, **{field: getattr(keys, field) ^ 1})
    first, second = philox.words(keys, step, 8), philox.words(other, other_step, 8)
    assert not (first == second).all(-1).any()


def test_noise_of_a_row_does_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    keys, order = make_keys(rng, 40), rng.permutation(40)[:17]
    some = replace(keys, rows=keys.rows[order], augmentations=keys.augmentations[order])
    assert np.array_equal(philox.words(some, 2, 5), philox.words(keys, 2, 5)[order])
    assert np.array_equal(philox.normals(some, 2, 13), philox.normals(keys, 2, 640)[order, :13])


def test_uniforms_are_inside_the_unit_interval() -> None:
    ends = philox.uniforms(np.array([0, 0xFFFFFFFF], np.uint32))
    assert ends.dtype == np.float32
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]


def hard_words(rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """Words at the ends and at the borders of exponents and quadrants, in all pairs."""
    borders = [0, 0xFFFFFFFF, 1 << 9, *(1 << shift for shift in range(10, 32))]
    near = np.array([b + delta for b in borders for delta in (-512, -1, 0, 1, 512)]) % 2**32
    quadrants = (np.arange(8)[:, None] * 2**29 + np.array([-513, -1, 0, 1, 511])).ravel() % 2**32
    radius, angle = np.meshgrid(near, np.concatenate([near, quadrants]))
    pairs = np.stack([radius.ravel(), angle.ravel()], -1).astype(np.uint32)
    more = rng.integers(0, 2**32, (100_000, 2), dtype=np.uint32)
    pairs = np.concatenate([pairs, more])
    return pairs[: len(pairs) // 2 * 2].reshape(-1, 4)


def exact_normals(raw: npt.NDArray[np.uint32]) -> npt.NDArray[Any]:
    radius = np.sqrt(-2 * np.log((np.floor(raw[:, 0::2] / 512.0) + 0.5) / 2**23))
    low = (raw[:, 1::2] % 2**30).astype(np.int64)
    fraction = np.where(low >= 2**29, low - 2**30, low) // 128 + 0.5
    angle = (raw[:, 1::2] >> np.uint32(30)) * (np.pi / 2) + fraction * (np.pi / 2**24)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return points.reshape(raw.shape)


def test_normals_agree_with_exact_arithmetic(rng: np.random.Generator) -> None:
    raw = hard_words(rng)
    found = philox.box_muller(raw)
    assert found.dtype == np.float32
    assert np.abs(found - exact_normals(raw)).max() < 1e-6
    assert np.abs(found).max() < 5.78


def test_float64_normals_are_the_same_numbers_unrounded(rng: np.random.Generator) -> None:
    keys = make_keys(rng, 30)
    raw = philox.words(keys, 4, 20)
    found = philox.normals_float64(keys, 4, 78)
    assert np.abs(found - exact_normals(raw.reshape(-1, 4)).reshape(30, 80)[:, :78]).max() < 1e-13


def test_normals_are_normal(rng: np.random.Generator) -> None:
    values = philox.normals(make_keys(rng, 400), 0, 640)
    assert stats.kstest(values.ravel()[:100_000], stats.norm.cdf).pvalue > 1e-3
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs((values.astype(np.float64) ** 2).mean() - 1) < 4 * np.sqrt(2 / values.size)
    # Both numbers of a pair share a radius; they must not be correlated, nor their squares.
    for first, second in ((values[:, 0::2], values[:, 1::2]), (values[:, :-2], values[:, 2:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.012
        assert abs(np.corrcoef(first.ravel() ** 2, second.ravel() ** 2)[0, 1]) < 0.012


def test_accept_uniforms_are_word_zero_of_the_last_block(rng: np.random.Generator) -> None:
    keys = make_keys(rng, 10)
    raw = philox.words(keys, 6, 1, first=0xFFFF)
    assert np.array_equal(philox.accept_uniforms(keys, 6), philox.uniforms(raw[:, 0, 0]))


def test_compiled_normals_are_the_same_bits(rng: np.random.Generator) -> None:
    kernels = philox_compiled.load_kernels()
    assert kernels is not None
    assert kernels.seconds > 0
    for dim, step in ((640, 0), (2, 5), (37, philox.SUBSPACE_STEP | 3)):
        keys = make_keys(rng, 300)
        out = np.full((300, dim), np.nan, np.float32)
        arguments = philox_compiled.stream_arguments(keys, philox_compiled.first_words(step, dim))
        kernels.normals(*arguments, 100, 300, out)
        kernels.normals(*arguments, 0, 100, out)
        assert np.array_equal(out.view(np.uint32), philox.normals(keys, step, dim).view(np.uint32))


def test_without_numba_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str) -> Any:
        if name == "numba":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(philox_compiled, "_loaded", [])
    assert philox_compiled.load_kernels() is None


def test_kernels_can_be_asked_for_inside_the_call_that_compiles_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a signal handler would; it gets kernels of its own, and the outer call keeps its."""
    made: list[Any] = []

    def compiling() -> Any:
        made.append(object())
        mine = made[-1]
        if len(made) == 1:
            assert philox_compiled.load_kernels() is made[1]
        return mine

    monkeypatch.setattr(philox_compiled, "_loaded", [])
    monkeypatch.setattr(philox_compiled, "_compile", compiling)
    assert philox_compiled.load_kernels() is made[0]
    assert philox_compiled.load_kernels() is made[0]
    assert len(made) == 2
