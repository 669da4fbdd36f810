"""Lakes that wait for a worker: rows came to them, and it is still to be asked what is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias

ASK_SECONDS: Final = 1.0
"""Where no worker may start just now, it is asked again after so long."""

IsDue: TypeAlias = "Callable[[], bool]"
"""Whether a run of a lake is due. It may take milliseconds, and raise what reading raises."""


class WaitingLakes:
    """Those of one handle, by name. Any thread; each change is a single step.

    It must not keep the handle alive, nor may the *is_due* that it is given.
    """

    def __init__(self) -> None:
        self._lakes: dict[str, IsDue] = {}
        self._ask_at = 0.0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._lakes)

    def add(self, lake: str, is_due: IsDue) -> None:
        """Let a lake wait; once, however often it is told."""
        self._lakes[lake] = is_due

    def may_ask(self, not_before: float) -> bool:
        """Whether any waits, and it is late enough by the monotonic clock to ask."""
        return bool(self._lakes) and time.monotonic() >= max(not_before, self._ask_at)

    def note_refusal(self) -> None:
        """No worker may start now; the next look comes later."""
        self._ask_at = time.monotonic() + ASK_SECONDS

    def take_due(self) -> bool:
        """Ask one lake after another; whether a run of any is due. Those that were asked are out.

        Where one is due all are out: a worker looks at every lake. Raises what *is_due* raises.
        """
        for lake in tuple(self._lakes):
            is_due = self._lakes.pop(lake, None)
            if is_due is not None and is_due():
                self._lakes.clear()
                return True
        return False
