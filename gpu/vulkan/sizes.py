"""How large the slots of a ring are: as the batches that come, up to what one may hold.

The memory of a ring is, in each of its one (``direct``) or two copies::

    slots * sum over the regions of round_up(max(region_bytes, LEAST_BYTES), 256)

with the region bytes of ``Request.sizes``: for the largest batch since the ring was last at rest,
and at most those of ``Capacity``. Ends of 4 bytes per component come out for rows that go in, so a
stream of B rows of d components over three slots has 3 * B * (8 d + 12) bytes, and what rounding up
adds. A ring that was made for a certain number of rows, or whose memory another API has mapped, has
its size from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from mldb.gpu.vulkan.pipeline import ACCEPTED, ENDS, EXTRA, KEYS, PARAMETERS, ROWS

Sizes: TypeAlias = Mapping[int, int]
"""The bytes of each region of a slot, by its binding."""

PARAMETER_BYTES: Final = 64
ROW_BYTES: Final = 2560
"""A row of 640 float32. Slots may hold rows of this size; others fill the same bytes."""
EXTRA_BYTES: Final = 384
"""Room for index, kappa and log weight of 32 neighbours of a row."""
LEAST_BYTES: Final = 16
"""Of a region that a batch does not use: every binding is bound to something. One texel."""

SLOTS_MIN: Final = 2
BATCH_ROWS_MIN: Final = 64


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that one slot may hold. ``rows`` counts rows whatever their dimension."""

    rows: int

    @property
    def sizes(self) -> Sizes:
        """Return the bytes of each region by binding; rows have room for x and for mu."""
        return {
            PARAMETERS: PARAMETER_BYTES,
            KEYS: 8 * self.rows,
            ROWS: 2 * ROW_BYTES * self.rows,
            EXTRA: EXTRA_BYTES * self.rows,
            ENDS: ROW_BYTES * self.rows,
            ACCEPTED: 4 * self.rows,
        }

    def rows_of(self, row_bytes: int, extra_bytes: int, *, inputs: int = 1) -> int:
        """Return how many rows of a request fit in one slot; 0 if not even one does."""
        sizes = self.sizes
        fit = min(self.rows, sizes[ENDS] // row_bytes, sizes[ROWS] // (inputs * row_bytes))
        return min(fit, sizes[EXTRA] // extra_bytes) if extra_bytes else fit


@dataclass(frozen=True, slots=True, kw_only=True)
class RingForm:
    """What a ring was asked to be.

    ``direct``: the shader works in memory that the host sees. ``exported``: another API can import
    the results. ``fixed``: slots have all of ``capacity`` from the start, not what batches need.
    """

    capacity: Capacity
    slots: int
    direct: bool
    exported: bool = False
    fixed: bool = False

    def smaller(self) -> RingForm | None:
        """What to try where memory does not suffice: first fewer rows, then fewer slots; or None.

        Who uses a ring that grows knows its slots already: they stay as many.
        """
        rows = self.capacity.rows
        if rows > BATCH_ROWS_MIN:
            return replace(self, capacity=Capacity(max(BATCH_ROWS_MIN, rows // 2)))
        if self.fixed and self.slots > SLOTS_MIN:
            return replace(self, slots=self.slots - 1)
        return None


def larger(needed: Sizes, had: Sizes | None) -> Sizes:
    """Return regions with room for what is needed and for what there was."""
    least = {region: max(LEAST_BYTES, size) for region, size in needed.items()}
    if had is None:
        return least
    return {region: max(size, had[region]) for region, size in least.items()}


def holds(had: Sizes, needed: Sizes) -> bool:
    """Whether a slot of these regions has room for what is needed."""
    return all(had[region] >= size for region, size in needed.items())
