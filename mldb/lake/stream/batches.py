"""One process's stream over a lake: from the number of a batch to its tensors.

A batch is a pure function of (rows at a commit, options, pass, number). It is gathered as a whole
into reused memory, augmented on the device, and handed out as torch tensors that belong to whoever
holds them.
"""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import get_worker_info

from mldb.arrays import Numbers
from mldb.errors import UsageError
from mldb.gpu.select import check_spec
from mldb.lake.augment.augmenter import Augmenter
from mldb.lake.order.passes import Pass
from mldb.lake.order.plan import BatchRows
from mldb.lake.rows.block import Selection
from mldb.lake.rows.lent import Lender
from mldb.lake.rows.live import Rows
from mldb.lake.rows.tiers import Segments, Tier, hot_tier, slots_of, warm_tier
from mldb.lake.rows.windows import Windows
from mldb.lake.stream.pool import BatchPool
from mldb.lake.stream.settings import StreamOptions
from mldb.noise.philox import LAYOUT_VERSION

_USER: Final = 0
_READY_BLOCKS: Final = 64  # that are looked at before a pass, to see whether a thread is of use


class Stream:
    """Makes the batches of a lake in one process. One user at a time; never pickled.

    Tensors it returns belong to who holds them: their memory is used again once they are dropped.
    A second user is refused, for they would fill each other's buffers and slots of the device. One
    that failed in the middle of a batch, whatever the reason, makes no more.
    """

    def __init__(self, rows: Rows, geometry: str, options: StreamOptions) -> None:
        self.options = options
        self._rows = rows
        self._segments = Segments(rows)
        self._warm: Tier | None = warm_tier(rows, options.warm_bytes or 0, self._segments.gather)
        self._gather = self._segments.gather if self._warm is None else self._warm.gather
        self._torch_device = output_device(options)
        self._hot: Tier | None = None
        if self._torch_device is not None and options.hot_bytes:
            self._hot = hot_tier(rows, options.hot_bytes, self._gather, self._torch_device)
        self._lender: Lender | None = None  # of the newest pass
        self._windows = Windows(rows.log.fs.is_unwritten)  # that its passes have left
        self._current: Pass | None = None
        self._users: dict[int, object] = {}  # at _USER the one there may be
        self._batches = 0
        most = len(rows) if options.draws is None else options.draws
        source_rows = min(options.source_rows, most)
        self._pool = BatchPool((source_rows * options.group, rows.dim))
        self._source_pool = self._pool
        self._augmenter: Augmenter | None = None
        if options.augmentation is not None:
            self._source_pool = BatchPool((source_rows, rows.dim))
            self._augmenter = Augmenter(
                rows,
                geometry,
                options.augmentation,
                seed=options.noise_seed(rows.state.info.lake_id),
                device=options.device,
                user=rows.states,
            )
        self._type = None if options.fields is None else batch_type(options.fields)

    # --- batches ----------------------------------------------------------------------------------

    def flow(self, current: Pass, batches: Iterable[BatchRows]) -> Iterator[Any]:
        """Make batches of a pass in order; the device works on the next while one is handed out.

        Rows in their order are lent from a mapping of this pass, where that is possible. Raises
        UsageError where the stream has a user.
        """
        self._enter()
        self._current = current
        tiers, runs = (self._warm, self._hot, self._torch_device), current.is_in_row_order
        lends = runs and all(tier is None for tier in tiers)
        lender = self._lender = Lender(self._rows, self._windows) if lends else None
        try:
            if self._augmenter is not None:
                yield from self._augmented(self._augmenter, current, batches)
            else:
                for batch in batches:
                    # No name here: a batch that is held between two cannot be filled again.
                    yield self._handed_out(batch, self._read(batch, runs, lender), None)
        except GeneratorExit:  # between two batches
            self._leave(lender)
            raise
        self._leave(lender)

    def _leave(self, lender: Lender | None) -> None:
        """End a pass between two batches."""
        if lender is not None:
            lender.close()
        self._users.clear()

    def _augmented(
        self, augmenter: Augmenter, current: Pass, batches: Iterable[BatchRows]
    ) -> Iterator[Any]:
        started: deque[Callable[[], Any]] = deque()
        ahead = 0  # grows to what the device takes: the first batch waits for no other
        for batch in batches:
            started.append(self._start(augmenter, current, batch, self._lender))
            if len(started) > ahead:
                yield started.popleft()()
                ahead = min(ahead + 1, augmenter.ahead)
        while started:
            yield started.popleft()()

    def make(self, current: Pass, batch: BatchRows) -> Any:
        """Return one batch of a pass: a tensor [B, dim], or a named tuple of the fields asked for.

        Raises UsageError where the stream has a user.
        """
        self._enter()
        if self._augmenter is None:
            made = self._handed_out(batch, self._read(batch, current.is_in_row_order), None)
        else:
            made = self._start(self._augmenter, current, batch)()
        self._users.clear()
        return made

    def _enter(self) -> None:
        """Take the place of the one user; it stays taken where an error ends the use."""
        user = object()
        if self._users.setdefault(_USER, user) is not user:
            raise UsageError("this stream makes the batches of another pass; take one of your own")

    def rest(self) -> None:
        """Give back what only batches need, their device above all; the next one takes it again."""
        if self._augmenter is not None:
            self._augmenter.rest()

    def close(self) -> None:
        """Give back the device and the memory of the tiers; nothing can be made any more."""
        self._users[_USER] = self
        if self._augmenter is not None:
            self._augmenter.close()
        self._warm = self._hot = None
        self._windows.forget()

    def _start(
        self,
        augmenter: Augmenter,
        current: Pass,
        batch: BatchRows,
        lender: Lender | None = None,
    ) -> Callable[[], Any]:
        """Read a batch and start to augment it; what is returned hands it out."""
        x = self._read(batch, current.is_in_row_order, lender)
        out = self._pool.take()[: self._size(batch)]
        counted = batch.occurrences
        if counted is None:  # a pass has the row once, so its id names its noise
            counted = self._rows.gather("id", batch.rows)
        finish = augmenter.start(x, batch.rows, counted, current.number, out=out)
        return lambda: self._handed_out(batch, *finish())

    def _handed_out(self, batch: BatchRows, rows: Any, changed: Any) -> Any:
        mu = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        if self._type is None:
            return mu
        return tuple.__new__(
            self._type,
            [
                mu if name == "mu" else self._field(name, batch, mu, changed)
                for name in self._type._fields
            ],
        )

    def _size(self, batch: BatchRows) -> int:
        return len(batch.rows) * self.options.group

    def _read(self, batch: BatchRows, is_run: bool, lender: Lender | None = None) -> Any:
        """Rows of mu: a tensor of the device, or an array: one of reused memory, or lent."""
        self._batches += 1
        rows: Selection = batch.rows
        count = len(batch.rows)
        if is_run:
            start = int(batch.rows[0])
            rows = slice(start, start + count)
            lent = None if lender is None else lender.take(rows)
            if lent is not None:
                return lent
        if self._hot is not None:
            on_device = torch.empty((count, self._rows.dim), device=self._torch_device)
            self._hot.gather(rows, on_device)
            return on_device
        x = self._source_pool.take()
        if count != len(x):
            x = x[:count]
        self._gather(rows, x)
        if self._torch_device is None or self._augmenter is not None:
            return x
        return torch.from_numpy(x).to(self._torch_device)

    def _field(self, name: str, batch: BatchRows, mu: torch.Tensor, changed: Any) -> torch.Tensor:
        """A field other than mu."""
        if name == "augmentation":
            column: Any = self._numbers(len(batch.rows))
        elif name == "changed":
            column = np.zeros(self._size(batch), np.bool_) if changed is None else changed
        else:
            column = self._column(name, batch)
            if self._augmenter is not None:
                column = np.repeat(column, self.options.group, axis=0)
        field = torch.from_numpy(column)
        return field if mu.is_cpu else field.to(mu.device)

    def _column(self, name: str, batch: BatchRows) -> Any:
        """A field of the rows that a batch takes from the lake, an array of its own."""
        if name == "weight":
            weights = np.ones(len(batch.rows)) if batch.weights is None else batch.weights
            return weights.astype(np.float32)
        if name == "lsn":
            return self._rows.lsns(batch.rows)
        return self._rows.gather(name, batch.rows)

    def _numbers(self, count: int) -> Numbers:
        """The augmentation number of every row of a batch of *count* source rows; 0 is none."""
        chosen = self.options.augmentation
        if chosen is None:
            return np.zeros(count, np.int64)
        one = np.arange(0 if chosen.keep else 1, chosen.copies + 1)
        return np.tile(one, count)

    # --- what is known ----------------------------------------------------------------------------

    def provenance(self, current: Pass, batch: BatchRows) -> dict[str, Any]:
        """Where every row of a batch of a pass comes from."""
        chosen, group, drawn = self.options.augmentation, self.options.group, batch.occurrences
        return {
            "id": np.repeat(self._rows.gather("id", batch.rows), group),
            "lsn": np.repeat(self._rows.lsns(batch.rows), group),
            "augmentation": self._numbers(len(batch.rows)),
            "occurrence": None if drawn is None else np.repeat(drawn, group),
            "lake": self._rows.state.info.lake_id.hex(),
            "seed": self.options.seed,
            "pass": current.number,
            "step": 0,
            "layout": LAYOUT_VERSION,
            "mode": None if chosen is None else chosen.mode,
            "form": None if chosen is None else chosen.form,
        }

    def stats(self) -> dict[str, Any]:
        """Figures of this process."""
        warm, hot, augmenter = self._warm, self._hot, self._augmenter
        drawn = self.options.importance
        return {
            "rows": len(self._rows),
            "batches": self._batches,
            "pass": None if self._current is None else self._current.number,
            "order": self.options.order if drawn is None else f"importance, {drawn.replacement}",
            "device": None if augmenter is None else augmenter.device_name,
            "cold": {
                "moved_bytes": self._segments.moved_bytes,
                "lent_bytes": 0 if self._lender is None else self._lender.lent_bytes,
            },
            "warm": None if warm is None else asdict(warm.stats),
            "hot": None if hot is None else asdict(hot.stats),
            "buffers": self._pool.made,
            "augmented": None if augmenter is None else augmenter.stats(),
        }


def is_ready(rows: Rows, options: StreamOptions, current: Pass, *, prepared: bool = False) -> bool:
    """Whether batches of a pass cost nothing to make, so that no thread need work ahead.

    They are views of the mapped segments then: rows in order, read by the host, and verified, or
    *prepared* before they are read.
    """
    if not current.is_in_row_order or rows.blocks > _READY_BLOCKS:
        return False
    if not _are_plain(rows, options):
        return False
    return prepared or is_verified(rows)


def is_verified(rows: Rows) -> bool:
    """Whether all rows of mu are known to be verified: of a lake of few blocks."""
    if rows.blocks > _READY_BLOCKS:
        return False
    return all(rows.block(number).is_verified("mu") for number in range(rows.blocks))


def is_copied(rows: Rows, options: StreamOptions) -> bool:
    """Whether batches are copies of rows that are verified, and nothing else."""
    return rows.is_verified("mu") and _are_plain(rows, options)


def _are_plain(rows: Rows, options: StreamOptions) -> bool:
    """Whether nothing is computed of rows, or kept of them, on the way to the host."""
    if options.augmentation is not None or output_device(options) is not None:
        return False
    return not slots_of(rows, options.warm_bytes or 0)


def output_device(options: StreamOptions) -> Any:
    """The torch device that batches end on; None is the host.

    CUDA when it was named, or is there and "auto" was said. A hot tier may be asked for on the
    CPU as well, where it is RAM: the same code without the device.
    """
    name, _ = check_spec(options.device)
    if get_worker_info() is not None:
        return None  # a worker sends its batches through shared memory
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device(options.device if name == "cuda" else "cuda")
    return torch.device("cpu") if options.hot_bytes and name in ("torch", "cpu") else None


@cache
def batch_type(fields: tuple[str, ...]) -> Any:
    """The named tuple of these fields. It is pickled by its fields, so workers can send it."""
    base = namedtuple("SplatBatch", fields)  # type: ignore[misc]

    def reduce(self: Any) -> Any:
        return _rebuild, (fields, tuple(self))

    return type("SplatBatch", (base,), {"__slots__": (), "__reduce__": reduce})


def _rebuild(fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return batch_type(fields)(*values)
