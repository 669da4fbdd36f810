"""The seeds of streams: apart for every lake, every seed of a lake, and what they count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.noise.philox import LAYOUT_VERSION
from mldb.noise.streams import Counted, stream_seed

LAKE = bytes(range(16))


def test_layout_two_is_what_it_was() -> None:
    """These seeds are behind stored states; others need another LAYOUT_VERSION."""
    assert LAYOUT_VERSION == 2
    # Philox's known answer: counter 0 under key 0.
    assert stream_seed(0, bytes(16)) == 0xE169C58D_6627E8D5
    assert [f"{stream_seed(0, LAKE, counted):016x}" for counted in Counted] == [
        "68ead8497b06b60d",
        "59552308ac00f0d2",
    ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.sampled_from(Counted))
def test_no_two_seeds_of_a_lake_become_one(first: int, second: int, counted: Counted) -> None:
    made = [stream_seed(seed, LAKE, counted) for seed in (first, second)]
    assert (made[0] == made[1]) == (first == second)
    assert all(0 <= seed < 1 << 64 for seed in made)


def test_lakes_and_what_is_counted_are_apart(rng: np.random.Generator) -> None:
    """A clash among these has a chance of 2^-44."""
    lakes = [rng.bytes(16) for _ in range(500)]
    made = {stream_seed(0, lake, counted) for lake in lakes for counted in Counted}
    assert len(made) == 2 * len(lakes)
    near = [
        stream_seed(0, bytes(15) + bytes([last])) ^ stream_seed(0, bytes(16)) for last in (1, 2)
    ]
    assert all(16 < made.bit_count() < 48 for made in near)  # one bit of an id changes half


@pytest.mark.parametrize(
    ("seed", "lake", "error", "text"),
    [
        (2**64, LAKE, InvalidValueError, "64 bits"),
        (-1, LAKE, InvalidValueError, "64 bits"),
        (1.0, LAKE, InvalidTypeError, "seed is a float"),
        (0, b"short", InvalidValueError, "5 bytes, not 16"),
    ],
)
def test_what_is_no_seed_or_id_is_refused(
    seed: int, lake: bytes, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        stream_seed(seed, lake)
