"""Where a stream's rows come from: a lake fixed at a commit, in whatever process it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from copy import copy
from typing import Any

from mldb.errors import InvalidValueError, MissingError
from mldb.lake.host import Host
from mldb.lake.rows.live import Rows, rows_in
from mldb.log.index.address import Lsn
from mldb.log.readers import Hold
from mldb.tensors.scope import Scope


class LakeSource:
    """A lake at a commit, which travels: path, name and commit are pickled, handles are not.

    Any thread. In the process that made it, it reads through the open store and holds the commit
    for retention as long as it lives; in another one (a DataLoader worker, forked or spawned) it
    opens the store read-only when first asked.
    """

    def __init__(self, host: Host, rows: Rows, scope: Scope) -> None:
        info = rows.state.info
        self.path = host.path
        self.name = rows.name
        self.lsn = scope.commit.lsn
        self.lake_id = info.lake_id.hex()
        self.geometry = info.geometry
        self._reopen: Callable[..., Any] = host.reopen
        self._verify = scope.source.door.verify
        self._host: Host | None = host
        self._rows: Rows | None = rows
        self._snapshot: Any = None  # what another process opened
        self._pid = os.getpid()
        self._sent: dict[Hashable, Any] = {}  # what was computed of the rows where this comes from
        self._hold = Hold(rows.log.registration, self.lsn)

    def rows(self) -> Rows:
        """The rows, opened in this process if need be. Raises what opening a store raises."""
        if self._rows is None or self._pid != os.getpid():
            database = self._reopen(self.path, mode="r", verify=self._verify)
            self._snapshot = database.lake(self.name).at(Lsn(self.lsn))
            rows = self._snapshot.rows()
            if self._rows is not None:  # this process is forked: what is computed is here already
                rows.adopt(self._rows)
            rows.pinned.update(self._sent)
            self._rows = rows
            self._host, self._pid = None, os.getpid()
        return self._rows

    def moved_to(self, lsn: int) -> LakeSource:
        """The same lake at another commit. Raises InvalidValueError when it cannot be read."""
        if lsn == self.lsn:
            return self
        try:
            if self._host is None or self._pid != os.getpid():
                other = copy(self)
                other.lsn, other._host, other._rows, other._pid = lsn, None, None, -1
                other._sent = {}
                other.rows()
                return other
            scope = self._host.scope(Lsn(lsn))
            return LakeSource(self._host, rows_in(scope, self.name, self._host.known), scope)
        except MissingError as error:
            raise InvalidValueError(
                f"the state was saved at commit {lsn}, which cannot be read: {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; no handle travels.

        What was prepared of the rows goes along where no hint can bring it.
        """
        own = ("_host", "_rows", "_snapshot", "_hold")
        rows = self._rows
        sent = self._sent if rows is None else rows.pinned
        if rows is not None and rows.log.options.mode == "rw":
            sent = {what: value for what, value in sent.items() if isinstance(value, float)}
        return self.__dict__ | dict.fromkeys(own) | {"_pid": -1, "_sent": dict(sent)}
