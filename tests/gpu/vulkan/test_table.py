"""Tables on the device: imported in place, copied, and split into windows."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.gpu.device import Dynamics, MixtureEnergy
from mldb.gpu.vulkan import memory as vk_memory
from mldb.gpu.vulkan import table as vk_table
from mldb.gpu.vulkan.device import VulkanDevice
from mldb.gpu.vulkan.table import VulkanTable
from tests.support.vulkan import Batch, batch_of, device_of, opened

DIM = 64
PAGE = 4096


@pytest.fixture(scope="module")
def device() -> VulkanDevice:
    return device_of(batch_rows=64)


@pytest.fixture
def batch(rng: np.random.Generator) -> Batch:
    return batch_of(rng, rows=20, dim=DIM, neighbours=4, table=100)


def _at(rows: npt.NDArray[np.float32], offset: int) -> npt.NDArray[np.float32]:
    """The same rows in memory that starts ``offset`` bytes after a page."""
    raw = np.empty(rows.nbytes + 2 * PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE + offset
    placed = raw[start : start + rows.nbytes].view(np.float32).reshape(rows.shape)
    placed[...] = rows
    return placed


def _ends(device: VulkanDevice, batch: Batch, table: VulkanTable) -> bytes:
    energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
    ends = device.langevin(batch.x, batch.keys, energy, Dynamics(2, 1e-3)).result()
    found: bytes = ends.x.tobytes()
    return found


def test_aligned_memory_is_read_in_place(device: VulkanDevice, batch: Batch) -> None:
    rows = _at(batch.rows, 0)
    table = device.load(rows)
    assert table.imported
    before = _ends(device, batch, table)
    # The device reads the caller's memory: a change shows.
    rows[...] = rows[::-1].copy()
    assert _ends(device, batch, table) != before
    table.close()


@pytest.mark.parametrize("offset", [16, 2048])
def test_memory_that_is_not_aligned_is_copied(
    device: VulkanDevice, batch: Batch, offset: int
) -> None:
    rows = _at(batch.rows, offset)
    table = device.load(rows)
    assert not table.imported
    expected = _ends(device, batch, table)
    rows[...] = 0
    assert _ends(device, batch, table) == expected
    table.close()


def test_a_file_mapping_read_only_is_imported(
    device: VulkanDevice, batch: Batch, tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    # As in a segment: the rows start at a page, and the file ends inside one.
    path.write_bytes(bytes(PAGE) + batch.rows.tobytes() + b"end")
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rows = np.frombuffer(mapping, np.float32, batch.rows.size, PAGE).reshape(batch.rows.shape)
    mapped, copied = device.load(rows), device.load(_at(batch.rows, 16))
    assert mapped.imported
    assert not copied.imported
    assert _ends(device, batch, mapped) == _ends(device, batch, copied)
    mapped.close()
    copied.close()


def test_an_imported_source_lives_until_close(device: VulkanDevice, batch: Batch) -> None:
    rows = _at(batch.rows, 0)
    watched = weakref.ref(rows.base)
    table = device.load(rows)
    del rows
    gc.collect()
    assert watched() is not None
    table.close()
    table.close()
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("direct", [None, False])
@pytest.mark.parametrize("offset", [0, 16])
def test_windows_do_not_change_bits(batch: Batch, direct: bool | None, offset: int) -> None:
    rows = _at(batch.rows, offset)
    with opened(batch_rows=64, direct=direct) as device:
        whole = device.load(rows)
        expected = _ends(device, batch, whole)
        for bytes_per_window in (2 * PAGE, 3 * PAGE):
            device.window_bytes = bytes_per_window
            table = device.load(rows)
            assert len(table.windows) == -(-rows.nbytes // bytes_per_window)
            assert table.imported == whole.imported
            assert _ends(device, batch, table) == expected
            table.close()
        device.window_bytes = PAGE
        with pytest.raises(LimitError, match="torch"):
            device.load(rows)
        whole.close()


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_rows_that_need_padding_are_copied(
    device: VulkanDevice, rng: np.random.Generator, dim: int
) -> None:
    table = device.load(_at(batch_of(rng, rows=1, dim=dim, neighbours=1).rows, 0))
    assert not table.imported
    table.close()


def test_a_refused_import_is_counted_and_not_tried_again(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _at(batch.rows, 0)
    with opened(batch_rows=64) as device:
        tried = []

        def refuse(context: object, part: npt.NDArray[np.uint8]) -> None:
            tried.append(part.nbytes)

        imported = device.load(rows)
        expected = _ends(device, batch, imported)
        monkeypatch.setattr(vk_table, "import_host", refuse)
        for _ in range(3):
            table = device.load(rows)
            assert not table.imported
            assert _ends(device, batch, table) == expected
        assert len(tried) == 1
        assert device.stats()["imports"] == 1
        assert device.stats()["imports_refused"] == 1
        assert device.stats()["copies"] == 3


@pytest.mark.parametrize("step", ["vkCreateBuffer", "vkAllocateMemory", "vkBindBufferMemory"])
def test_a_driver_that_refuses_a_pointer_leads_to_a_copy(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with opened(batch_rows=64) as device:
        context = device.load(batch.rows).context
        real = getattr(context.api, step)

        def refuse(*arguments: object) -> object:
            if imports:
                raise context.api.VkErrorInvalidExternalHandle
            return real(*arguments)

        imports = True
        monkeypatch.setattr(context.api, step, refuse)
        assert vk_memory.import_host(context, _at(batch.rows, 0).reshape(-1).view(np.uint8)) is None
        imports = False
        monkeypatch.undo()
        assert device.load(_at(batch.rows, 0)).imported


def test_tables_outlive_their_device_without_harm(batch: Batch) -> None:
    with opened(batch_rows=64) as device:
        imported, copied = device.load(_at(batch.rows, 0)), device.load(_at(batch.rows, 16))
        _ends(device, batch, imported)
    imported.close()
    del copied
    gc.collect()


def test_a_closed_table_waits_for_the_batches_that_read_it(batch: Batch) -> None:
    with opened(batch_rows=64) as device:
        table = device.load(batch.rows)
        energy = MixtureEnergy(table, batch.index, batch.kappas, batch.log_weight)
        expected = device.langevin(batch.x, batch.keys, energy, Dynamics(50, 1e-3)).result()
        pending = device.langevin(batch.x, batch.keys, energy, Dynamics(50, 1e-3))
        table.close()
        assert pending.result().x.tobytes() == expected.x.tobytes()
        # Nothing of the slots points at it any more.
        assert device.normals(batch.keys, 0, DIM).shape == batch.x.shape


def test_what_is_no_table_is_refused(device: VulkanDevice) -> None:
    with pytest.raises(InvalidTypeError):
        device.load(np.zeros((4, 8)))  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError):
        device.load(np.zeros(8, np.float32))
    assert device.load(np.zeros((0, 8), np.float32)).rows == 0


def test_a_row_of_the_table_that_is_not_there_is_refused(
    device: VulkanDevice, batch: Batch
) -> None:
    table = device.load(batch.rows)
    index = batch.index.copy()
    index[3, 2] = len(batch.rows)
    energy = MixtureEnergy(table, index, batch.kappas, batch.log_weight)
    with pytest.raises(InvalidValueError, match="index"):
        device.langevin(batch.x, batch.keys, energy, Dynamics(2, 1e-3))
    table.close()
