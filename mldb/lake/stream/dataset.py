"""The dataset: a lake as a stream of batches for a PyTorch loop, resumable to the batch."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, get_args

from torch.utils.data import IterableDataset, get_worker_info

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.augment.landscape import Landscape
from mldb.lake.order.pass_order import PlainOrder
from mldb.lake.order.passes import Pass, Passes, check_stream, chosen_order
from mldb.lake.order.plan import Shard
from mldb.lake.rows.live import Rows
from mldb.lake.rows.source import LakeSource
from mldb.lake.stream.batches import Stream
from mldb.lake.stream.prefetch import prefetch
from mldb.lake.stream.settings import StreamOptions
from mldb.noise.draws import PASS_BITS, check_seed
from mldb.noise.philox import LAYOUT_VERSION
from mldb.write.preemption import safe_point

STATE_VERSION: Final = 1


class M2MDataLake(IterableDataset[Any]):
    """Batches of a lake at one commit; made by ``lake.export_to_dataloader`` or ``lake.dataset``.

    Every iteration is one pass, whose order and noise are functions of (seed, pass). One iteration
    at a time and thread. It travels to DataLoader workers, forked or spawned, which share the
    batches of a pass among them; so do DDP ranks. Under a plain DataLoader whose workers do not
    persist, call ``set_pass(epoch)`` before each epoch: they are copies, and what they did is not
    known here. :class:`LakeLoader` needs no such call. ``state_dict`` tells where it is, a few
    integers; loaded before an iteration, that one goes on with the next batch, under any number of
    ranks.
    """

    def __init__(
        self, source: LakeSource, options: StreamOptions, *, rank: int = 0, world: int = 1
    ) -> None:
        """Raises InvalidValueError, e.g. for an empty lake, and MissingError for unknown fields."""
        Shard(rank=rank, world=world)  # refuses what is none
        self.options = options
        self.rank, self.world = rank, world
        self.pass_number = 0
        """The pass of the next iteration."""
        self._source = source
        self._start = 0  # the first batch of the pass, over all ranks
        self._done = 0  # batches handed out since, by this iterator
        self._flow: Generator[Any] | None = None  # what runs, or was left in the middle of its pass
        self._here: OpenedLake | None = None
        check_stream(source.rows(), options)
        self._auto = options.order == "auto" and options.importance is None
        if self._auto:
            self.options = replace(options, order=chosen_order(source.rows()))

    @property
    def lsn(self) -> int:
        """The commit that is read."""
        return self._source.lsn

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the next pass, or the rest of the one a state was loaded for.

        An iteration that runs is ended by this, and its pass is over.
        """
        self.leave()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        stream, current = self._reader().stream, self._pass()
        shard = Shard(rank=self.rank, world=self.world, worker=worker, workers=workers)
        cursor = shard.cursor_after(self._start, self._done * workers, len(current.plan))
        jobs = current.plan.read(cursor, shard, even=self.options.even_ranks)
        depth = self.options.prefetch if info is None and not stream.is_ready(current) else 0
        yield from self.run(prefetch(stream.flow(current, jobs), depth))

    def run(self, flow: Generator[Any]) -> Iterator[Any]:
        """Yield from *flow*, the rest of this pass, and count; at its end the next pass begins."""
        self._flow = flow
        try:
            for batch in flow:
                self._done += 1
                yield batch
                safe_point()  # the step before is done, and counted
        finally:
            flow.close()
        if self._flow is flow:
            self._begin(self.pass_number + 1)

    def position(self) -> tuple[int, int, int]:
        """The pass, the batch it starts at, and how many were handed out since."""
        return self.pass_number, self._start, self._done

    def leave(self) -> None:
        """End the iteration that runs or was left in the middle, if any, and its pass."""
        if self._flow is not None:
            self._begin(self.pass_number + 1)

    def _begin(self, number: int, start: int = 0, done: int = 0) -> None:
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        self.pass_number, self._start, self._done = number, start, done

    def prepare(self) -> None:
        """Compute what all workers need of the lake now, once: its graph, its sampler.

        Forked ones have it; others find it as a hint, where this handle may write.
        """
        self._pass()
        chosen = self.options.augmentation
        if chosen is not None and chosen.mode != "isotropic":
            Landscape(self._source.rows(), chosen).prepare()

    def set_pass(self, number: int) -> None:
        """Begin pass *number* with the next iteration. Raises InvalidValueError."""
        check_seed(self.options.seed, number)
        self._begin(int(number))

    def batches(self) -> int:
        """How many batches this rank gets in a pass."""
        shard = Shard(rank=self.rank, world=self.world)
        return len(shard.deal(0, len(self._pass().plan), even=self.options.even_ranks))

    def stats(self) -> dict[str, Any]:
        """Figures of this process: what ran, how well it is shuffled, what each tier moved and hit.

        ``shuffle``: mix and spread of the newest pass, 1 and 1 for a perfect permutation.
        ``importance``: its effective sample size, as a share of the draws, and the floor in use.
        """
        reader = self._reader()
        return reader.stream.stats() | reader.passes.stats()

    def provenance(self, batch: int, *, pass_number: int | None = None) -> dict[str, Any]:
        """Tell of every row of batch *batch* (of all ranks) of a pass where it comes from.

        ``id``, ``lsn``, ``augmentation`` (int64 [B]; 0 is the row itself where options keep it),
        ``occurrence`` (int64 [B], the position of the draw in the pass; None without draws with
        replacement), ``lake``, ``seed``, ``pass``, ``step`` (the first of the noise), ``layout``,
        ``mode``. The batch made again from them is the same bytes.
        """
        return self._reader().beside.provenance(self._pass(pass_number), batch)

    def batch(self, number: int, *, pass_number: int | None = None) -> Any:
        """Make batch *number* (of all ranks) of a pass, whatever is being iterated."""
        return self._reader().beside.make(self._pass(pass_number), number)

    def _pass(self, number: int | None = None) -> Pass:
        return self._reader().passes.plan(self.pass_number if number is None else number)

    def _reader(self) -> OpenedLake:
        """What reads in this process: opened when first asked for."""
        if self._here is None or self._here.pid != os.getpid():
            self._here = OpenedLake(self._source.rows(), self._source.geometry, self.options)
        return self._here

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain values: after the last batch that was handed out."""
        info = get_worker_info()
        return {
            "version": STATE_VERSION,
            "layout": LAYOUT_VERSION,
            "lake": self._source.lake_id,
            "lsn": self._source.lsn,
            "seed": self.options.seed,
            "pass": self.pass_number,
            "cursor": self._start,
            "done": self._done,
            "world": self.world,
            "workers": 1 if info is None else info.num_workers,
            "batch_size": self.options.batch_size,
            "order": self.options.order,
            "settings": self.options.settings_digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where *state* was taken. Call it before iterating.

        Raises InvalidValueError for the state of another lake, version, seed or batch size, and for
        a worker's state under another number of workers; then nothing changed.
        """
        start, done = self._check(state)
        source = self._source.moved_to(state["lsn"])
        check_stream(source.rows(), self.options)
        if source is not self._source or state["order"] != self.options.order:
            self._source, self._here = source, None
            self.options = replace(self.options, order=state["order"])
        self._begin(state["pass"], start, done)

    def _check(self, state: dict[str, Any]) -> tuple[int, int]:
        here = self.state_dict()
        if not isinstance(state, dict) or set(state) != set(here):
            raise InvalidTypeError(f"{state!r:.200} is no state of a lake's stream")
        for key, what in (
            ("version", "version of the state"),
            ("layout", "counter layout"),
            ("lake", "lake"),
            ("seed", "seed"),
            ("batch_size", "batch size"),
            ("settings", "settings (importance, augmentation, draws, order of ranks) of digest"),
        ):
            if state[key] != here[key]:
                raise InvalidValueError(
                    f"the state has {what} {state[key]!r}, this stream {here[key]!r}: it cannot go "
                    "on exactly. Nothing was changed; make the stream as it was made."
                )
        numbers = ("lsn", "pass", "cursor", "done", "world", "workers")
        if (
            any(type(state[key]) is not int or not 0 <= state[key] < 1 << 63 for key in numbers)
            or state["pass"] >> PASS_BITS
            or state["order"] not in self._orders()
        ):
            raise InvalidTypeError(f"{state!r:.200} is no state of a lake's stream")
        if not self._auto and state["order"] != self.options.order:
            raise InvalidValueError(
                f"the state has order {state['order']!r}, this stream {self.options.order!r}. "
                "Nothing was changed."
            )
        if state["workers"] == 1:  # of a rank: workers share what is left
            return state["cursor"] + state["done"] * state["world"], 0
        if state["workers"] != here["workers"] or state["world"] != self.world:
            raise InvalidValueError(
                f"the state is that of one of {state['workers']} workers; under another number "
                "of them load the state of the loader (LakeLoader.state_dict())"
            )
        return state["cursor"], state["done"]

    def _orders(self) -> tuple[str, ...]:
        """What the order in a state of this stream may be: "auto" was decided, if there is any."""
        return get_args(PlainOrder) if self.options.importance is None else ("auto",)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs; devices and mappings are opened where they are used."""
        state = self.__dict__ | {"_here": None, "_flow": None}
        if self._flow is not None:  # in the middle of a pass, which the copy does not go on with
            state |= {"pass_number": self.pass_number + 1, "_start": 0, "_done": 0}
        return state


class OpenedLake:
    """What one process opened to read a lake: the stream that is iterated, and one beside it.

    They share the passes and no memory, so that a batch can be looked at while others are made.
    """

    def __init__(self, rows: Rows, geometry: str, options: StreamOptions) -> None:
        self.pid = os.getpid()
        self.passes = Passes(rows, options)
        self.stream = Stream(rows, geometry, options)
        self._made_of = (rows, geometry, replace(options, warm_bytes=0, hot_bytes=0))

    @cached_property
    def beside(self) -> Stream:
        """The stream for single batches, with no tier of its own; made when first needed."""
        return Stream(*self._made_of)


def process_rank(rank: int | None, world: int | None) -> tuple[int, int]:
    """The rank and number of ranks: as given, else those of torch.distributed, else 0 of 1."""
    import torch.distributed as dist

    running = dist.is_available() and dist.is_initialized()
    if rank is None:
        rank = dist.get_rank() if running else 0
    if world is None:
        world = dist.get_world_size() if running else 1
    return rank, world
