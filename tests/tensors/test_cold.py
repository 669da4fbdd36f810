"""What a version that is rarely read is stored as."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mldb.log import format as fmt
from mldb.tensors.cold import encode_cold, number_width
from mldb.tensors.descriptor import dense_descriptor
from mldb.tensors.dtypes import dtype_code
from mldb.tensors.encoding import ENCODING_ZSTD, decode_bytes


def raw(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


@pytest.mark.parametrize(
    ("dtype", "most"),
    [
        (np.float32, 0.53),
        (np.complex64, 0.53),
        (np.float64, 0.74),
        (ml_dtypes.bfloat16, 0.03),
        (np.dtype(">f4"), 0.98),
    ],
)
def test_a_neighbour_makes_a_version_short_whatever_its_elements_are(
    rng: np.random.Generator, dtype: Any, most: float
) -> None:
    before: Any = rng.standard_normal(40_000).astype(dtype)
    after: Any = (before * (1 + 1e-3 * rng.standard_normal(40_000))).astype(dtype)
    what = dense_descriptor((40_000,), dtype_code(np.dtype(dtype)))
    found = encode_cold(what, raw(after), raw(before))
    assert found is not None
    encoding, stored = found
    assert len(stored) <= most * what.nbytes
    args = (encoding, what.nbytes, "f", 0, "k")
    base = raw(before) if encoding == fmt.ENCODING_DELTA else None
    assert decode_bytes(memoryview(stored), *args, base) == raw(after)


def test_what_is_shorter_by_itself_builds_on_nothing(rng: np.random.Generator) -> None:
    """As weights that were drawn anew, and then filled with few values."""
    before = rng.standard_normal(40_000).astype(np.float32)
    after = rng.integers(0, 3, 40_000).astype(np.float32)
    what = dense_descriptor((40_000,), "<f4")
    found = encode_cold(what, raw(after), raw(before))
    assert found is not None
    assert found[0] == ENCODING_ZSTD
    assert encode_cold(what, raw(after), None) == found


def test_noise_stays_raw(rng: np.random.Generator) -> None:
    what = dense_descriptor((40_000,), "<u4")
    one, two = (raw(rng.integers(0, 1 << 32, 40_000, dtype=np.uint32)) for _ in range(2))
    assert encode_cold(what, one, two) is None
    assert encode_cold(what, one, None) is None


@pytest.mark.parametrize(
    ("code", "width"),
    [("<c8", 4), ("<c16", 8), ("complex32", 2), ("bfloat16", 2), ("|b1", 1), ("<i8", 8)],
)
def test_a_complex_element_is_two_numbers(code: str, width: int) -> None:
    assert number_width(dense_descriptor((2,), code)) == width
