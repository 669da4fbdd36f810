"""The streams of one process: each running pass has one of its own, and gives it back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from torch.utils.data import get_worker_info

from mldb.gpu.select import check_spec
from mldb.lake.order.pass_order import Windowed
from mldb.lake.order.passes import Pass, Passes
from mldb.lake.order.plan import BatchRows
from mldb.lake.rows.live import Rows
from mldb.lake.rows.pieces import Pieces, Runs, Strata
from mldb.lake.rows.source import LakeSource
from mldb.lake.stream.batches import Stream, is_copied, is_ready, is_verified
from mldb.lake.stream.pace import Pace
from mldb.lake.stream.prefetch import prefetch
from mldb.lake.stream.scout import Scout
from mldb.lake.stream.settings import StreamOptions, check_heard_by_workers
from mldb.log.fs.machine import available_memory

_SCOUTED_BYTES: Final = 8 << 20  # smaller lakes are read sooner than a thread begins
_SHARE_MIN: Final = 4  # a shuffled pass over less than one of so many rows leaves most unread
_STRIDE_MAX: Final = 4  # ranks; of more, each reads too little of what lies around its rows
_IDLE_MAX: Final = 1  # streams without tiers that are kept
_PREFETCH: Final = 8  # batches that a thread makes ahead where nothing was said


class Streams:
    """The streams over a lake. Any thread; no lock, for finalizers give back what they find.

    The tiers are those of one stream, so their budgets hold however many passes run: who comes
    while another one has it reads from the segments. A stream that was left in the middle of a
    batch, by an error or by Ctrl-C, is not used again.
    """

    def __init__(self, rows: Rows, geometry: str, options: StreamOptions) -> None:
        self._made_of = (rows, geometry)
        self._options = options
        has_tiers = options.warm_bytes or options.hot_bytes
        self._bare = replace(options, warm_bytes=0, hot_bytes=0) if has_tiers else options
        self._idle: tuple[list[Stream], list[Stream]] = ([], [])  # with tiers, without
        self._holder: weakref.ref[Lease] | None = None  # who has the one with tiers
        self._shown: Stream | None = None

    @property
    def drives_vulkan(self) -> bool:
        """Whether batches may be made by a Vulkan device.

        Then a thread makes them, though none ahead: Ctrl-C between a call of the driver and what
        is noted of it would leave work that nobody waits for, in memory that is freed.
        """
        if self._options.augmentation is None or get_worker_info() is not None:
            return False  # a worker ends with Ctrl-C
        return check_spec(self._options.device)[0] in ("vulkan", "auto")

    def make(self, current: Pass, number: int) -> Any:
        """Make one batch of a pass, whatever else is made meanwhile. Raises InvalidValueError."""
        batch = current.plan.batch(number)
        made = prefetch(self._one(current, batch), 1 if self.drives_vulkan else 0)
        try:
            return next(made)
        finally:
            made.close()

    def _one(self, current: Pass, batch: BatchRows) -> Iterator[Any]:
        with Lease(self, tiers=False) as stream:
            made = stream.make(current, batch)
        yield made

    def provenance(self, current: Pass, number: int) -> dict[str, Any]:
        """Where every row of a batch of a pass comes from. Raises InvalidValueError."""
        batch = current.plan.batch(number)
        with Lease(self, tiers=False) as stream:
            return stream.provenance(current, batch)

    def flow(self, current: Pass, batches: Iterable[BatchRows]) -> Iterator[Any]:
        """Make batches of a pass in order. Takes a stream for the first, and gives it back."""
        with Lease(self, tiers=True) as stream:
            self._shown = stream
            yield from stream.flow(current, batches)

    def stats(self) -> dict[str, Any]:
        """Figures of the stream that made batches of a pass last."""
        if self._shown is None:
            with Lease(self, tiers=True) as stream:
                self._shown = stream
        return self._shown.stats()

    def take(self, lease: Lease, *, tiers: bool) -> Stream:
        """Return a stream that nobody else uses. Raises what making one raises."""
        tiers = tiers and self._is_free_for(lease)
        idle = self._idle[not tiers]
        try:
            return idle.pop()
        except IndexError:
            return Stream(*self._made_of, self._options if tiers else self._bare)

    def _is_free_for(self, lease: Lease) -> bool:
        """Give *lease* the place of the one that has the tiers; False where another one has it."""
        holder = None if self._holder is None else self._holder()
        if holder is not None and not holder.has_ended:
            return False
        self._holder = weakref.ref(lease)
        return True

    def give_back(self, lease: Lease, stream: Stream) -> None:
        """Keep a stream for the next one who asks."""
        has_tiers = self._holder is not None and self._holder() is lease
        idle = self._idle[not has_tiers]
        if len(idle) < _IDLE_MAX:
            stream.rest()
            idle.append(stream)
        else:
            stream.close()


class Lease:
    """The use of one stream: a context manager. It is given back between two batches only."""

    __slots__ = ("__weakref__", "_streams", "_tiers", "has_ended", "stream")

    def __init__(self, streams: Streams, *, tiers: bool) -> None:
        self._streams = streams
        self._tiers = tiers
        self.has_ended = False
        self.stream: Stream | None = None

    def __enter__(self) -> Stream:
        self.stream = self._streams.take(self, tiers=self._tiers)
        return self.stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stream, self.stream = self.stream, None
        assert stream is not None
        if error is None or isinstance(error, GeneratorExit):
            self._streams.give_back(self, stream)
        else:
            stream.close()
        self.has_ended = True


class OpenedLake:
    """What one process opened to read a lake: its passes, and the streams that make batches.

    Passes share it, and nothing that is written to, so that each goes its own way. As long as one
    of them runs the commit is held for retention, whatever became of the loader.
    """

    def __init__(self, source: LakeSource, options: StreamOptions) -> None:
        """Raises what opening a store raises."""
        self.pid = os.getpid()
        rows = self._rows = source.rows()
        self.passes = Passes(rows, options)
        self.streams = Streams(rows, source.geometry, options)
        self._source = source  # which holds the commit
        self._options = options

    def line(self, current: Pass, batches: Iterable[BatchRows]) -> Iterator[Any]:
        """Make batches of a pass, by a thread where that is of use. Nothing happens yet.

        With a *prefetch* of 1 the thread makes a batch when it is asked for, and none before. Who
        asks makes the first one, unless a Vulkan device may have a part in it; and where nothing
        was said, and rows are only copied, those behind it until its steps take long enough for a
        thread to be of use. In a worker there is a thread where *prefetch* was given: the
        DataLoader asks ahead anyway. Raises InvalidValueError in a worker for options that none
        hears.
        """
        is_alone, depth = get_worker_info() is None, self._options.prefetch
        if not is_alone:
            check_heard_by_workers(self._options)
        if depth is None:
            depth = _PREFETCH if is_alone else 0
        scout = self._scout(current) if is_alone and depth else None
        if scout is not None:
            batches = scout.watching(batches)
        flow = self.streams.flow(current, batches)
        if scout is not None:
            flow = scout.around(flow)
        if is_ready(self._rows, self._options, current, prepared=scout is not None):
            return prefetch(flow, 0)
        by_thread_alone = self.streams.drives_vulkan
        pace = None
        if self._options.prefetch is None and is_copied(self._rows, self._options):
            pace = Pace()
        here = not by_thread_alone
        return prefetch(flow, depth or int(by_thread_alone), first_here=here, pace=pace)

    def _scout(self, current: Pass) -> Scout | None:
        """What goes ahead of a pass; None where there is nothing to prepare, or no use in it."""
        rows, order = self._rows, current.plan.order
        size = 4 * rows.dim * len(rows)
        fits = size <= available_memory() // 2
        if size < _SCOUTED_BYTES or (fits and is_verified(rows)):
            return None
        pieces: Pieces
        stride = _STRIDE_MAX
        if current.is_in_row_order:
            pieces, stride = Runs(rows), 1
        elif isinstance(order, Windowed):
            pieces = Strata(rows, order)
        elif fits and _SHARE_MIN * order.length >= len(rows):
            pieces = Runs(rows, whole=True)
        else:
            return None  # what was brought in would go again before it is read
        return Scout(pieces, current.plan.batch_size, stride)
