"""The seed that a stream of a lake uses: the user's, moved apart by the lake and by what counts.

Two lakes streamed under one seed have neither orders nor noise in common. The 64 bits of the seed
are combined by exclusive or with a word of the lake's id, so within a lake no two seeds become one;
between two lakes a clash of one pair of seeds has a chance of 2^-64.

Layout 2, kept for as long as ``philox.LAYOUT_VERSION`` stays 2::

    word    Philox4x32-10 of the lake's id, 16 bytes as four little-endian 32-bit words, under the
            key (Counted, 0); output words 0 (low) and 1 (high)
    seed    the user's seed xor that word
    rows    the row field of the counter: what ``Counted`` says
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np

from mldb.errors import InvalidValueError
from mldb.noise.draws import check_seed
from mldb.noise.philox import philox


class Counted(IntEnum):
    """What the row field of a stream's counters holds."""

    ROW = 0  # the id of a row, where a pass takes a row once; orders and draws use this seed too
    DRAW = 1  # the position of a draw in its pass, where a row may be drawn many times


def stream_seed(seed: int, lake_id: bytes, counted: Counted = Counted.ROW) -> int:
    """Return the 64-bit seed of a stream under the user's *seed* over the lake of *lake_id*.

    A pure function; *lake_id* has 16 bytes. Raises InvalidTypeError, InvalidValueError.
    """
    check_seed(seed, 0)
    return int(seed) ^ _word_of(lake_id, counted)


@lru_cache(maxsize=64)
def _word_of(lake_id: bytes, counted: Counted) -> int:
    if len(lake_id) != 16:
        raise InvalidValueError(f"the id of a lake has {len(lake_id)} bytes, not 16")
    low, high = philox(np.frombuffer(lake_id, "<u4"), (int(counted), 0))[:2].tolist()
    return int(low | high << 32)
