"""The block of one ``add_splats``: its layout, and its bytes, in memory or straight to a file.

Bytes go to the file piece by piece. The caller's thread normalises and hashes one piece while a
second thread writes the one before, so that memory stays bounded and both cores work. Whatever
fails, no commit follows, so nothing is half ingested.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s
from mldb.history.splats import CHECK_LOG2, BlockInfo, lay_out
from mldb.lake.on_host import to_host
from mldb.lake.write.given import GivenRows
from mldb.log.aside import Aside
from mldb.log.checksum import PayloadHash
from mldb.log.fs.protocol import File
from mldb.sphere.geometry import Geometry
from mldb.sphere.norms import divide_by_norms, refuse_infinite
from mldb.write.buffers import BufferPool

PIECE_BYTES: Final = 4 << 20
HUGE_BYTES: Final = 2 << 20
"""Writes end at multiples of it: the page cache then has the block in pages of that size.

Whoever maps them takes one fault for each, and not one for every few small pages.
"""
_HELD: Final = 3  # pieces: one is made, one is written, and the end of the one before with it


def block_of(given: GivenRows, dim: int) -> BlockInfo:
    """The block that these rows make; its base is decided under the commit lock."""
    alpha, kappa = given.alpha, given.kappa
    user = [(name, a.dtype.str, a.shape[1:]) for name, a in given.user.items()]
    return BlockInfo(
        given.count,
        0,
        lay_out(given.count, dim, labels=given.labels is not None, user=user),
        float(alpha.sum()) if alpha.ndim else float(alpha) * given.count,
        float(alpha.max()),
        float(kappa.min()),
        float(kappa.max()),
    )


def fill_block(
    data: bytearray, given: GivenRows, block: BlockInfo, geometry: Geometry
) -> tuple[bytes, bytes]:
    """Write all columns to *data*, zeros of the block's size; return block checksums and digest.

    Raises InvalidValueError for rows that are not finite, or zero on the sphere.
    """
    view, hashed = memoryview(data), PayloadHash(CHECK_LOG2)
    (dim,) = block.columns[0].shape
    mu = np.frombuffer(data, np.float32, given.count * dim).reshape(-1, dim)
    norms = np.ones(given.count, np.float32)
    step = _piece_rows(dim)
    for low in range(0, given.count, step):
        high = min(low + step, given.count)
        store_rows(given.mu[low:high], mu[low:high], norms[low:high], geometry, low)
        hashed.update(view[4 * dim * low : 4 * dim * high])  # while it is in the cache
    for column, values in zip(block.columns[1:], _other_columns(given, norms), strict=True):
        shape = (given.count, *column.shape)
        np.ndarray(shape, column.dtype, data, column.offset)[...] = values
    hashed.update(view[mu.nbytes :])
    return hashed.finish()


def write_block(
    file: File,
    offset: int,
    given: GivenRows,
    block: BlockInfo,
    geometry: Geometry,
    pool: BufferPool,
) -> tuple[bytes, bytes]:
    """Write all columns to *file* from *offset* on; return block checksums and digest.

    The pieces are made in memory of *pool*. Raises InvalidValueError as :func:`fill_block` does,
    and what writing raises.
    """
    hashed = PayloadHash(CHECK_LOG2)
    (dim,) = block.columns[0].shape
    behind: Aside[int] | None = None
    held = [pool.take(4 * dim * min(_piece_rows(dim), given.count)) for _ in range(_HELD)]
    kept: list[memoryview] = []  # the end of the part before, which goes with the next one
    try:
        for part in _parts(given, block, geometry, held):
            if behind is not None:
                behind.result()
            kept, now = _cut([*kept, part], offset)
            behind = Aside(partial(file.pwritev, now, offset))
            offset += sum(map(len, now))
            hashed.update(part)
        if behind is not None and kept:
            behind.result()
            behind = Aside(partial(file.pwritev, kept, offset))
    finally:
        try:
            if behind is not None:  # the last write ends before the memory is given back
                behind.result()
        finally:
            while held:
                pool.give(held.pop())
    return hashed.finish()


def _cut(parts: list[memoryview], offset: int) -> tuple[list[memoryview], list[memoryview]]:
    """Part what lies from *offset* on at its last huge page: what is kept, and what is written now.

    No more is kept than a piece of the last one; nothing where that begins behind the page.
    """
    *before, last = parts
    late = (offset + sum(map(len, parts))) % HUGE_BYTES
    if not 0 < late < len(last):
        return [], parts
    return [last[-late:]], [*before, last[:-late]]


def store_rows(
    rows: Any, out: Float32s, norms: Float32s, geometry: Geometry, first_row: int
) -> None:
    """Write *rows* to *out* as a lake of *geometry* holds them, and their norms on the sphere."""
    rows = to_host(rows)
    if geometry == "sphere":
        norms[:] = divide_by_norms(
            rows, out, what="mu", safe="Nothing was stored", first_row=first_row
        )
    else:
        np.copyto(out, rows, casting="unsafe")
        refuse_infinite(out, what="mu", safe="Nothing was stored", first_row=first_row)


def _piece_rows(dim: int) -> int:
    return max(1, PIECE_BYTES // (4 * dim))


def _parts(
    given: GivenRows, block: BlockInfo, geometry: Geometry, held: list[memoryview]
) -> Iterator[memoryview]:
    """Yield the bytes of the block in order. A part of mu lasts as long as others of *held* do."""
    (dim,) = block.columns[0].shape
    norms = np.ones(given.count, np.float32)
    step = _piece_rows(dim)
    for number, low in enumerate(range(0, given.count, step)):
        high = min(low + step, given.count)
        data = held[number % len(held)][: 4 * dim * (high - low)]
        out = np.frombuffer(data, np.float32).reshape(-1, dim)
        store_rows(given.mu[low:high], out, norms[low:high], geometry, low)
        yield data
    end = 4 * dim * given.count
    for column, values in zip(block.columns[1:], _other_columns(given, norms), strict=True):
        if column.offset > end:
            yield memoryview(bytes(column.offset - end))
        whole = np.ascontiguousarray(np.broadcast_to(values, (given.count, *column.shape)))
        data = whole.reshape(-1).view(np.uint8).data
        yield data
        end = column.offset + len(data)


def _other_columns(given: GivenRows, norms: Float32s) -> list[npt.NDArray[Any]]:
    """The columns behind mu in their order, each [N, ...] or one value for all."""
    ids = np.arange(given.count, dtype=np.uint64) if given.ids is None else given.ids
    columns: list[npt.NDArray[Any]] = [
        norms,
        given.kappa,
        given.alpha,
        np.ones((), np.float32),
        ids,
    ]
    if given.labels is not None:
        columns.append(given.labels)
    return [*columns, *given.user.values()]
