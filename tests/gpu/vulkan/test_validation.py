"""Every mode under the Khronos validation layer, which prints what breaks Vulkan's rules.

In processes of their own: the layer prints to stdout, and its state lasts as long as the process.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan.device import open_vulkan
from tests.support.vulkan import give_up, opened

EVERY_MODE = """
import gc
import numpy as np
from mldb.gpu.device import Dynamics, MixtureEnergy
from mldb.gpu.vulkan.device import open_vulkan
from tests.support.cuda import hand_over
from tests.support.vulkan import batch_of, results_of

for options in {forms}:
    device = open_vulkan(validation=True, **{{"batch_rows": 16, **options}})
    rng = np.random.default_rng(1)
    for dim in (64, 3):
        # More rows than a slot holds, and a table that is closed before the next batch.
        results_of(device, batch_of(rng, rows=40, dim=dim, neighbours=4))
    batch = batch_of(rng, rows=10, dim=64, neighbours=4, table=64)
    device.window_bytes = 8192
    table = device.load(batch.rows)
    energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
    for _ in range(5):
        pending = device.langevin(batch.x, batch.keys, energy, Dynamics(2, 1e-3))
    if options.get("exported"):
        hand_over(device)
    elif "batch_rows" in options:
        # The ring grew with the batches; it goes, and comes again behind a batch of nothing.
        device.rest()
        assert device.answers()
        results_of(device, batch_of(rng, rows=70, dim=64, neighbours=4))
    {mistake}
    table.close()
    del pending
    device.close()
    gc.collect()
print("finished")
"""

# A buffer that commands and a view still name is destroyed, and later once more.
MISTAKE = "table.context.api.vkDestroyBuffer(table.context.device, table.windows[0].handle, None)"


FORMS: tuple[dict[str, bool | None], ...] = (
    {},
    {"direct": False},
    {"batch_rows": None},
    {"batch_rows": None, "direct": False, "copy": False},
    {"exported": True, "copy": False},
    {"exported": True, "copy": False, "direct": False},
)


def _run(*forms: dict[str, bool | None], mistake: str = "pass") -> str:
    try:
        open_vulkan(batch_rows=16, validation=True).close()
    except GpuUnavailableError as error:
        give_up(str(error))
    done = subprocess.run(
        [sys.executable, "-c", EVERY_MODE.format(forms=forms, mistake=mistake)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_no_rule_of_vulkan_is_broken() -> None:
    with opened(batch_rows=16):
        pass
    assert _run(*FORMS) == "finished\n"


@pytest.mark.slow
def test_a_broken_rule_is_found() -> None:
    assert "VUID-" in _run({}, mistake=MISTAKE)
