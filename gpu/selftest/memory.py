"""Items 5 and 7 of ``mldb.gpu.selftest``: memory read in place, and memory that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.errors import GpuUnavailableError
from mldb.gpu.selftest import rates
from mldb.gpu.selftest.lines import Line, index_of, judged
from mldb.gpu.selftest.rates import DIM, aligned_rows, sample_keys
from mldb.gpu.vulkan.device import VulkanDevice, open_vulkan
from mldb.gpu.vulkan.errors import DeviceMemoryError
from mldb.gpu.vulkan.memory import MemoryPlace, allocate
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem


def imports(device: VulkanDevice) -> Iterator[Line]:
    """Item 5: host memory read in place, and what the copy costs instead."""
    rows = aligned_rows(20_000, DIM)
    with TemporaryDirectory() as folder:
        for name, array in _memories(rows, OsFileSystem(folder)):
            # A refusal lasts as long as the device: each kind of memory is asked for anew.
            with closing(open_vulkan(index_of(device), batch_rows=64)) as other:
                seconds, table = rates.timed(partial(other.load, array))
                refused = other.stats()["imports_refused"] > 0
                how = "in place" if table.imported else "refused, copied" if refused else "copied"
                gigabytes = rows.nbytes / seconds / 1e9
                text = f"{name}: {how} in {seconds * 1e3:.1f} ms ({gigabytes:.1f} GB/s)"
                yield Line("import", "INFO", text, {"imported": table.imported, "seconds": seconds})
                table.close()


def _memories(rows: npt.NDArray[np.float32], fs: FileSystem) -> Iterator[tuple[str, Any]]:
    """The same rows in memory of every kind that a driver may take or refuse."""
    yield "anonymous, aligned, of large pages where NumPy gets them", rows
    raw = np.empty(rows.size + 4, np.float32)
    offset = 4 if raw.ctypes.data % 4096 == 0 else 0
    moved = raw[offset : offset + rows.size].reshape(rows.shape)
    moved[...] = rows
    yield "anonymous, not aligned", moved
    file = fs.open("rows", "create")
    try:
        file.pwritev([rows.reshape(-1).view(np.uint8).data], 0)
        maps = {"shared": file.map(rows.nbytes), "private": file.map_private(0, rows.nbytes)}
    finally:
        file.close()
    for kind, data in maps.items():
        yield f"file, {kind} mapping", np.frombuffer(data, np.float32).reshape(rows.shape)


def memory(device: VulkanDevice) -> Iterator[Line]:
    """Item 7: more memory than there is ends in an error, and the device works after it."""
    shared = open_vulkan(index_of(device), exported=True, copy=False, batch_rows=64)
    context = shared.exported_memory().context
    size = context.info.limits.heap * 3 // 2
    try:
        allocate(context, size, MemoryPlace.DEVICE, option="nothing").close()
        yield Line("memory", "INFO", f"the driver promised {size:,} bytes, more than it has")
    except DeviceMemoryError as error:
        yield judged("memory", error.asked_bytes == size, str(error))
    except GpuUnavailableError as error:
        yield Line("memory", "FAIL", f"not the error of memory: {error}")
    works = shared.words(sample_keys(4), 0, 2).shape == (4, 2, 4)
    yield judged("memory", works, "the device works after it")
    shared.close()
