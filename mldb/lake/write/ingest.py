"""Write the block of one ``add_splats``: normalise, hash and write piece by piece.

A piece is a few MiB. The caller's thread normalises and hashes one piece while a second thread
writes the one before, so that memory stays bounded and both cores work. Whatever fails, no commit
follows, so nothing is half ingested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidValueError
from mldb.history import kinds
from mldb.history.splats import CHECK_LOG2, PAGE_LOG2, BlockInfo, Geometry, lay_out
from mldb.lake.write.batch_input import GivenRows, to_host
from mldb.log.checksum import PayloadHash
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.protocol import Buffer
from mldb.write.buffers import BufferPool

PIECE_BYTES: Final = 4 << 20
Floats = npt.NDArray[np.float32]


def describe(given: GivenRows) -> BlockInfo:
    """The block that these rows make; its base is decided under the commit lock."""
    user = [(name, a.dtype.str, a.shape[1:]) for name, a in given.user.items()]
    dim = int(given.mu.shape[1])
    alpha, kappa = given.alpha, given.kappa
    total = float(alpha.sum()) if alpha.ndim else float(alpha) * given.rows
    return BlockInfo(
        given.rows,
        0,
        lay_out(given.rows, dim, labels=given.labels is not None, user=user),
        total,
        float(alpha.max()),
        float(kappa.min()),
        float(kappa.max()),
    )


def block_record(info: BlockInfo, key: bytes, attr: bytes) -> Record:
    """The record of a block whose payload is still to come."""
    draft = Draft(key, 0, 0, 0, info.nbytes, TO_BE_HASHED, 0, attr)
    return Record(
        kinds.SPLATS_ADDED,
        [draft],
        (),
        info.nbytes,
        align_log2=PAGE_LOG2,
        block_log2=CHECK_LOG2,
    )


class BlockWriter:
    """Feeds the bytes of a block, in order, to a hash and to *write*. One thread.

    What *write* is given must not be read once two further writes were begun, nor after
    :meth:`close`, which gives the memory of the pieces back.
    """

    def __init__(
        self, write: Callable[[list[Buffer]], None], geometry: Geometry, pool: BufferPool
    ) -> None:
        self._write = write
        self._geometry = geometry
        self._pool = pool
        self._hash = PayloadHash(CHECK_LOG2)
        self._size = 0
        self._held: list[memoryview] = []

    def run(self, given: GivenRows, info: BlockInfo) -> tuple[bytes, bytes]:
        """Write all columns; return the block checksums and the digest.

        Raises InvalidValueError for rows that are not finite, or zero on the sphere.
        """
        norms = np.ones(given.rows, np.float32)
        for piece in self._pieces(given, norms):
            self._put(piece)
        for column in info.columns[1:]:
            self._put_zeros(column.offset - self._size)
            self._put(_column(given, norms, column.name))
        return self._hash.finish()

    def _pieces(self, given: GivenRows, norms: Floats) -> Iterator[Floats]:
        """Yield the rows of mu in pieces, in three buffers by turns."""
        dim = int(given.mu.shape[1])
        step = max(1, PIECE_BYTES // (4 * dim))
        self._held = [self._pool.take(4 * dim * min(step, given.rows)) for _ in range(3)]
        for number, low in enumerate(range(0, given.rows, step)):
            high = min(low + step, given.rows)
            buffer = self._held[number % len(self._held)]
            out = np.frombuffer(buffer, np.float32).reshape(-1, dim)[: high - low]
            rows = to_host(given.mu[low:high])
            if self._geometry == "sphere":
                norms[low:high] = normalise(rows, out, first_row=low)
            else:
                np.copyto(out, rows, casting="unsafe")
                refuse_bad(out, first_row=low)
            yield out

    def close(self) -> None:
        """Give the memory back: every write has ended."""
        while self._held:
            self._pool.give(self._held.pop())

    def _put(self, array: npt.NDArray[Any]) -> None:
        data = array.reshape(-1).view(np.uint8).data
        self._write([data])
        self._hash.update(data)
        self._size += len(data)

    def _put_zeros(self, count: int) -> None:
        if count:
            self._put(np.zeros(count, np.uint8))


def _column(given: GivenRows, norms: Floats, name: str) -> npt.NDArray[Any]:
    """One column other than mu, as it is stored."""
    rows = given.rows
    if name == "norm":
        return norms
    if name == "kappa":
        return np.ascontiguousarray(np.broadcast_to(given.kappa, rows))
    if name == "alpha":
        return np.ascontiguousarray(np.broadcast_to(given.alpha, rows))
    if name == "min_cos":
        return np.ones(rows, np.float32)
    if name == "id":
        return np.arange(rows, dtype=np.uint64) if given.ids is None else given.ids
    if name == "label":
        assert given.labels is not None
        return given.labels
    return given.user[name]


def normalise(
    rows: npt.NDArray[Any],
    out: Floats,
    *,
    first_row: int = 0,
    what: str = "mu",
    safe: str = "Nothing was stored",
) -> Floats:
    """Write rows / |rows| to *out*; return the norms, float32.

    Raises InvalidValueError naming the first row that is zero or not finite; *what* and *safe* go
    into its message.
    """
    wide = rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    tiny, huge = np.finfo(np.float32).tiny ** 0.5, np.finfo(np.float32).max
    good = (norms >= tiny) & (norms <= huge)
    if not good.all():
        # Squares leave the range of floats long before the rows do.
        try:
            norms, wide = _careful_norms(rows, good)
        except _BadRow as bad:
            raise _bad_row(what, first_row + bad.row, bad.why, safe) from None
    np.divide(wide, norms[:, None], out=out, casting="unsafe")
    stored: Floats = norms.astype(np.float32)
    return stored


class _BadRow(Exception):
    def __init__(self, row: int, why: str) -> None:
        self.row, self.why = row, why


def _careful_norms(
    rows: npt.NDArray[Any], good: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    wide = rows.astype(np.float64)
    scale = np.abs(wide).max(axis=1, initial=0.0)
    for row in np.flatnonzero(~good).tolist():
        if not np.isfinite(wide[row]).all():
            raise _BadRow(row, "is not finite")
        if scale[row] == 0:
            raise _BadRow(row, "is zero and has no direction")
    norms = scale * np.sqrt(np.square(wide / scale[:, None]).sum(axis=1))
    limits = np.finfo(np.float32)
    outside = np.flatnonzero((norms > limits.max) | (norms < limits.tiny))
    if outside.size:
        raise _BadRow(int(outside[0]), "has a norm outside the range of float32")
    return norms, wide


def refuse_bad(stored: Floats, *, first_row: int = 0) -> None:
    """Raise InvalidValueError for a row of a Euclidean lake that float32 cannot hold."""
    good = np.isfinite(stored).all(axis=1)
    if not good.all():
        row = first_row + int(np.argmin(good))
        raise _bad_row("mu", row, "is not finite (as float32)", "Nothing was stored")


def _bad_row(what: str, row: int, why: str, safe: str) -> InvalidValueError:
    return InvalidValueError(
        f"row {row} of {what} {why}. {safe}; drop or mend such rows and try again."
    )
