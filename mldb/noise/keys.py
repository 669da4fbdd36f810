"""What noise is a function of, and the ranges of its counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

ROW_ID_BITS: Final = 48
STEPS_MAX: Final = (1 << 15) - 1  # the step's top bit tells the subspace form from the direct one


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """What the noise of a batch is a function of; one row id and augmentation number per row.

    ``seed`` has 64 bits, ``pass_number`` 32. ``rows`` are u64 [B] below 2^48, ``augmentations``
    u16 [B].
    """

    seed: int
    pass_number: int
    rows: npt.NDArray[np.uint64]
    augmentations: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        """The number of rows B."""
        return len(self.rows)
