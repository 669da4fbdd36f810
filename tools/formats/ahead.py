"""The next tensor of a file, read and hashed in a second thread while the one before is written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from mldb.log.aside import Aside
from mldb.tensors.codec import prepare_named

if TYPE_CHECKING:
    from mldb.tensors.codec import Prepared
    from mldb.tools.formats.tensors import IncomingTensor
    from mldb.write.duplicates import Looked
    from mldb.write.transaction import Transaction

    Look = Callable[[str, Prepared], Looked | None]

AHEAD_FROM: Final = 1 << 20
"""A tensor of fewer bytes is read when its turn comes: a thread would take as long as hashing."""
AHEAD_MAX: Final = 256 << 20
"""A larger one is not read ahead: what is not a view of the file would take twice its memory."""


def tensors_ahead(
    txn: Transaction, tensors: Sequence[tuple[str, IncomingTensor]]
) -> Generator[tuple[Prepared, Looked | None]]:
    """Yield each tensor, named as it will be stored, ready to be stored, in their order.

    At most one is read ahead, so that no more than that is in memory, and a file that is larger
    than memory is read once. Close the iterator before the transaction ends: that waits for what
    is under way.
    """
    look = txn._looker()
    ahead: Aside[tuple[Prepared, Looked | None]] | None = None
    try:
        for number, (name, tensor) in enumerate(tensors):
            ready = _read(look, name, tensor) if ahead is None else ahead.result()
            ahead = None
            if number + 1 < len(tensors):
                after = tensors[number + 1]
                if AHEAD_FROM <= after[1].nbytes <= AHEAD_MAX:
                    ahead = Aside(partial(_read, look, *after))
            yield ready
            del ready
    finally:
        if ahead is not None:
            with suppress(Exception):  # who closes this has an error of an earlier tensor
                ahead.result()


def _read(look: Look, name: str, tensor: IncomingTensor) -> tuple[Prepared, Looked | None]:
    prepared = prepare_named(name, tensor.read())
    return prepared, look(name, prepared)
