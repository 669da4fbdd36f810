"""Batches lent from a private mapping: rows in their order need no copy.

A mapping copies a page when it is written to and only then. Each pass maps anew, so what a training
step does to its batch is seen by no later pass, no other reader and no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.lake.rows.live import Rows


class Lender:
    """A private mapping of a lake's rows for one pass. One thread takes.

    A batch keeps the mapping of its block alive; the rest of it costs address space only.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._maps: dict[int, npt.NDArray[np.float32]] = {}
        self.lent_bytes = 0

    def take(self, rows: slice) -> Any:
        """Return mu of these rows as a writable array, or None when they lie in several blocks.

        Raises CorruptError.
        """
        place = self._rows.block_of(rows)
        if place is None:
            return None
        number, part = place
        block = self._rows.block(number)
        if not block.is_verified("mu"):
            block.verify("mu", part)
        whole = self._maps.get(number)
        if whole is None:
            whole = self._maps[number] = block.private_mu()
        found = whole[part]
        self.lent_bytes += found.nbytes
        return found
