"""A process that commits until it is killed: ``python -m mldb.tools.selftest.writer STORE BYTES``.

It prints the number of each commit once that is acknowledged. After BYTES more bytes of the log it
dies in the middle of a write, as when the system kills it.
"""

from __future__ import annotations

import sys

import numpy as np

from mldb.database import MLDatabase
from mldb.tools.demo.disk import MeteredFileSystem

COMMITS = 10_000
"""So many at most; a writer that reaches it was not killed."""


def value_of(number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """What commit *number* stores as "w"."""
    return np.arange(200, dtype=np.int64) * number


def commit_until_killed(path: str, count: int) -> None:
    """Commit and tell of it, until *count* bytes have been written."""
    disk = MeteredFileSystem(path)
    with MLDatabase.on(disk, background_compaction=False) as db:
        disk.die_after(count)
        for number in range(1, COMMITS):
            with db.transaction(epoch=number) as txn:
                txn.store_tensor("w", value_of(number))
                txn.store_tensor("number", np.int64(number))
            print(number, flush=True)


if __name__ == "__main__":
    commit_until_killed(sys.argv[1], int(sys.argv[2]))
