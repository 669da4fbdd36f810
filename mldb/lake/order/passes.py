"""What a stream reads in each pass: its order over the rows, cut into batches."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any, Final, Literal, NamedTuple

from mldb.errors import InvalidValueError, MissingError
from mldb.gpu.torch_device import torch_device_of
from mldb.history.splats import PROVENANCE
from mldb.lake.order.pass_order import (
    STRATUM_ROWS,
    PassOrder,
    Sampler,
    Sequential,
    plain_order,
    prepare_sampler,
)
from mldb.lake.order.plan import Plan, shuffle_quality
from mldb.lake.order.weights import Importance, chances
from mldb.lake.rows.live import Rows
from mldb.lake.stream.settings import StreamOptions
from mldb.log.fs.machine import total_memory
from mldb.noise.streams import stream_seed

_SAMPLED_BATCHES: Final = 64


class Pass(NamedTuple):
    """One pass: its number and its batches."""

    number: int
    plan: Plan

    @property
    def is_in_row_order(self) -> bool:
        """Whether batches are runs of rows."""
        return isinstance(self.plan.order, Sequential)


class Passes:
    """The passes of a stream over the rows of a lake at a commit. Any thread.

    The one planned last is kept, because planning may cost O(rows); a race costs time.
    """

    def __init__(self, rows: Rows, options: StreamOptions) -> None:
        """*options* have an order other than "auto"; see :func:`chosen_order`."""
        self._rows = rows
        self._options = options
        self._seed = stream_seed(options.seed, rows.state.info.lake_id)
        self._last: Pass | None = None
        self._drawn: Sampler | None = None  # what the newest pass was drawn by

    def plan(self, number: int) -> Pass:
        """Return pass *number*. Raises InvalidValueError for one beyond 2^32."""
        last = self._last
        if last is None or last.number != number:
            options = self._options
            plan = Plan(
                order=self._order(number),
                batch_size=options.source_rows,
                drop_last=options.drop_last,
            )
            last = self._last = Pass(number, plan)
        return last

    def _order(self, number: int) -> PassOrder:
        options, rows = self._options, self._rows
        if options.importance is not None:
            sampler = self._drawn = self._sampler(options.importance)
            return sampler.order(
                seed=self._seed, pass_number=number, length=options.draws or len(rows)
            )
        assert options.order != "auto"
        return plain_order(
            options.order,
            len(rows),
            seed=self._seed,
            pass_number=number,
            window_strata=max(1, options.window_rows // STRATUM_ROWS),
        )

    def _sampler(self, importance: Importance) -> Sampler:
        """The sampler of all rows; kept with them, unless a function of the user decides."""
        rows, salience = self._rows, self._options.salience
        every = slice(0, len(rows))
        # With replacement a sampler serves passes of any length.
        draws = None if importance.replacement == "with" else self._options.draws
        if callable(salience):
            values: Any = salience(rows.ids().copy())
            found = chances(importance, rows.gather("alpha", every), values, draws=draws)
            return prepare_sampler(importance, found, ids=rows.ids())
        key = ("sampler", importance, salience, draws)

        def make() -> Sampler:
            values = None if salience is None else rows.gather(salience, every)
            found = chances(importance, rows.gather("alpha", every), values, draws=draws)
            return prepare_sampler(importance, found, ids=rows.ids())

        return rows.derived(key, make, lambda sampler: sampler.nbytes)

    def stats(self) -> dict[str, Any]:
        """Figures of the pass planned last: how well it is shuffled, or what its weights cost.

        ``shuffle`` is a :class:`Quality` of rows in random order; ``importance`` the effective
        sample size, as a share of the draws, and the floor in use. Each is None where it says
        nothing.
        """
        last, drawn = self._last, self._drawn
        shuffle = None
        if last is not None and drawn is None and not last.is_in_row_order:
            shuffle = _quality(last.plan, len(self._rows))
        weights = None
        if drawn is not None:
            weights = {"ess": drawn.chances.ess, "floor": drawn.chances.floor}
        return {"shuffle": shuffle, "importance": weights}


def _quality(plan: Plan, rows: int) -> dict[str, float] | None:
    """The shuffle quality of some batches all over a pass; None where no batch is full."""
    full = plan.order.length // plan.batch_size
    if not full or plan.batch_size < 2:
        return None
    numbers = range(0, full, -(-full // _SAMPLED_BATCHES))
    return shuffle_quality([plan.rows(number) for number in numbers], rows)._asdict()


def check_stream(rows: Rows, options: StreamOptions) -> None:
    """Refuse options that this lake cannot serve.

    Raises InvalidValueError, MissingError, GpuUnavailableError for a CUDA device that is not there.
    """
    if not len(rows):
        raise InvalidValueError(
            f"lake {rows.name!r} has no rows at commit {rows.lsn}; add some before streaming"
        )
    drawn = len(rows) if options.draws is None else options.draws
    if options.drop_last and options.source_rows > drawn:
        raise InvalidValueError(
            f"a batch takes {options.source_rows} rows and a pass has {drawn}: with drop_last "
            "there is no batch at all. Lower batch_size, or drop_last=False."
        )
    if drawn > len(rows) and options.importance and options.importance.replacement != "with":
        raise InvalidValueError(
            f"draws={drawn} without replacement, and the lake has {len(rows)} rows; lower draws, "
            "or replacement='with'"
        )
    if drawn == len(rows) and options.importance and options.importance.is_once_by_chance:
        raise InvalidValueError(
            f"draws={drawn} without replacement is every row of the lake, whatever beta and gamma "
            "say; lower draws, or leave importance_sampling out"
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
        if not name.isidentifier() or name.startswith("_") or iskeyword(name):
            raise InvalidValueError(
                f"column {name!r} cannot be a field of a named tuple; read it with lake.get()"
            )
    if options.device.startswith("cuda"):
        torch_device_of(options.device)


def chosen_order(rows: Rows) -> Literal["permutation", "windowed"]:
    """What order="auto" means: a permutation when the rows fit in half of the machine's memory.

    All ranks of a machine choose alike, and machines of one size do: what happens to be free at the
    moment has no part in it. Part of a stream's state, so that it goes on alike elsewhere.
    """
    fits = 4 * rows.dim * len(rows) <= total_memory() // 2
    return "permutation" if fits else "windowed"
