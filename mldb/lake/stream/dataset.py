"""The dataset: a lake as a stream of batches for a PyTorch loop, resumable to the batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import parent_process
from typing import Any, NamedTuple, get_args

from torch.utils.data import IterableDataset, get_worker_info

from mldb.errors import InvalidValueError
from mldb.lake.augment.augmenter import needs_of
from mldb.lake.augment.devices import compile_for
from mldb.lake.augment.landscape import Landscape
from mldb.lake.order.pass_order import PlainOrder
from mldb.lake.order.passes import Pass, check_stream, chosen_order
from mldb.lake.order.plan import Shard
from mldb.lake.rows.source import LakeSource
from mldb.lake.stream.epochs import Epochs
from mldb.lake.stream.running import LineMaker, PassProgress, Position, RunningPass
from mldb.lake.stream.settings import StreamOptions
from mldb.lake.stream.state import check_state, make_state
from mldb.lake.stream.streams import OpenedLake
from mldb.noise.draws import check_seed


class _Given(NamedTuple):
    """What a :class:`LakeLoader` gives its workers: where they begin, and by which plan."""

    position: Position
    planned: Pass | None


class M2MDataLake(IterableDataset[Any]):
    """Batches of a lake at one commit; made by ``lake.export_to_dataloader`` or ``lake.dataset``.

    Every ``iter`` begins a pass, whose order and noise are functions of (seed, pass), and draws its
    number: the next one after the newest. Iterations are independent, as torch's are: each has its
    own thread, buffers and device; the budgets of the tiers are not multiplied, for one of them
    has the tiers and others read from the segments. ``state_dict``, ``stats`` and what is asked
    without a pass number speak of the newest. One thread at a time for each iteration, and one for
    all else.

    It travels to DataLoader workers, forked or spawned, which share the batches of a pass among
    them; so do DDP ranks. Under a plain DataLoader, whose workers are copies, each epoch is the
    next pass as well: the base seed of torch tells them that it is another one. ``state_dict``
    tells where it is, a few integers; loaded before an iteration, that one goes on with the next
    batch, under any number of ranks. (The state of a ``StatefulDataLoader`` with workers is that
    loader's own: taken in the body of the last batch, it first ends that epoch, with no batch, as
    it does over every dataset.) An iteration that an error ended is gone on with by the next
    one, at the batch that failed; one that was left, by ``break`` or Ctrl-C, is over.
    """

    def __init__(
        self, source: LakeSource, options: StreamOptions, *, rank: int = 0, world: int = 1
    ) -> None:
        """Raises InvalidValueError, e.g. for an empty lake, and MissingError for unknown fields."""
        self._of_rank = Shard(rank=rank, world=world)  # refuses what is none
        self.options = options
        self.rank, self.world = rank, world
        self._source = source
        self._newest: PassProgress | None = None
        self._next: Position | None = Position(0)  # of the next iteration; None: after the newest
        self._here: OpenedLake | None = None
        self._pid = os.getpid()
        check_stream(source.rows(), options)
        self._auto = options.order == "auto" and options.importance is None
        if self._auto:
            self.options = options.in_order(chosen_order(source.rows()))
        # How the workers of plain DataLoaders know their pass. What was said before is in _next.
        self._epochs = Epochs()
        self._heard = len(self._epochs)
        self._is_counted = False  # a copy in a worker that does not know its pass yet
        self._tells = True  # in a worker: the others, which pass it begins
        self._given: _Given | None = None

    @property
    def lsn(self) -> int:
        """The commit that is read."""
        return self._source.lsn

    @property
    def pass_number(self) -> int:
        """The pass of the newest iteration, and of the next one when none runs."""
        self._settle()
        running = self._running()
        return self._upcoming().number if running is None else running.number

    # --- iterating --------------------------------------------------------------------------------

    def __iter__(self) -> RunningPass:
        """Begin the next pass, or the rest of the one a state was loaded for or an error ended.

        Raises what planning raises, then no pass has begun: a salience that returns no numbers, or
        others than the state was saved with (InvalidValueError). The first batch raises
        InvalidValueError in a worker for options that none hears (``hot_bytes``).
        """
        self._settle()
        reader = self._reader()

        def line(progress: PassProgress) -> Iterator[Any]:
            return reader.line(progress.current, progress.jobs())

        return self.start_pass(line)

    def start_pass(self, line: LineMaker) -> RunningPass:
        """Begin the next pass, with batches that *line* makes; what iterating does."""
        self._settle()
        info = get_worker_info()
        shard = self._of_rank
        if info is not None:
            shard = replace(shard, worker=info.id, workers=info.num_workers)
        base_seed = None if info is None else info.seed - info.id
        position = self._position_to_begin(base_seed)
        if shard.workers == 1 and position.done:
            # A batch more was handed out for every rank, and the workers of none.
            start = position.start + position.done * self.world
            position = position._replace(start=start, done=0)
        current, position = self._begun(position, base_seed)
        if base_seed is not None and current.drawn_by is not None and self._tells:
            self._epochs.check_agreed(_parent(), base_seed, current.number, current.drawn_by)
        even = self.options.even_ranks
        progress = PassProgress(current, shard, start=position.start, done=position.done, even=even)
        self._newest = progress
        self._next = None  # in this order: between the two the same position would come again
        return RunningPass(progress, line)

    def _begun(self, position: Position, base_seed: int | None) -> tuple[Pass, Position]:
        """The pass at a position; where it has nothing left for this rank, the next one."""
        passes = self._reader().passes
        current = passes.begin(position.number, position.drawn_by)
        # What is left for this worker alone says nothing of the others of its rank.
        is_of_rank = position.start and not position.done
        if is_of_rank and not self._share(position.start, len(current.plan)):
            position = Position(position.number + 1)
            current = passes.begin(position.number)
            if base_seed is not None and self._tells:
                self._epochs.tell(_parent(), base_seed, position.number)
        return current, position

    def _share(self, start: int, count: int) -> range:
        """The batches of this rank, of the *count* of a pass, from batch *start* on."""
        return self._of_rank.deal(min(start, count), count, even=self.options.even_ranks)

    def _position_to_begin(self, base_seed: int | None) -> Position:
        """Where the next iteration begins; in a worker the epochs are asked, or told."""
        position = self._upcoming()
        if base_seed is None:
            return position
        if self._is_counted:
            self._is_counted = False
            first, since = position.number, self._heard
            number = self._epochs.number(_parent(), base_seed, first=first, since=since)
            return position if number == first else Position(number)
        if self._tells:
            self._epochs.tell(_parent(), base_seed, position.number)
        return position

    def _upcoming(self) -> Position:
        """The position of the next iteration of this process."""
        self._listen()
        if self._next is not None:
            return self._next
        assert self._newest is not None
        if self._newest.has_failed:
            return self._newest.position()
        return Position(self._newest.number + 1)

    def _listen(self) -> None:
        """Count the passes that workers of plain DataLoaders of this process began meanwhile."""
        if self._is_counted or get_worker_info() is not None or len(self._epochs) == self._heard:
            return
        heard, newest = len(self._epochs), self._newest
        if self._next is not None:
            first = self._next.number
        else:
            assert newest is not None
            first = newest.number + 1
        number = self._epochs.upcoming(os.getpid(), first=first, since=self._heard)
        if number != first:
            self._next = Position(number)
        self._heard = heard

    def set_pass(self, number: int) -> None:
        """Begin pass *number* with the next iteration. Raises InvalidValueError."""
        check_seed(self.options.seed, number)
        self._go_to(Position(int(number)))

    def _go_to(self, position: Position) -> None:
        self._settle()
        self._is_counted = False
        self._heard = len(self._epochs)
        self._next = position

    # --- what is asked of it ----------------------------------------------------------------------

    def prepare(self, *, forked: bool = True) -> None:
        """Compute what all workers need of the lake now, once, before they are started.

        That is its graph with what stands beside it: forked workers have it, others find it as a
        hint where this handle may write, or are sent it. Workers that are going to be *forked* have
        the tables of the sampler, arrays of rows and labels, and compiled kernels as well, which
        are kept as long as this is; others make them for themselves. A :class:`LakeLoader` calls
        it; call it before you iterate a DataLoader of torch with workers.
        """
        rows, chosen = self._source.rows(), self.options.augmentation
        with rows.sharing() if forked else nullcontext():
            if forked:
                self._reader().passes.prepare()
            if chosen is not None and chosen.mode != "isotropic":
                Landscape(rows, chosen).prepare()
        needs = None if chosen is None else needs_of(chosen, rows.dim, len(rows))
        if forked and needs is not None:
            compile_for(self.options.device, needs)

    def batches(self) -> int:
        """How many batches this rank gets in the newest iteration, or the next when none runs."""
        self._settle()
        running = self._running()
        if running is not None:
            return running.length
        position = self._upcoming()
        start = position.start + position.done * self.world
        count = self._reader().passes.batches(position.number)
        return len(self._share(start, count)) or len(self._share(0, count))

    def stats(self) -> dict[str, Any]:
        """Figures of this process: what ran, how well it is shuffled, what each tier moved and hit.

        ``shuffle``: mix and spread of the newest pass, 1 and 1 for a perfect permutation.
        ``importance``: its effective sample size, as a share of the draws, and the floor in use.
        """
        reader = self._reader()
        return reader.streams.stats() | reader.passes.stats()

    def provenance(self, batch: int, *, pass_number: int | None = None) -> dict[str, Any]:
        """Tell of every row of batch *batch* (of all ranks) of a pass where it comes from.

        ``id``, ``lsn``, ``augmentation`` (int64 [B]; 0 is the row itself where options keep it),
        ``occurrence`` (int64 [B], the position of the draw in the pass; None without draws with
        replacement), ``lake``, ``seed``, ``pass``, ``step`` (the first of the noise), ``layout``,
        ``mode``. The batch made again from them is the same bytes. Raises InvalidValueError for a
        past pass whose salience is another by now.
        """
        return self._reader().streams.provenance(self._pass(pass_number), batch)

    def batch(self, number: int, *, pass_number: int | None = None) -> Any:
        """Make batch *number* (of all ranks) of a pass, whatever is being iterated.

        Raises InvalidValueError as :meth:`provenance` does.
        """
        return self._reader().streams.make(self._pass(pass_number), number)

    def _pass(self, number: int | None) -> Pass:
        newest, asked = self._newest, self.pass_number if number is None else number
        if newest is not None and newest.number == asked:
            return newest.current
        return self._reader().passes.plan(asked)

    def _running(self) -> PassProgress | None:
        """The newest iteration, where it has not come to its end and no other was asked for."""
        newest = self._newest
        return None if self._next is not None or newest is None or newest.is_over else newest

    def _reader(self) -> OpenedLake:
        """What reads in this process: opened when first asked for."""
        if self._here is None or self._here.pid != os.getpid():
            self._here = OpenedLake(self._source, self.options)
        return self._here

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the newest iteration is, as plain values: it names the next batch.

        After the last batch that is the first one of the next pass. Where a salience is a function,
        the state names what it returned, and goes on under the same alone.
        """
        self._settle()
        info, newest = get_worker_info(), self._newest
        if self._next is None and newest is not None and (info is not None or not newest.is_over):
            position = newest.position()
        else:
            position = self._upcoming()
        return self._state(position)

    def _state(self, position: Position) -> dict[str, Any]:
        info = get_worker_info()
        return make_state(
            position,
            lake=self._source.lake_id,
            lsn=self._source.lsn,
            seed=self.options.seed,
            world=self.world,
            workers=1 if info is None else info.num_workers,
            batch_size=self.options.batch_size,
            order=self.options.order,
            settings=self.options.settings_digest(),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where *state* was taken, with the next iteration; those that run are left alone.

        Raises InvalidValueError for the state of another lake, version, seed or batch size, for a
        worker's state under another number of workers, and for a batch that no such pass has; then
        nothing changed.
        """
        self._settle()
        here = self._state(Position(0))
        position = check_state(state, here, self._orders(), any_order=self._auto)
        source = self._source.moved_to(state["lsn"])
        if source is not self._source:
            check_stream(source.rows(), self.options)
        self._check_reach(source, position)
        if source is not self._source or state["order"] != self.options.order:
            self._source, self._here, self._newest = source, None, None
            self.options = self.options.in_order(state["order"])
        self._go_to(position)

    def _check_reach(self, source: LakeSource, position: Position) -> None:
        """Refuse a position behind the end of every pass there may be. Raises InvalidValueError."""
        drawn = self.options.draws or len(source.rows())
        most = -(-drawn // self.options.source_rows) + self.world
        if position.start + position.done > most:
            raise InvalidValueError(
                f"the state is at batch {position.start + position.done}, and a pass has at most "
                f"{most}. Nothing was changed."
            )

    def _orders(self) -> tuple[str, ...]:
        """What the order in a state of this stream may be: "auto" was decided, if there is any."""
        return get_args(PlainOrder) if self.options.importance is None else ("auto",)

    # --- copies -----------------------------------------------------------------------------------

    @contextmanager
    def given_to_workers(self, running: PassProgress, *, forked: bool) -> Iterator[None]:
        """Inside of it, workers that are started begin where *running* goes on, by its plan.

        *forked* ones have the plan. To others it travels where a function of the user made it;
        without, they make their own, the same.
        """
        number, drawn_by = running.number, running.current.drawn_by
        planned = running.current if forked or drawn_by is not None else None
        self._given = _Given(Position(number, running.cursor, 0, drawn_by), planned)
        try:
            yield
        finally:
            self._given = None

    def _settle(self) -> None:
        """Notice that this is a copy in another process: what runs in the first one is not ours."""
        if self._pid == os.getpid():
            return
        given, self._given = self._given, None
        if given is None:
            self._next = self._upcoming()
            self._is_counted = get_worker_info() is not None
        else:
            self._next, self._tells = given.position, False
            if given.planned is not None:
                self._reader().passes.adopt(given.planned)
        self._newest = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs; devices and mappings are opened where they are used.

        A copy does not go on with what is running: it begins the next pass.
        """
        here = {"_here": None, "_newest": None, "_next": self._upcoming(), "_pid": -1}
        return self.__dict__ | here

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What was heard counts in the list that came along, which may be a new one."""
        self.__dict__.update(state)
        self._heard = min(self._heard, len(self._epochs))


def _parent() -> int:
    """The process whose DataLoader started this worker."""
    parent = parent_process()
    return 0 if parent is None or parent.pid is None else parent.pid


def process_rank(rank: int | None, world: int | None) -> tuple[int, int]:
    """The rank and number of ranks: as given, else those of torch.distributed, else 0 of 1."""
    import torch.distributed as dist

    running = dist.is_available() and dist.is_initialized()
    if rank is None:
        rank = dist.get_rank() if running else 0
    if world is None:
        world = dist.get_world_size() if running else 1
    return rank, world
