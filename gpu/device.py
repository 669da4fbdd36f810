"""What every device does, and the words of a request.

A device is a pure function of its arguments: the same keys, rows and settings give the same noise
words on every device, the same bytes on one device, and floats within 1e-6 across devices. The
noise of a row comes from its key alone (``mldb.noise.philox``), never from its place in a batch.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.deferred import dataclass
from mldb.noise.keys import Keys

ChainMethod: TypeAlias = Literal["ula", "mala"]
Form: TypeAlias = Literal["direct", "subspace"]

AUGMENTATIONS_MAX: Final = 1 << 16

DeviceArray: TypeAlias = Any
"""float32, C-contiguous: a NumPy array, or on a torch device a tensor that lives there."""


@dataclass(frozen=True, slots=True)
class Dynamics:
    """How a chain moves: ``steps`` of geodesic Langevin with step size eps at a temperature.

    ``method`` "mala" accepts or rejects each step, so that its law is exact; "ula" does not.
    ``form`` "subspace" runs the steps in the span of the neighbours: the same law, other numbers.
    """

    steps: int
    step_size: float
    temperature: float = 1.0
    method: ChainMethod = "ula"
    form: Form = "direct"


class Table(Protocol):
    """Rows that a device can gather from, by number. Lives until ``close``."""

    rows: int
    dim: int
    imported: bool
    """Read in place from the host's memory, without a copy."""

    def close(self) -> None:
        """Give the memory back; the source may then go."""


@dataclass(frozen=True, slots=True, eq=False)
class SelfEnergy:
    """Each row under its own splat: E(x) = -kappa (mu.x - 1). mu [B, d], kappa [B]."""

    mu: DeviceArray
    kappa: DeviceArray


@dataclass(frozen=True, slots=True, eq=False)
class MixtureEnergy:
    """Each row under K neighbours: E(x) = -logsumexp_j(log_weight_j + kappa_j (mu_j.x - 1)).

    ``index`` i32 [B, K] are rows of ``table``; ``kappa`` and ``log_weight`` float32 [B, K].
    """

    table: Table
    index: npt.NDArray[np.int32]
    kappa: DeviceArray
    log_weight: DeviceArray


Energy: TypeAlias = SelfEnergy | MixtureEnergy


class Chains(NamedTuple):
    """Where the chains ended: x [B, d] on the device, and how many steps each accepted, i32 [B]."""

    x: DeviceArray
    accepted: Any


class Pending(Protocol):
    """A batch on its way through a device."""

    def result(self) -> Chains:
        """Wait for it.

        Raises InvalidValueError when a row of x was not of length 1 or had NaN, which only reading
        it shows; GpuUnavailableError when the device was lost or does not answer.
        """


class Device(Protocol):
    """One device. A single thread at a time; closed by its owner, refused in a forked child.

    Batches come back in the order in which they were started. At most ``slots`` may be under way:
    starting another waits for the oldest. What a result refers to stays valid until ``slots``
    further batches were started, unless the device was opened with ``copy=True`` (the default).
    """

    kind: str
    """"numpy", "torch", "cuda" or "vulkan"."""
    name: str
    """What ran, for people: "vulkan (NVIDIA H100 PCIe)", "torch (cpu)"."""
    slots: int

    @property
    def usable(self) -> bool:
        """Whether it can still work: it was neither closed nor lost."""

    def load(self, rows: npt.NDArray[np.float32]) -> Table:
        """Make rows [N, d] available: referenced, imported or copied. Raises LimitError."""

    def words(self, keys: Keys, step: int, blocks: int) -> npt.NDArray[np.uint32]:
        """Return the raw noise words of one step, u32 [B, blocks, 4]; for tests and provenance."""

    def normals(self, keys: Keys, step: int, dim: int) -> DeviceArray:
        """Return the standard normals of one step, float32 [B, dim]."""

    def isotropic(self, x: DeviceArray, keys: Keys, strength: float) -> Pending:
        """Start x' = rho x + sqrt(1 - rho^2) u, u uniform in the tangent sphere at x (step 0)."""

    def langevin(self, x: DeviceArray, keys: Keys, energy: Energy, dynamics: Dynamics) -> Pending:
        """Start chains at x [B, d], unit rows.

        Raises InvalidTypeError and InvalidValueError (``mldb.gpu.checks``), the latter also for a
        form that the device does not have. x must not change before the batch is done.
        """

    def answers(self) -> bool:
        """Whether it is usable, and still does what it is told: what was lost at rest shows."""

    def rest(self) -> None:
        """Give back what only batches need, once those under way are done; the next one gets it.

        Results that were not asked for are lost, but with ``copy=True``. Tables stay. Raises
        GpuUnavailableError.
        """

    def close(self) -> None:
        """Wait for what is under way and give everything back. Closing twice is harmless."""
