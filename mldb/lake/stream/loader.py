"""The DataLoader over a lake: a plain torch loader that knows where its dataset is."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from torch.utils.data import DataLoader

from mldb.errors import InvalidValueError
from mldb.lake.stream.dataset import M2MDataLake
from mldb.lake.stream.running import PassProgress
from mldb.lake.stream.settings import check_heard_by_workers

_logger = logging.getLogger(__name__)

WORKER_OPTIONS: Final = frozenset(
    {
        *("num_workers", "multiprocessing_context", "persistent_workers", "prefetch_factor"),
        *("worker_init_fn", "timeout"),
    }
)

_OF_THE_STREAM: Final = frozenset(
    {"batch_size", "sampler", "batch_sampler", "shuffle", "drop_last"}
)


class LakeLoader(DataLoader[Any]):
    """A torch DataLoader over :class:`mldb.M2MDataLake`, with ``state_dict``.

    Every ``iter`` is an iteration of its own, and ``state_dict`` that of the newest; see there. The
    state is exact with workers too, and may be loaded under another number of workers or ranks.
    Without workers (the default) a thread makes batches ahead; where rows are verified and only
    copied, once steps are long enough for it to be of use. A worker has to send every batch
    through fresh shared memory, which takes longer than reading it; so workers are started where
    they have something to compute, which is augmentation, and otherwise the thread reads.

    The thread, named ``mldb-stream``, is the only one of ours beside those of compiled kernels
    (``mldb-rows``); it ends with the pass. A device is borrowed for a pass. Afterwards one is kept
    for the next pass of any lake, without memory for batches, until the last store closes whose
    lakes have used one. A Vulkan driver has threads and memory of its own: see
    ``mldb.gpu.vulkan.device.VulkanDevice``.
    """

    dataset: M2MDataLake

    # What accelerate asks for: its prepare() hands back a loader of which the first is true, and
    # save_state() keeps the state of one of which the second is. The lake's stream deals rows out
    # to ranks itself, and a loader around it would deal them out once more.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    def __init__(self, dataset: M2MDataLake, **options: Any) -> None:
        """*options* are those of DataLoader but for batch_size, which the dataset has."""
        refused = sorted(options.keys() & _OF_THE_STREAM)
        if refused:
            raise InvalidValueError(
                f"{', '.join(refused)}: the lake's stream decides this, not its DataLoader; pass "
                "batch_size, shuffle and drop_last to export_to_dataloader"
            )
        workers = options.get("num_workers", 0)
        if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 0:
            raise InvalidValueError(f"num_workers={workers!r} is not a number of workers")
        options["num_workers"] = workers = int(workers)
        self.workers_asked = workers
        if workers and dataset.options.augmentation is None:
            _logger.info("rows are only read: a thread does that, not %d workers", workers)
            options = {name: value for name, value in options.items() if name not in WORKER_OPTIONS}
        elif workers:
            check_heard_by_workers(dataset.options)
        if not options.get("in_order", True):
            raise InvalidValueError(
                "in_order=False hands out batches as workers happen to finish them; the order of a "
                "pass is a promise of the lake's stream, and its state one number: how many of them"
                " are done. Leave it out, or use a plain DataLoader over loader.dataset"
            )
        try:
            super().__init__(dataset, batch_size=None, **options)
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"the options of the DataLoader do not fit: {error}") from error
        self._wraps = self.pin_memory or options.get("collate_fn") is not None
        # Where workers that persist will begin, if nobody uses them: pass and batch.
        self._workers_at: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Begin an iteration over the batches of the next pass; see :class:`mldb.M2MDataLake`."""
        if self.num_workers:
            return self.dataset.start_pass(self._from_workers)
        # What DataLoader would put around each batch costs as much as reading it.
        return super().__iter__() if self._wraps else iter(self.dataset)

    def _from_workers(self, running: PassProgress) -> Iterator[Any]:
        """Yield the rest of a pass. Workers that persist are used again where they stand right."""
        context: Any = self.multiprocessing_context or multiprocessing
        forked = context.get_start_method() == "fork"
        self.dataset.prepare(forked=forked)
        stand, self._workers_at = self._workers_at, None
        if stand != (running.number, running.cursor) or running.current.drawn_by is not None:
            self._iterator = None  # they think they are somewhere else, or are in use
        with self.dataset.given_to_workers(running, forked=forked):
            batches = super().__iter__()
        following = running.number + 1, 0
        try:
            yield from batches
        except GeneratorExit:
            if self._iterator is batches:
                self._workers_at = following
            raise
        if self._iterator is batches:
            self._workers_at = following

    def __len__(self) -> int:
        """Batches of this rank in the newest iteration, or the next one when none runs."""
        return self.dataset.batches()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the last batch that was handed out; plain values."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where *state* was taken. Call it before iterating. Raises InvalidValueError."""
        self.dataset.load_state_dict(state)

    def stats(self) -> dict[str, Any]:
        """Figures of the stream in this process; workers have their own."""
        return self.dataset.stats()
