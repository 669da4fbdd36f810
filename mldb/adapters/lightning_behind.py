"""Steps behind a training loop, taken one after another by one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

_THREAD: Final = "mldb-lightning"


class Behind:
    """Steps that one thread takes in order; those that wait behind one that fails are not taken.

    Any thread; its own ends with :meth:`stop`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._steps: list[Future[None]] = []
        self._failed: BaseException | None = None
        self._failures = 0

    def run(self, step: Callable[[], object]) -> None:
        """Have *step* taken after those before it, unless one of them fails."""
        failures = self._failures

        def take() -> None:
            # Counted, as the error may be raised to who trains while steps behind it still wait.
            if self._failures == failures:
                try:
                    step()
                except BaseException as error:  # noqa: BLE001 - raised to who trains
                    self._failures += 1
                    self._failed = error

        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix=_THREAD)
            self._steps = [taken for taken in self._steps if not taken.done()]
            self._steps.append(self._pool.submit(take))

    def raise_failed(self) -> None:
        """Raise what failed, once; does not wait."""
        error, self._failed = self._failed, None
        if error is not None:
            raise error

    def drain(self) -> None:
        """Wait for all steps, then :meth:`raise_failed`."""
        for step in self._steps:
            step.result()
        self.raise_failed()

    def stop(self) -> None:
        """End the thread, after the steps that it has."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
