"""One process's stream over a lake: from the number of a batch to its tensors.

A batch is a pure function of (rows at a commit, options, pass, number). It is gathered as a whole
into reused memory, augmented on the device, and handed out as torch tensors that belong to whoever
holds them.
"""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import get_worker_info

from mldb.errors import InvalidValueError, MissingError
from mldb.gpu.philox import LAYOUT_VERSION
from mldb.gpu.select import check_spec
from mldb.lake.augment import Augmenter
from mldb.lake.block import Numbers, Selection
from mldb.lake.lent import Lender
from mldb.lake.order import STRATUM_ROWS, Order, Sampler, Sequential, plain_order, prepare_sampler
from mldb.lake.plan import Batch, Plan
from mldb.lake.pool import BatchPool
from mldb.lake.rows import Rows
from mldb.lake.settings import PROVENANCE, StreamOptions
from mldb.lake.tiers import Tier, hot_tier, warm_tier
from mldb.lake.weights import Importance, chances
from mldb.log.os_memory import available_memory

_SCATTERED_BLOCKS: Final = 4  # a lake in more blocks is gathered faster from RAM of its own
_WARM_MAX: Final = 1 << 30


class Stream:
    """Makes the batches of a lake in one process. One thread at a time; never pickled.

    Tensors it returns belong to who holds them: their memory is used again once they are dropped.
    """

    def __init__(self, rows: Rows, geometry: str, options: StreamOptions) -> None:
        self.options = options
        self.plan = Plan(order=Sequential(0), batch_size=1)
        self._rows = rows
        self._pass = -1
        self._sampler: Sampler | None = None
        self._warm: Tier | None = warm_tier(rows, _warm_bytes(rows, options))
        self._torch_device = output_device(options)
        self._hot: Tier | None = None
        if self._torch_device is not None and options.hot_bytes:
            self._hot = hot_tier(rows, options.hot_bytes, self._gather, self._torch_device)
        self._cold_bytes = 0
        self._lender: Lender | None = None  # of the newest pass
        self._batches = 0
        self._pool = BatchPool((options.batch_size, rows.dim))
        self._source_pool = self._pool
        self._augmenter: Augmenter | None = None
        if options.augmentation is not None:
            self._source_pool = BatchPool((options.source_rows, rows.dim))
            self._augmenter = Augmenter(
                rows, geometry, options.augmentation, seed=options.seed, device=options.device
            )
        self._type = None if options.fields is None else batch_type(options.fields)

    @staticmethod
    def check(rows: Rows, options: StreamOptions) -> None:
        """Refuse options that this lake cannot serve. Raises InvalidValueError, MissingError."""
        if not len(rows):
            raise InvalidValueError(
                f"lake {rows.name!r} has no rows at commit {rows.lsn}; add some before streaming"
            )
        if options.drop_last and options.source_rows > len(rows):
            raise InvalidValueError(
                f"a batch takes {options.source_rows} rows and the lake has {len(rows)}: with "
                "drop_last there is no batch at all. Lower batch_size, or drop_last=False."
            )
        have = rows.columns
        if isinstance(options.salience, str):
            rows.require_column(options.salience)
        for name in options.fields or ():
            if name not in have and name not in ("weight", *PROVENANCE):
                raise MissingError(
                    f"lake {rows.name!r} has no column {name!r} in every block; fields are weight, "
                    f"{', '.join(PROVENANCE)} and {', '.join(sorted(have))}"
                )

    # --- passes -----------------------------------------------------------------------------------

    def begin(self, pass_number: int) -> Plan:
        """Plan a pass; the batches made from now on are its own."""
        if pass_number != self._pass:
            order = self._order(pass_number)
            self.plan = Plan(
                order=order,
                batch_size=self.options.source_rows,
                drop_last=self.options.drop_last,
            )
            self._pass = pass_number
        return self.plan

    def _order(self, pass_number: int) -> Order:
        options, rows = self.options, self._rows
        importance = options.importance
        if importance is None:
            return order_of(rows, options, pass_number)
        if self._sampler is None or callable(options.salience):
            self._sampler = self._prepare(importance)
        return self._sampler.order(
            seed=options.seed, pass_number=pass_number, length=options.draws or len(rows)
        )

    def _prepare(self, importance: Importance) -> Sampler:
        """The sampler of all rows; kept with them, unless a function of the user decides."""
        rows, salience = self._rows, self.options.salience
        key = ("sampler", importance, None if callable(salience) else salience)
        known = rows.derived.get(key)
        if known is not None and not callable(salience):
            return known  # type: ignore[no-any-return]
        every = slice(0, len(rows))
        values: Any = salience
        if isinstance(salience, str):
            values = rows.gather(salience, every)
        elif callable(salience):
            values = salience(rows.ids())
        found = chances(importance, rows.gather("alpha", every), values)
        sampler = rows.derived[key] = prepare_sampler(importance, found, ids=rows.ids())
        return sampler

    # --- batches ----------------------------------------------------------------------------------

    def flow(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Make batches in order; the device works on the next ones while one is handed out.

        Rows in their order are lent from a mapping of this pass, where that is possible.
        """
        started: deque[Callable[[], Any]] = deque()
        ahead = 0  # grows to what the device takes: the first batch waits for no other
        self._lender = Lender(self._rows) if self.is_lending() else None
        for batch in batches:
            started.append(self._start(batch, self._lender))
            if len(started) > ahead:
                yield started.popleft()()
                ahead = 0 if self._augmenter is None else min(ahead + 1, self._augmenter.ahead)
        while started:
            yield started.popleft()()

    def is_lending(self) -> bool:
        """Whether batches are views of the mapped segments: rows in order, read by the host."""
        tiers = (self._warm, self._hot, self._torch_device)
        return isinstance(self.plan.order, Sequential) and all(tier is None for tier in tiers)

    def is_ready(self) -> bool:
        """Whether batches cost nothing to make, so that no thread need work ahead."""
        blocks = self._rows.blocks
        lends = self.is_lending() and self._augmenter is None
        return lends and all(block.is_verified("mu") for block in blocks)

    def make(self, batch: Batch) -> Any:
        """Return a tensor [B, dim], or a named tuple of the fields asked for."""
        return self._start(batch)()

    def _start(self, batch: Batch, lender: Lender | None = None) -> Callable[[], Any]:
        """Read a batch and start to augment it; what is returned hands it out."""
        self._batches += 1
        rows: Selection = batch.rows
        if isinstance(self.plan.order, Sequential):
            rows = slice(int(batch.rows[0]), int(batch.rows[-1]) + 1)
        x = lender.take(rows) if lender is not None and isinstance(rows, slice) else None
        if x is None:
            x = self._read(rows, len(batch.rows))
        if self._augmenter is None:
            return lambda: self._handed_out(batch, x, None)
        out = self._pool.take()[: self._size(batch)]
        ids = self._rows.gather("id", batch.rows)
        finish = self._augmenter.start(x, batch.rows, ids, self._pass, out=out)
        return lambda: self._handed_out(batch, *finish())

    def _handed_out(self, batch: Batch, rows: Any, changed: Any) -> Any:
        mu = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        if self._type is None:
            return mu
        return self._type(*(self._field(name, batch, mu, changed) for name in self._type._fields))

    def _size(self, batch: Batch) -> int:
        group = 1 if self.options.augmentation is None else self.options.augmentation.group
        return len(batch.rows) * group

    def _read(self, rows: Selection, count: int) -> Any:
        """Rows of mu: a tensor of the device out of the hot tier, or an array of reused memory."""
        if self._hot is not None:
            on_device = torch.empty((count, self._rows.dim), device=self._torch_device)
            self._hot.gather(rows, on_device)
            return on_device
        x = self._source_pool.take()[:count]
        self._gather(rows, x)
        if self._torch_device is None or self._augmenter is not None:
            return x
        return torch.from_numpy(x).to(self._torch_device)

    def _gather(self, rows: Selection, out: Any) -> None:
        if self._warm is None:
            self._rows.gather("mu", rows, out)
            self._cold_bytes += out.nbytes
        else:
            self._warm.gather(rows, out)

    def _field(self, name: str, batch: Batch, mu: torch.Tensor, changed: Any) -> torch.Tensor:
        group = self._size(batch) // max(1, len(batch.rows))
        if name == "mu":
            return mu
        if name == "augmentation":
            return torch.from_numpy(self._numbers(len(batch.rows)))
        if name == "changed":
            full = np.zeros(self._size(batch), np.bool_) if changed is None else changed
            return torch.from_numpy(full)
        if name == "weight":
            weights = batch.weights
            values = np.ones(len(batch.rows)) if weights is None else weights
            column: Any = values.astype(np.float32)
        elif name == "lsn":
            column = self._rows.lsns(batch.rows)
        else:
            column = self._rows.gather(name, batch.rows)
        tensor = torch.from_numpy(np.repeat(column, group, axis=0) if group > 1 else column)
        return tensor.to(mu.device)

    def _numbers(self, count: int) -> Numbers:
        """The augmentation number of every row of a batch of *count* source rows; 0 is none."""
        chosen = self.options.augmentation
        if chosen is None:
            return np.zeros(count, np.int64)
        one = np.arange(0 if chosen.keep else 1, chosen.copies + 1)
        return np.tile(one, count)

    # --- what is known ----------------------------------------------------------------------------

    def provenance(self, number: int) -> dict[str, Any]:
        """Where every row of a batch comes from."""
        batch = self.plan.batch(number)
        chosen = self.options.augmentation
        group = 1 if chosen is None else chosen.group
        return {
            "id": np.repeat(self._rows.gather("id", batch.rows), group),
            "lsn": np.repeat(self._rows.lsns(batch.rows), group),
            "augmentation": self._numbers(len(batch.rows)),
            "seed": self.options.seed,
            "pass": self._pass,
            "step": 0,
            "layout": LAYOUT_VERSION,
            "mode": None if chosen is None else chosen.mode,
            "form": None if chosen is None else chosen.form,
        }

    def stats(self) -> dict[str, Any]:
        """Figures of this process."""
        warm, hot, augmenter = self._warm, self._hot, self._augmenter
        return {
            "rows": len(self._rows),
            "batches": self._batches,
            "pass": self._pass,
            "order": type(self.plan.order).__name__.lower(),
            "device": None if augmenter is None else augmenter.device_name,
            "cold": {
                "moved_bytes": self._cold_bytes + (warm.stats.moved_bytes if warm else 0),
                "lent_bytes": 0 if self._lender is None else self._lender.lent_bytes,
            },
            "warm": None if warm is None else vars_of(warm.stats),
            "hot": None if hot is None else vars_of(hot.stats),
            "buffers": self._pool.made,
            "augmented": None if augmenter is None else augmenter.stats(),
        }


def chosen_order(rows: Rows) -> Literal["permutation", "windowed"]:
    """What order="auto" means now: a permutation when the rows fit in half of the memory.

    Decided once, when a stream is made, and part of its state: an order must not depend on how much
    memory happens to be free where it goes on.
    """
    fits = 4 * rows.dim * len(rows) <= available_memory() // 2
    return "permutation" if fits else "windowed"


def order_of(rows: Rows, options: StreamOptions, pass_number: int) -> Order:
    """The order of a pass that takes every row once; "auto" has been decided before."""
    kind = options.order
    assert kind != "auto"
    return plain_order(
        kind,
        len(rows),
        seed=options.seed,
        pass_number=pass_number,
        window_strata=max(1, options.window_rows // STRATUM_ROWS),
    )


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


def _warm_bytes(rows: Rows, options: StreamOptions) -> int:
    if options.warm_bytes is not None:
        return options.warm_bytes
    whole = 4 * rows.dim * (len(rows) + 4096)
    scattered = len(rows.state.blocks) > _SCATTERED_BLOCKS
    return whole if scattered and whole <= _WARM_MAX else 0


def vars_of(stats: Any) -> dict[str, Any]:
    """The fields of a slotted dataclass as a dict."""
    return {name: getattr(stats, name) for name in stats.__dataclass_fields__}


@cache
def batch_type(fields: tuple[str, ...]) -> Any:
    """The named tuple of these fields. It is pickled by its fields, so workers can send it."""
    base = namedtuple("SplatBatch", fields)  # type: ignore[misc]

    def reduce(self: Any) -> Any:
        return _rebuild, (fields, tuple(self))

    return type("SplatBatch", (base,), {"__slots__": (), "__reduce__": reduce})


def _rebuild(fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return batch_type(fields)(*values)
