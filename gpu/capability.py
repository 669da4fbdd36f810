"""What each kind of device can run: one table, asked before a device is opened.

A device lacks nothing of what is not in the table. The limits of Vulkan depend on the driver: on
the width of its subgroups, and on a CPU driver on how long a loop may run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Final, Literal, TypeAlias

from mldb.deferred import dataclass
from mldb.errors import InvalidValueError, LimitError
from mldb.gpu.checks import SUBSPACE_SPARE, check_dim
from mldb.gpu.device import ChainMethod, Form
from mldb.gpu.vulkan.instance import DeviceInfo

Kind: TypeAlias = Literal["vulkan", "cuda", "torch", "numpy"]

CPU_DRIVER_DIM_MAX: Final = 1024
"""Up to here the isotropic step of a CPU driver is as fast as compiled kernels (batches of 64 to
1,024 rows on two cores: .8 to 1.3 times), and it starts in .3 s where those take 2 to 4 s to
compile. At 2,048 dimensions it has a half of their rate, and in chains, of any length, a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What is going to be asked of a device: the step of every row, or chains."""

    dim: int
    chains: bool = False
    form: Form = "direct"
    method: ChainMethod = "ula"
    neighbours: int = 1


Lacks: TypeAlias = Callable[[Needs, DeviceInfo | None], str | None]


def lacks(kind: Kind, needs: Needs | None, driver: DeviceInfo | None = None) -> str | None:
    """Why a device of this kind cannot do what is needed; None where it can.

    *driver* is that of Vulkan. Without *needs* any device will do.
    """
    return None if needs is None else _TABLE[kind](needs, driver)


def cpu_driver_is_slower(needs: Needs | None) -> bool:
    """Whether torch on the CPU is the better choice beside a Vulkan driver for the CPU.

    Without numba it never is: torch operations have a tenth of the driver's rate and less.
    """
    if find_spec("numba") is None or needs is None:
        return False
    return needs.chains or needs.dim > CPU_DRIVER_DIM_MAX


def _any(needs: Needs, driver: DeviceInfo | None = None) -> str | None:
    """What no device can do."""
    try:
        check_dim(needs.dim)
    except (InvalidValueError, LimitError) as error:
        return str(error)
    if not needs.chains or needs.form == "direct":
        return None
    if needs.method == "mala":
        return "form='subspace' is for method='ula' only"
    least = needs.neighbours + 1 + SUBSPACE_SPARE
    if needs.dim < least:
        return (
            f"form='subspace' with {needs.neighbours} neighbours needs {least} dimensions, rows "
            f"have {needs.dim}"
        )
    return None


def _vulkan(needs: Needs, driver: DeviceInfo | None) -> str | None:
    common = _any(needs)
    if common is not None:
        return common
    if needs.chains and needs.form != "direct":
        return f"its shader runs form='direct', not {needs.form!r}"
    if driver is None:
        return None
    # Not at import: nobody needs all of Vulkan to open a store.
    from mldb.gpu.vulkan.pipeline import QUADS_PER_LANE_MAX, ShaderMode, Variant
    from mldb.gpu.vulkan.request import steps_at_once

    most = 4 * QUADS_PER_LANE_MAX * driver.lanes
    if needs.dim > most:
        return f"its registers hold rows of up to {most} dimensions, not {needs.dim}"
    if needs.chains and driver.kind == "cpu":
        mala = needs.method == "mala"
        variant = Variant(ShaderMode.MIXTURE, needs.dim, needs.neighbours, mala)
        if steps_at_once(variant, driver.lanes) < 1:
            return (
                f"its loops end before a step of {needs.dim} dimensions and {needs.neighbours} "
                "neighbours does"
            )
    return None


_TABLE: Final[Mapping[Kind, Lacks]] = {
    "vulkan": _vulkan,
    "cuda": _any,
    "torch": _any,
    "numpy": _any,
}
