"""The stored form of a version that is rarely read: a delta, or compressed by itself. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from mldb.compaction.deltas import encode_delta
from mldb.log import format as fmt
from mldb.tensors.descriptor import Descriptor
from mldb.tensors.dtypes import dtype_of, itemsize_of
from mldb.tensors.encoding import ENCODING_ZSTD, encode_bytes

_SURE: Final = 0.6
"""Below this share of the bytes a delta is taken without a look at what it takes without a base."""


def encode_cold(
    what: Descriptor, data: memoryview, base: memoryview | None
) -> tuple[int, bytes] | None:
    """Return encoding and stored bytes of a tensor, or None where none saves 5 %.

    *base* are the bytes of a neighbour version, as many. ENCODING_DELTA is built on it.
    """
    delta = None if base is None else encode_delta(data, base, number_width(what))
    if delta is not None and len(delta) <= _SURE * len(data):
        return fmt.ENCODING_DELTA, delta
    packed = encode_bytes((data,), itemsize_of(what.dtype))
    if delta is not None and (packed is None or len(delta) <= len(packed)):
        return fmt.ENCODING_DELTA, delta
    return None if packed is None else (ENCODING_ZSTD, packed)


def number_width(what: Descriptor) -> int:
    """Return the bytes of a number of which a tensor consists: half an element where complex."""
    dtype = dtype_of(what.dtype)
    size = itemsize_of(what.dtype)
    is_complex = np.issubdtype(dtype, np.complexfloating) or "complex" in dtype.name
    return size // 2 if is_complex else size
