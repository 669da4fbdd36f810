"""mldb as a contender, through its public names only."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.bench.peer import Peer, Purpose, RowReader, Store, abilities, as_torch
from tests.bench.workloads import Array, State


class Mldb(Store):
    """An mldb store: durability "os" for lazy puts, "commit" for everything else."""

    def __init__(
        self,
        folder: Path,
        purpose: Purpose,
        verify: Literal["first", "never"] = "first",
        commit_each: bool = True,
    ) -> None:
        mldb: Any = import_module("mldb")
        durability = "os" if purpose == "lazy" else "commit"
        self._commit_each = commit_each
        self.database = mldb.open(folder, durability=durability, verify=verify)

    def put_all(self, prepared: Any) -> None:
        self.database.checkpoint(prepared, epoch=self.database.epoch)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        if not self._commit_each:
            self.put_batch(dict(zip(names, values, strict=True)))
            return
        store = self.database.store_tensor
        for name, value in zip(names, values, strict=True):
            store(name, value)

    def put_batch(self, batch: State) -> None:
        with self.database.transaction() as transaction:
            store = transaction.store_tensor
            for name, value in batch.items():
                store(name, value)

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        with self.database.transaction(epoch=epoch) as transaction:
            for name, value in changed.items():
                transaction.store_tensor(name, value)

    def put_rows(self, name: str, matrix: Array) -> None:
        self.database.store_tensor(name, matrix)

    def get(self, name: str) -> Array:
        return np.asarray(self.database.query_tensor(name))

    def get_all(self) -> Iterator[Array]:
        return (self.get(name) for name in self.database)

    def get_as_of(self, name: str, epoch: int) -> Array:
        return np.asarray(self.database.query_tensor(name, as_of=epoch))

    def rows(self, name: str, row_values: int) -> RowReader:
        handle = self.database.tensor(name)

        def read(start: int, out: Array) -> None:
            np.copyto(out, handle[start : start + len(out)])

        return read

    def close(self) -> None:
        self.database.close()


MLDB = "mldb"
UNVERIFIED = "mldb, verify never"
ONE_TRANSACTION = "mldb, one transaction"

PEERS = (
    Peer(
        name=MLDB,
        open=Mldb,
        can=abilities("checkpoint", "load", "lazy", "batch", "commits", "as_of", "rows", "records"),
        prepare=as_torch,
        notes={
            "checkpoint": "checkpoint()",
            "load": "checksums verified at first touch",
            "lazy": "store_tensor, a commit each",
            "batch": "transaction()",
            "commits": "transaction(epoch=)",
            "as_of": "query_tensor(as_of=), checksums verified at first touch",
            "rows": "tensor()[a:b], checksums verified at first touch",
        },
    ),
    Peer(
        name=UNVERIFIED,
        open=lambda folder, purpose: Mldb(folder, purpose, verify="never"),
        can=abilities("load", "as_of", "rows"),
        reads=MLDB,
        notes={"load": "the same files", "as_of": "the same files", "rows": "the same files"},
    ),
    Peer(
        name=ONE_TRANSACTION,
        open=lambda folder, purpose: Mldb(folder, purpose, commit_each=False),
        can=abilities("lazy"),
        notes={"lazy": "transaction() around all puts"},
    ),
)
