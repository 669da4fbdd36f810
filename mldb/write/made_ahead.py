"""Looking ahead in a second thread: what is about to be stored is compared and hashed there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from mldb.log.aside import Aside

_T = TypeVar("_T")


class MadeAhead(Generic[_T]):
    """Calls whose results are needed one after another, made ahead of that in a second thread.

    Made, asked and closed by one thread; :meth:`close` waits for the call that is under way. Who
    asks for a result that is not there makes calls as well, so that nobody waits while there is
    work. What a call raises is raised to who asks for its result.
    """

    def __init__(self, calls: Iterable[Callable[[], _T] | None]) -> None:
        self._calls = list(calls)
        # Each number is taken from here by one thread: a popleft is one step.
        self._left = deque(at for at, call in enumerate(self._calls) if call is not None)
        self._made: dict[int, tuple[_T | None, Exception | None]] = {}
        # One call is made by who needs it: a thread would only be waited for.
        self._aside = Aside(self._run) if len(self._left) > 1 else None

    def _run(self) -> None:
        while self._make_next():
            pass

    def _make_next(self) -> bool:
        """Make the next call that nobody makes yet; False when there is none."""
        try:
            number = self._left.popleft()
        except IndexError:
            return False
        call = self._calls[number]
        assert call is not None
        try:
            self._made[number] = call(), None
        except Exception as error:  # noqa: BLE001 - it is raised to who asks for the result
            self._made[number] = None, error
        return True

    def result(self, number: int) -> _T | None:
        """Return the result of this call, for numbers in rising order; None where there is none."""
        if self._calls[number] is None:
            return None
        while number not in self._made:
            if not self._make_next() and number not in self._made:
                assert self._aside is not None
                self._aside.result()  # it is in the last one
        found, error = self._made.pop(number)
        if error is not None:
            raise error
        return found

    def close(self) -> None:
        """Make no more calls; when this returns, none is under way."""
        self._left.clear()
        if self._aside is not None:
            self._aside.result()
