"""What noise is a function of, and the ranges of its counters."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError

ROW_ID_BITS: Final = 48
STEPS_MAX: Final = (1 << 15) - 1  # the step's top bit tells the subspace form from the direct one


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """What the noise of a batch is a function of; one row id and augmentation number per row.

    ``seed`` has 64 bits, ``pass_number`` 32. ``rows`` are u64 [B] below 2^48: ids of rows, or
    positions of draws where a row may be drawn twice (``mldb.noise.streams``). ``augmentations``
    u16 [B].
    """

    seed: int
    pass_number: int
    rows: npt.NDArray[np.uint64]
    augmentations: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        """The number of rows B."""
        return len(self.rows)


def check_keys(keys: Keys, step: int = 0) -> None:
    """Refuse keys that would name another row's noise. Raises InvalidTypeError, -ValueError."""
    _check_array("keys.rows", keys.rows, "uint64")
    _check_array("keys.augmentations", keys.augmentations, "uint16")
    if keys.rows.shape != keys.augmentations.shape:
        raise InvalidValueError(
            f"keys have {len(keys.rows)} rows and {len(keys.augmentations)} augmentation numbers; "
            "each row needs one"
        )
    for name, value, bits in (("seed", keys.seed, 64), ("pass_number", keys.pass_number, 32)):
        if not 0 <= value < 1 << bits:
            raise InvalidValueError(f"keys.{name}={value} does not fit in {bits} bits without sign")
    if len(keys) and int(keys.rows.max()) >> ROW_ID_BITS:
        raise InvalidValueError(
            f"a row id is {int(keys.rows.max())}; ids are below 2^{ROW_ID_BITS}"
        )
    if not 0 <= step <= 2 * STEPS_MAX + 1:
        raise InvalidValueError(f"step={step} does not fit in the 16 bits of the counter")


def _check_array(name: str, array: Any, wanted: str) -> None:
    dtype = getattr(array, "dtype", None)
    if str(dtype).removeprefix("torch.") != wanted:
        found = f"a {type(array).__name__}" if dtype is None else str(dtype)
        raise InvalidTypeError(f"{name} is {found}, not {wanted}")
    if array.ndim != 1:
        raise InvalidValueError(f"{name} has {array.ndim} dimensions, not 1")
