"""Rows that come to lakes with a policy: when a handle asks whether a run is due by now.

Whether one is due is told exactly by the rows, and that takes milliseconds where there are a
million. So it is asked when this handle added a share of the rows that the policy waits for; other
handles count their own. A lake without a policy costs a look into a dictionary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mldb import keys
from mldb.errors import MldbError
from mldb.history.merged import unpack_policy
from mldb.names import check_name

if TYPE_CHECKING:
    from mldb.lake.host import Host

LOOKS_PER_RUN: Final = 4
"""It is asked when so large a part of a run's rows was added here: a fourth."""
POLICY_SECONDS: Final = 1.0
"""A policy that another process set is seen after so long."""
_NONE: Final = 0


class _Watched:
    """A lake of this handle: how many rows came, how many a run waits for (0: no policy)."""

    __slots__ = ("after_rows", "looked_at", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.after_rows = _NONE
        self.looked_at = float("-inf")


class PolicyWatch:
    """The lakes that one handle adds rows to. Any thread; a race costs a count of rows.

    *host* returns that of the handle, None when the handle is gone. *look_for* is told the name of
    a lake, and what tells whether a run is due; it starts a worker, or not.
    """

    def __init__(
        self,
        host: Callable[[], Host | None],
        look_for: Callable[[str, Callable[[], bool]], object],
    ) -> None:
        self._host = host
        self._look_for = look_for
        self._lakes: dict[str, _Watched] = {}
        self.asked = 0

    def note_rows(self, name: str, count: int | None) -> None:
        """Note that rows were added to a lake; None: its policy was set. Never raises."""
        lake = self._lakes.get(name)
        if lake is None:
            lake = self._lakes.setdefault(name, _Watched())
        now = time.monotonic()
        if count is None or now - lake.looked_at >= POLICY_SECONDS:
            lake.looked_at = now
            lake.after_rows = self._after_rows(name)
        if lake.after_rows == _NONE:
            lake.rows = 0
            return
        lake.rows += lake.after_rows if count is None else count
        if lake.rows * LOOKS_PER_RUN >= lake.after_rows:
            self._look_for(name, lambda: self.is_due(name))

    def _after_rows(self, name: str) -> int:
        """How many rows the stored policy waits for."""
        host = self._host()
        if host is None:
            return _NONE
        try:
            entry = host.scope(None).find(keys.POLICIES + check_name(name))
            found = None if entry is None else unpack_policy(entry.attr).get("after_rows")
        except (MldbError, ValueError, TypeError):
            return _NONE  # who reads the policy, or runs it, is told
        return found if isinstance(found, int) else _NONE

    def is_due(self, name: str) -> bool:
        """Ask the rows whether a run is due. Raises CorruptError, ClosedError."""
        from mldb.lake.consolidation.run import policy_due

        host, lake = self._host(), self._lakes.get(name)
        if host is None:
            return False
        self.asked += 1
        is_due = policy_due(host, name) is not None
        if lake is not None:
            # Behind a run it takes the rows of a whole one, since one that merges nothing stores
            # nothing, and would be due for ever.
            lake.rows = lake.after_rows // LOOKS_PER_RUN - lake.after_rows if is_due else 0
        return is_due

    def stats(self) -> dict[str, Any]:
        """How many lakes have a policy, how often their rows were asked, and what is tuned."""
        lakes = tuple(self._lakes.values())
        return {
            "lakes": sum(lake.after_rows != _NONE for lake in lakes),
            "asked": self.asked,
            "looks_per_run": LOOKS_PER_RUN,
            "policy_seconds": POLICY_SECONDS,
        }
