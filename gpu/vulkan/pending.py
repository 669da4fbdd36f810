"""A batch on its way: which slots hold it, and when its result leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.errors import ClosedError, InvalidValueError, LimitError
from mldb.gpu import checks
from mldb.gpu.device import Chains
from mldb.gpu.vulkan.pipeline import ENDS
from mldb.gpu.vulkan.ring import Ring
from mldb.gpu.vulkan.slots import Slot
from mldb.gpu.vulkan.table import padded_dim

LOOPS_ENDED: Final = -2
"""What the shader reports where the driver ended its loops."""


@dataclass(slots=True, eq=False)
class Piece:
    """Rows ``first`` to ``end`` of a request in one slot, as one batch of the ring."""

    slot: Slot
    batch: int
    first: int
    end: int
    is_here: bool = True
    """Whether where its chains end is in memory that the host sees."""


class SlotRows(NamedTuple):
    """Where the rows [rows, dim] of a finished batch are: at *offset* in the memory of the ends.

    ``accepted``, i32 [rows], lies in the slot as well: what outlives it is a copy.
    """

    slot: Slot
    batch: int
    offset: int
    rows: int
    dim: int
    accepted: npt.NDArray[np.int32]


class VulkanPending:
    """A request under way. A single thread at a time, that of its device.

    With ``copy`` the result is the caller's own; it is taken out of a slot when it is asked for or
    when the slot is needed again, whichever is first. Otherwise the result is a view of the slot's
    memory, valid until ``slots`` further batches were started; asked for later, it is refused.
    """

    def __init__(self, ring: Ring, count: int, dim: int, *, copy: bool) -> None:
        self._ring, self._dim = ring, dim
        self._pieces: list[Piece] = []
        self._expired = ""
        self._cut_short = False
        self._squares: npt.NDArray[np.float32] | None = None
        self._chains: Chains | None = None
        # A row that is padded in the slot is not contiguous there.
        self.copies = copy or dim % 4 != 0
        if self.copies:
            x = np.empty((count, dim), np.float32)
            self._chains = Chains(x, np.empty(count, np.int32))

    def add(self, piece: Piece) -> None:
        """Take over a batch that was submitted."""
        self._pieces.append(piece)
        piece.slot.owner = self

    def release(self, slot: Slot, why: str = "") -> None:
        """Let go of a slot that is needed again: the ring calls this. Raises DeviceLostError."""
        for piece in [piece for piece in self._pieces if piece.slot is slot]:
            if self.copies:
                self._collect(piece)
            else:
                self._pieces.remove(piece)
                self._expired = why or "its slot was used again"

    def result(self) -> Chains:
        """Wait for the batch and return where its chains ended.

        Raises DeviceLostError, DeviceTimeoutError, InvalidValueError for rows that had not length
        1, and ClosedError when a view was asked for too late.
        """
        self._check_there()
        if self.copies:
            while self._pieces:
                self._collect(self._pieces[0])
        elif self._chains is None:
            piece = self._pieces[0]
            if not piece.is_here:
                self._ring.fetch(piece.slot, 4 * (piece.end - piece.first) * padded_dim(self._dim))
                piece.is_here = True
            self._chains = Chains(*self._finished(piece))
        self._check_rows()
        if self._chains is None:
            raise InvalidValueError("this batch has no rows")
        return self._chains

    def place(self) -> SlotRows:
        """Wait, and return where the rows are, for who reads them there.

        Raises what ``result`` does, and InvalidValueError for a batch that is copied out.
        """
        self._check_there()
        if self.copies:
            self.result()
            raise InvalidValueError(
                "this batch is copied out of its slot: open the device with copy=False and more "
                "batch_rows, and use dimensions that are multiples of 4"
            )
        piece = self._pieces[0]
        _, accepted = self._finished(piece)
        self._check_rows()
        offset = piece.slot.offsets[ENDS]
        return SlotRows(piece.slot, piece.batch, offset, len(accepted), self._dim, accepted)

    def _check_there(self) -> None:
        if self._expired:
            raise ClosedError(
                f"this result is gone: {self._expired}. Ask for a result before `slots` further "
                "batches are started, or open the device with copy=True"
            )

    def _check_rows(self) -> None:
        if self._cut_short:
            raise LimitError(
                f"{self._ring.context.info.label} ended the loops of a chain before their end, so "
                "its result is none; use fewer steps or neighbours, or device='torch'"
            )
        if self._squares is not None:
            checks.check_lengths(self._squares)

    def _collect(self, piece: Piece) -> None:
        """Copy a finished piece out of its slot, and let the slot go."""
        ends, accepted = self._finished(piece)
        chains = self._chains
        if chains is not None:
            np.copyto(chains.x[piece.first : piece.end], ends)
            np.copyto(chains.accepted[piece.first : piece.end], accepted)
        self._pieces.remove(piece)
        if piece.slot.owner is self:
            piece.slot.owner = None

    def _finished(self, piece: Piece) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Wait for a piece; return views of its ends and of what each row accepted."""
        self._ring.context.check()
        self._ring.wait(piece.batch)
        rows = piece.end - piece.first
        wide = padded_dim(self._dim)
        ends = piece.slot.ends[: rows * wide].reshape(rows, wide)[:, : self._dim]
        accepted = piece.slot.accepted[:rows]
        self._cut_short |= bool((accepted == LOOPS_ENDED).any())
        if self._squares is None and (accepted < 0).any():
            x = piece.slot.rows[: rows * wide].reshape(rows, wide)
            self._squares = np.einsum("bd,bd->b", x, x)
        return ends, accepted


def as_words(x: Any, blocks: int) -> npt.NDArray[np.uint32]:
    """Return what the shader wrote as noise words u32 [B, blocks, 4]."""
    words: npt.NDArray[np.uint32] = np.ascontiguousarray(x).view(np.uint32)
    return words.reshape(len(x), blocks, 4)
