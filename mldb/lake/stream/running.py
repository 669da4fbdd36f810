"""One iteration: a pass with its plan, how far it has come, and what makes its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from mldb.lake.order.passes import Pass
from mldb.lake.order.plan import BatchRows, Shard
from mldb.write.safe_points import noted, safe_point

_END: Final = object()


class Position(NamedTuple):
    """Where an iteration begins: pass, first batch over all ranks, how many were handed out since.

    ``drawn_by`` is that of the pass, where it began; see :class:`Pass`.
    """

    number: int
    start: int = 0
    done: int = 0
    drawn_by: str | None = None


class PassProgress:
    """How far an iteration has come. It outlives the iteration, which alone changes it."""

    def __init__(self, current: Pass, shard: Shard, *, start: int, done: int, even: bool) -> None:
        """For *start* and *done* see :class:`Position`."""
        self.current = current
        self.done = done
        self.is_over = False
        """All batches were handed out, and one more was asked for."""
        self.has_failed = False
        """The newest call raised an error. Leaving a pass is none, nor is Ctrl-C."""
        self._shard = shard
        self._start = start
        self._even = even

    @property
    def number(self) -> int:
        """The number of the pass."""
        return self.current.number

    @property
    def cursor(self) -> int:
        """The batch, over all ranks, at which this consumer goes on."""
        steps = self.done * self._shard.workers
        return self._shard.cursor_after(self._start, steps, len(self.current.plan))

    @property
    def length(self) -> int:
        """How many batches this iteration has in all, for its rank."""
        rank = Shard(rank=self._shard.rank, world=self._shard.world)
        return len(rank.deal(self._start, len(self.current.plan), even=self._even))

    def jobs(self) -> Iterator[BatchRows]:
        """Which rows make the batches from the cursor on."""
        return self.current.plan.read(self.cursor, self._shard, even=self._even)

    def position(self) -> Position:
        """Where the next batch is: after the last one of all ranks, at the start of the next pass.

        A worker does not know whether the others have come to the end, and stays where it is.
        """
        if self._shard.workers == 1 and (self.is_over or self._is_done_by_all()):
            return Position(self.number + 1)
        return Position(self.number, self._start, self.done, self.current.drawn_by)

    def _is_done_by_all(self) -> bool:
        left = len(self.current.plan) - self.cursor
        if self._even:
            left -= left % self._shard.world
        return left <= 0


LineMaker: TypeAlias = Callable[[PassProgress], Iterator[Any]]
"""Makes the batches of an iteration from where it is; what it returns may have a ``close``."""


class RunningPass(Iterator[Any]):
    """One iteration over what is left of a pass; independent of all others. One thread at a time.

    What makes its batches (thread, stream, workers) is its own, begins with the first batch that is
    asked for, and ends with the last one, with ``close``, with the object, and with any error. The
    position is left as it was by an error: the next call makes the batch that failed, anew.
    """

    def __init__(self, progress: PassProgress, line: LineMaker) -> None:
        self.progress = progress
        self._make_line = line
        self._line: Iterator[Any] | None = None
        self._is_closed = False

    def __next__(self) -> Any:
        line = self._line
        try:
            if line is None:
                line = self._begun()
            elif noted:
                safe_point()  # the step before is done, and counted
            batch = next(line, _END)
        except BaseException as error:
            self.progress.has_failed = isinstance(error, Exception)
            self._end_line()
            raise
        if batch is _END:
            self.progress.is_over = True
            self._end_line()
            raise StopIteration
        self.progress.done += 1  # with nothing before the return at which Python looks for signals
        return batch

    def _begun(self) -> Iterator[Any]:
        """What makes the batches from here on."""
        if self.progress.is_over or self._is_closed:
            return iter(())
        line = self._line = self._make_line(self.progress)
        self.progress.has_failed = False
        return line

    def close(self) -> None:
        """Leave the pass where it is; there are no more batches. Again does nothing."""
        self._is_closed = True
        self._end_line()

    def _end_line(self) -> None:
        line = self._line
        if line is not None:
            close = getattr(line, "close", None)
            if close is not None:
                close()
            self._line = None  # last: when Ctrl-C ends the closing, this object still has the line
