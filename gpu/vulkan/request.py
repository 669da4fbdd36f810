"""A request to the shader, and how a part of it is written into a slot."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s
from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError
from mldb.gpu.checks import LENGTH_ERROR_MAX
from mldb.gpu.device import Dynamics, Energy, MixtureEnergy, SelfEnergy
from mldb.gpu.vulkan import pipeline as bindings
from mldb.gpu.vulkan.context import Context
from mldb.gpu.vulkan.pipeline import ShaderMode, Variant
from mldb.gpu.vulkan.recording import Shape
from mldb.gpu.vulkan.sizes import PARAMETER_BYTES, Capacity, Sizes
from mldb.gpu.vulkan.slots import Slot
from mldb.gpu.vulkan.table import VulkanTable, fill, padded_dim
from mldb.noise.keys import Keys
from mldb.noise.philox import seed_key

PARAMETERS: Final = struct.Struct("<10I6f")
"""The uniform block of the shader, in its order.

seed (2), pass, rows, first step, steps, start of mu (quads), starts of kappa and of the log
weights (words), rows of a window; eps, sqrt(2 eps T), 1 / T, rho, sqrt(1 - rho^2), the largest
error of a squared length.
"""

ROWS_WORTH_A_BATCH: Final = 16
"""Fewer rows do not keep the cores of a CPU busy, however long their chains are."""

LOOP_ROUNDS_MAX: Final = 60_000
"""How many rounds all loops of the shader may have together on a CPU driver: Mesa's llvmpipe ends
them after 65,535 (LP_MAX_TGSI_LOOP_ITERATIONS), without an error."""

UNROLLED_MAX: Final = 32
"""Loops over the quads of a lane up to here are unrolled by drivers, and count for nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Extra:
    """What a row brings beside itself, as columns [B] or [B, K] of 32-bit words."""

    columns: tuple[npt.NDArray[Any], ...] = ()

    @property
    def row_bytes(self) -> int:
        """The bytes of one row over all columns."""
        return sum(4 * (column.size // max(1, len(column))) for column in self.columns)

    def write(self, target: npt.NDArray[np.uint32], first: int, end: int) -> None:
        """Write rows ``first`` to ``end``, column after column."""
        position = 0
        for column in self.columns:
            part = column[first:end]
            place = target[position : position + part.size].view(part.dtype)
            np.copyto(place.reshape(part.shape), part)
            position += part.size


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One batch as the caller gave it, checked. ``mu`` is None where it is x itself."""

    variant: Variant
    keys: Keys
    x: Float32s | None = None
    mu: Float32s | None = None
    extra: Extra = field(default_factory=Extra)
    table: VulkanTable | None = None
    step: int = 0
    steps: int = 0
    numbers: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    """eps, sqrt(2 eps T), 1 / T, rho, sqrt(1 - rho^2)."""

    @property
    def row_bytes(self) -> int:
        """The bytes of a row in a slot."""
        return padded_dim(self.variant.dim) * 4

    @property
    def inputs(self) -> int:
        """How many rows go in for each row that comes out."""
        return (self.x is not None) + (self.mu is not None)

    @property
    def row_work(self) -> float:
        """What moving one row costs; the unit is about one pass over 640 components.

        A step costs about 8 such passes and one for each neighbour.
        """
        return max(1, self.steps) * (self.variant.neighbours + 8) * self.variant.dim / 640

    def rows_in(self, capacity: Capacity, work_max: int) -> int:
        """Return how many rows of this request one batch takes; 0 if a slot holds not even one."""
        fit = capacity.rows_of(self.row_bytes, self.extra.row_bytes, inputs=max(1, self.inputs))
        return min(fit, max(ROWS_WORTH_A_BATCH, int(work_max / self.row_work)))

    def sizes(self, rows: int) -> Sizes:
        """Return what a slot needs for *rows* rows of this request, in bytes by region."""
        return {
            bindings.PARAMETERS: PARAMETER_BYTES,
            bindings.KEYS: 8 * rows,
            bindings.ROWS: rows * self.row_bytes * max(1, self.inputs),
            bindings.EXTRA: rows * self.extra.row_bytes,
            bindings.ENDS: rows * self.row_bytes,
            bindings.ACCEPTED: 4 * rows,
        }

    def shape(self, rows: int, *, readback: bool = True) -> Shape:
        """Return what a slot with *rows* rows of this request is recorded for.

        Without *readback* where chains end stays on the device.
        """
        return Shape(
            variant=self.variant,
            rows=rows,
            row_input_bytes=rows * self.row_bytes * self.inputs,
            extra_bytes=rows * self.extra.row_bytes,
            end_bytes=rows * self.row_bytes if readback else 0,
            table=self.table,
        )

    def write(self, slot: Slot, first: int, end: int) -> None:
        """Write rows ``first`` to ``end`` and all numbers into an acquired slot."""
        rows, wide = end - first, padded_dim(self.variant.dim)
        # Words 2 and 3 of the counter, low word first: the row, and above 48 bits the augmentation.
        ids = slot.keys[:rows]
        np.left_shift(self.keys.augmentations[first:end], np.uint64(48), out=ids, dtype=np.uint64)
        np.bitwise_or(ids, self.keys.rows[first:end], out=ids)
        if self.x is not None:
            fill(slot.rows, self.x[first:end])
        if self.mu is not None:
            fill(slot.rows[rows * wide :], self.mu[first:end])
        self.extra.write(slot.extra, first, end)
        self._write_parameters(slot, rows)

    def _write_parameters(self, slot: Slot, rows: int) -> None:
        # The neighbours' columns are index, kappa, log weight; a splat of its own brings kappa.
        column = rows * self.variant.neighbours if self.variant.mode is ShaderMode.MIXTURE else 0
        mu_base = rows * padded_dim(self.variant.dim) // 4 if self.mu is not None else 0
        PARAMETERS.pack_into(
            slot.parameters,
            0,
            *seed_key(self.keys.seed),
            self.keys.pass_number,
            rows,
            self.step,
            self.steps,
            mu_base,
            column,
            2 * column,
            self.table.rows_per_window if self.table is not None else 0,
            *self.numbers,
            2 * LENGTH_ERROR_MAX,
        )


def isotropic_request(x: Float32s, keys: Keys, strength: float) -> Request:
    """Return the request of ``Device.isotropic``; arguments were checked."""
    rest = sqrt(1 - strength * strength)
    return Request(
        variant=Variant(ShaderMode.ISOTROPIC, x.shape[1]),
        keys=keys,
        x=x,
        steps=1,  # what the shader reports as accepted
        numbers=(0.0, 0.0, 0.0, strength, rest),
    )


def langevin_request(
    context: Context,
    x: Float32s,
    keys: Keys,
    energy: Energy,
    dynamics: Dynamics,
    first_step: int = 0,
) -> Request:
    """Return the request of ``Device.langevin``; arguments were checked but for the table.

    A chain that goes on where another one ended has its noise from *first_step* on. Raises
    InvalidValueError, InvalidTypeError, ClosedError.
    """
    if dynamics.form != "direct":
        raise InvalidValueError(
            f"the Vulkan device runs form='direct', not {dynamics.form!r}; the subspace form runs "
            "on device='torch' or 'numpy'"
        )
    eps, temperature = dynamics.step_size, dynamics.temperature
    inverse = 1 / temperature if dynamics.method == "mala" else 0.0
    numbers = (eps, sqrt(2 * eps * temperature), inverse, 0.0, 0.0)
    mala, dim = dynamics.method == "mala", x.shape[1]
    if isinstance(energy, SelfEnergy):
        return Request(
            variant=Variant(ShaderMode.SELF, dim, mala=mala),
            keys=keys,
            x=x,
            mu=None if energy.mu is x else np.asarray(energy.mu),
            extra=Extra((np.asarray(energy.kappa),)),
            step=first_step,
            steps=dynamics.steps,
            numbers=numbers,
        )
    table = own_table(context, energy)
    columns = (energy.index, np.asarray(energy.kappa), np.asarray(energy.log_weight))
    return Request(
        variant=Variant(ShaderMode.MIXTURE, dim, energy.index.shape[1], mala, len(table.windows)),
        keys=keys,
        x=x,
        extra=Extra(columns),
        table=table,
        step=first_step,
        steps=dynamics.steps,
        numbers=numbers,
    )


def steps_at_once(variant: Variant, lanes: int) -> int:
    """Return how many steps of a chain stay below LOOP_ROUNDS_MAX; 0 if not even one does.

    Counted as if every loop over quads that may stay a loop did.
    """
    held = -(-padded_dim(variant.dim) // (4 * lanes))
    loop = held if held > UNROLLED_MAX else 0
    step = 2 + (10 if variant.mala else 6) * loop
    if variant.mode is ShaderMode.MIXTURE:
        step += variant.neighbours * (1 + 3 * loop) + 2 * loop
    return LOOP_ROUNDS_MAX // step - 1  # MALA has a round more than steps


def own_table(context: Context, energy: MixtureEnergy) -> VulkanTable:
    """Return the table of an energy. Raises ClosedError; InvalidTypeError if it is another's."""
    table = energy.table
    if not isinstance(table, VulkanTable) or table.context is not context:
        raise InvalidTypeError(
            f"the table was loaded by another device, not by {context.info.label}; load the rows "
            "with this device's load()"
        )
    if table.closed:
        raise ClosedError("the table of this energy was closed; load its rows again")
    return table
