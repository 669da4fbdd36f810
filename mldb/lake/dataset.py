"""The dataset: a lake as a stream of batches for a PyTorch loop, resumable to the batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from torch.utils.data import IterableDataset, get_worker_info

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.gpu.philox import LAYOUT_VERSION
from mldb.lake.plan import Shard
from mldb.lake.prefetch import prefetch
from mldb.lake.settings import StreamOptions
from mldb.lake.source import LakeSource
from mldb.lake.stream import Stream, chosen_order

STATE_VERSION: Final = 1


class M2MDataLake(IterableDataset[Any]):
    """Batches of a lake at one commit; made by ``lake.export_to_dataloader`` or ``lake.dataset``.

    Every iteration is one pass, whose order and noise are functions of (seed, pass). One iteration
    at a time and thread. It travels to DataLoader workers, forked or spawned, which share the
    batches of a pass among them; so do DDP ranks. ``state_dict`` tells where it is, a few integers;
    loaded before an iteration, that one goes on with the next batch, under any number of ranks.
    """

    def __init__(
        self, source: LakeSource, options: StreamOptions, *, rank: int = 0, world: int = 1
    ) -> None:
        """Raises InvalidValueError for an empty lake, unknown fields, a rank outside the world."""
        if not 0 <= rank < world:
            raise InvalidValueError(f"rank {rank} of {world} ranks")
        self.options = options
        self.rank, self.world = rank, world
        self.pass_number = 0
        """The pass of the next iteration."""
        self._source = source
        self._start = 0  # the first batch of the pass, over all ranks
        self._done = 0  # batches handed out since, by this iterator
        self._running = False
        self._streams: dict[int, Stream] = {}  # by process: what it opened stays in it
        Stream.check(source.rows(), options)
        self._auto = options.order == "auto"
        if self._auto:
            self.options = replace(options, order=chosen_order(source.rows()))

    @property
    def lsn(self) -> int:
        """The commit that is read."""
        return self._source.lsn

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the next pass, or the rest of the one a state was loaded for."""
        if self._running:  # the iteration before was left in the middle
            self._begin(self.pass_number + 1)
        self._running = True
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        stream = self._stream()
        plan = stream.begin(self.pass_number)
        shard = Shard(rank=self.rank, world=self.world, worker=worker, workers=workers)
        cursor = self._start + self._done * self.world * workers
        jobs = plan.read(min(cursor, len(plan)), shard)
        depth = self.options.prefetch if info is None and not stream.is_ready() else 0
        for batch in prefetch(stream.flow(jobs), depth):
            self._done += 1
            yield batch
        self._begin(self.pass_number + 1)

    def _begin(self, number: int) -> None:
        self.pass_number, self._start, self._done, self._running = number, 0, 0, False

    def set_pass(self, number: int) -> None:
        """Begin pass *number* with the next iteration."""
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 32:
            raise InvalidValueError(f"pass {number!r} is no int in 0 .. 2**32 - 1")
        self._begin(number)

    def batches(self) -> int:
        """How many batches this rank gets in a pass."""
        total = len(self._stream().begin(self.pass_number))
        return len(Shard(rank=self.rank, world=self.world).deal(0, total))

    def stats(self) -> dict[str, Any]:
        """Figures of this process: what ran, what each tier holds, moved and hit."""
        return self._stream().stats()

    def provenance(self, batch: int, *, pass_number: int | None = None) -> dict[str, Any]:
        """Tell of every row of batch *batch* (of all ranks) of a pass where it comes from.

        ``id``, ``lsn``, ``augmentation`` (int64 [B]; 0 is the row itself where options keep it),
        ``seed``, ``pass``, ``step`` (the first of the noise), ``layout``, ``mode``. The batch made
        again from them is the same bytes.
        """
        stream = self._stream()
        stream.begin(self.pass_number if pass_number is None else pass_number)
        return stream.provenance(batch)

    def batch(self, number: int, *, pass_number: int | None = None) -> Any:
        """Make batch *number* (of all ranks) of a pass, whatever was iterated before."""
        stream = self._stream()
        plan = stream.begin(self.pass_number if pass_number is None else pass_number)
        return stream.make(plan.batch(number))

    def _stream(self) -> Stream:
        pid = os.getpid()
        stream = self._streams.get(pid)
        if stream is None:
            stream = Stream(self._source.rows(), self._source.geometry, self.options)
            self._streams = {pid: stream}
        return stream

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
        if source is not self._source or state["order"] != self.options.order:
            self._source, self._streams = source, {}
            self.options = replace(self.options, order=state["order"])
        self.pass_number, self._start, self._done = state["pass"], start, done
        self._running = False

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
            ("settings", "settings (importance, augmentation, draws, drop_last) of digest"),
        ):
            if state[key] != here[key]:
                raise InvalidValueError(
                    f"the state has {what} {state[key]!r}, this stream {here[key]!r}: it cannot go "
                    "on exactly. Nothing was changed; make the stream as it was made."
                )
        numbers = ("lsn", "pass", "cursor", "done", "world", "workers")
        if any(type(state[key]) is not int or state[key] < 0 for key in numbers):
            raise InvalidTypeError(f"{state!r:.200} is no state of a lake's stream")
        if not self._auto and state["order"] != self.options.order:
            raise InvalidValueError(
                f"the state has order {state['order']!r}, this stream {self.options.order!r}. "
                "Nothing was changed."
            )
        if state["workers"] == here["workers"] and state["world"] == self.world:
            return state["cursor"], state["done"]
        if state["workers"] != 1:
            raise InvalidValueError(
                f"the state is that of one of {state['workers']} workers; under another number "
                "of them load the state of the loader (LakeLoader.state_dict())"
            )
        return state["cursor"] + state["done"] * state["world"], 0

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs; devices and mappings are opened where they are used."""
        return self.__dict__ | {"_streams": {}}


def process_rank(rank: int | None, world: int | None) -> tuple[int, int]:
    """The rank and number of ranks: as given, else those of torch.distributed, else 0 of 1."""
    import torch.distributed as dist

    running = dist.is_available() and dist.is_initialized()
    if rank is None:
        rank = dist.get_rank() if running else 0
    if world is None:
        world = dist.get_world_size() if running else 1
    return rank, world
