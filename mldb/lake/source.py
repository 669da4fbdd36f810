"""Where a stream's rows come from: a lake fixed at a commit, in whatever process it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mldb.errors import InvalidValueError, MissingError
from mldb.lake.host import Host
from mldb.lake.rows import Rows
from mldb.lake.surface import LakeSnapshot
from mldb.log.address import Lsn


class LakeSource:
    """A lake at a commit, which travels: path, name and commit are pickled, handles are not.

    Any thread. In the process that made it, it reads through the open store and holds the commit
    for retention; in another one (a DataLoader worker, forked or spawned) it opens the store
    read-only when first asked.
    """

    def __init__(self, host: Host, name: str, snapshot: LakeSnapshot) -> None:
        self.path = host.path
        self.name = name
        self.lsn = int(snapshot.lsn)
        rows = snapshot.rows()
        self.lake_id = rows.state.info.lake_id.hex()
        self.dim = rows.dim
        self.geometry = rows.state.info.geometry
        self.count = len(rows)
        self._reopen: Callable[..., Any] = host.reopen
        self._verify = host.verify
        self._host: Host | None = host
        self._snapshot: LakeSnapshot | None = snapshot
        self._rows: Rows | None = rows
        self._database: Any = None
        self._pid = os.getpid()

    def rows(self) -> Rows:
        """The rows, opened in this process if need be. Raises what opening a store raises."""
        if self._rows is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._host = None
            # A forked child must not run the parent's clean-up, so these are replaced, not closed.
            self._database = self._reopen(self.path, mode="r", verify=self._verify)
            self._snapshot = self._database.lake(self.name).at(Lsn(self.lsn))
            self._rows = self._snapshot.rows()
        return self._rows

    def moved_to(self, lsn: int) -> LakeSource:
        """The same lake at another commit. Raises InvalidValueError where only workers may read."""
        if lsn == self.lsn:
            return self
        if self._host is None:
            raise InvalidValueError(
                f"this stream reads commit {self.lsn} of lake {self.name!r}, the state was saved "
                f"at commit {lsn}: load the state before the workers start"
            )
        try:
            scope = self._host.scope(Lsn(lsn))
            snapshot = LakeSnapshot(self._host, self.name, scope)
        except MissingError as error:
            raise InvalidValueError(
                f"the state was saved at commit {lsn}, which cannot be read: {error}"
            ) from error
        return LakeSource(self._host, self.name, snapshot)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; no handle travels."""
        empty = {"_host": None, "_snapshot": None, "_rows": None, "_database": None, "_pid": -1}
        return self.__dict__ | empty
