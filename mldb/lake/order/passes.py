"""What a stream reads in each pass: its order over the rows, cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Final, Literal
from weakref import ref

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
from mldb.log.checksum import digest128
from mldb.log.fs.machine import total_memory
from mldb.noise.streams import stream_seed

_SAMPLED_BATCHES: Final = 64
_KNOWN_PASSES: Final = 4096  # of which it is kept what they were drawn by: 100 bytes each


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pass:
    """One pass: its number and its batches. Immutable; any thread; pickles to workers.

    ``drawn_by`` names the chances of the rows where a function of the user had a part in them: what
    it returns tomorrow may be something else. Else it is None, and the number says all.
    """

    number: int
    plan: Plan
    drawn_by: str | None = None

    @property
    def is_in_row_order(self) -> bool:
        """Whether batches are runs of rows."""
        return isinstance(self.plan.order, Sequential)


class Passes:
    """The passes of a stream over the rows of a lake at a commit. Any thread; a race costs time.

    Planning may cost O(rows), and asks a salience that is a function of the user. So a plan is kept
    as long as somebody reads by it, and the one made last until another one is made.
    """

    def __init__(self, rows: Rows, options: StreamOptions) -> None:
        """*options* have an order other than "auto"; see :func:`chosen_order`."""
        self._rows = rows
        self._options = options
        self._last: Pass | None = None
        self._held: dict[int, ref[Pass]] = {}  # by number; those that nobody reads go at the next
        self._begun: dict[int, str] = {}  # by number, what a pass that began was drawn by
        self._drawn: Sampler | None = None  # what the newest pass was drawn by

    @property
    def _seed(self) -> int:
        """Of orders and draws; rows in their order need none, and start without."""
        return stream_seed(self._options.seed, self._rows.state.info.lake_id)

    @property
    def asks(self) -> bool:
        """Whether a function of the user decides which rows a pass has."""
        return callable(self._options.salience)

    def plan(self, number: int) -> Pass:
        """Return pass *number* as it is read, or would be. Raises InvalidValueError.

        It is that of who reads it now. A past one is planned again, and refused where a function of
        the user says by now that it would have other rows. So is one beyond 2^32.
        """
        found = self._found(number)
        if found is None:
            found = self._made(number)
            was = self._begun.get(number)
            if was is not None and was != found.drawn_by:
                raise InvalidValueError(
                    f"pass {number} was drawn by a salience (digest {was}) that is another by now "
                    f"({found.drawn_by}), so its rows cannot be told. Ask while the pass runs, or "
                    "keep what the salience returned as a column"
                )
            self._keep(found)
        return found

    def begin(self, number: int, drawn_by: str | None = None) -> Pass:
        """Return pass *number*, which begins: with the salience as it is now.

        With *drawn_by* it goes on: by the same chances, if they are kept or the salience still
        gives them. Raises InvalidValueError where it does not.
        """
        found = self._found(number)
        if found is None or not self._may_begin(found, drawn_by):
            found = self._made(number)
        if drawn_by is not None and found.drawn_by != drawn_by:
            raise InvalidValueError(
                f"pass {number} was drawn by a salience of digest {drawn_by}, and now it gives "
                f"{found.drawn_by}: the rest of the pass would have other rows. Nothing was "
                "changed; give the salience as it was, or begin a pass with set_pass()"
            )
        self._keep(found)
        if found.drawn_by is not None:
            self._begun.pop(number, None)
            self._begun[number] = found.drawn_by
            if len(self._begun) > _KNOWN_PASSES:
                del self._begun[next(iter(self._begun))]
        return found

    def prepare(self) -> None:
        """Make the tables of the sampler now, unless a function of the user has a part in them."""
        if self._options.importance is not None and not self.asks:
            self._sampler(self._options.importance)

    def adopt(self, planned: Pass) -> None:
        """Read this pass by the plan of another process: it asked the salience, or was forked."""
        self._keep(planned)

    def batches(self, number: int) -> int:
        """How many batches a pass has. Asks no salience where draws are with replacement."""
        options = self._options
        if options.importance is not None and options.importance.replacement != "with":
            return len(self.plan(number).plan)
        length = len(self._rows) if options.draws is None else options.draws
        return len(Plan(order=Sequential(length), **self._cut))

    def _may_begin(self, found: Pass, drawn_by: str | None) -> bool:
        """Whether a plan that is kept may be that of a pass that begins or goes on."""
        if not self.asks:
            return True
        return found.number not in self._begun if drawn_by is None else found.drawn_by == drawn_by

    def _found(self, number: int) -> Pass | None:
        held = self._held.get(number)
        return None if held is None else held()

    def _keep(self, found: Pass) -> None:
        for number, held in list(self._held.items()):
            if held() is None:
                self._held.pop(number, None)
        self._held[found.number] = ref(found)
        self._last = found

    def _made(self, number: int) -> Pass:
        order, drawn_by = self._order(number)
        return Pass(number, Plan(order=order, **self._cut), drawn_by)

    @property
    def _cut(self) -> dict[str, Any]:
        return {"batch_size": self._options.source_rows, "drop_last": self._options.drop_last}

    def _order(self, number: int) -> tuple[PassOrder, str | None]:
        options, rows = self._options, self._rows
        if options.importance is not None:
            sampler = self._drawn = self._sampler(options.importance)
            order = sampler.order(
                seed=self._seed, pass_number=number, length=options.draws or len(rows)
            )
            return order, _digest(sampler) if self.asks else None
        assert options.order != "auto"
        plain = plain_order(
            options.order,
            len(rows),
            seed=self._seed,
            pass_number=number,
            window_strata=max(1, options.window_rows // STRATUM_ROWS),
        )
        return plain, None

    def _sampler(self, importance: Importance) -> Sampler:
        """The sampler of all rows; kept with them, unless a function of the user decides."""
        rows, salience = self._rows, self._options.salience
        every = slice(0, len(rows))
        # With replacement a sampler serves passes of any length.
        draws = None if importance.replacement == "with" else self._options.draws

        def make(values: Any) -> Sampler:
            found = chances(importance, rows.gather("alpha", every), values, draws=draws)
            return prepare_sampler(importance, found, ids=rows.ids())

        if callable(salience):
            return make(salience(rows.ids().copy()))
        key = ("sampler", importance, salience, draws)

        def kept() -> Sampler:
            return make(None if salience is None else rows.gather(salience, every))

        return rows.derived(key, kept, lambda sampler: sampler.nbytes)

    def stats(self) -> dict[str, Any]:
        """Figures of the pass planned last: how well it is shuffled, or what its weights cost.

        ``shuffle`` is a :class:`Quality` of rows in random order; ``importance`` the effective
        sample size, as a share of the draws, and the floor in use. Each is None where it says
        nothing.
        """
        last, drawn = self._last, self._drawn
        shuffle = None
        plain = self._options.importance is None
        if last is not None and plain and not last.is_in_row_order:
            shuffle = _quality(last.plan, len(self._rows))
        weights = None
        if drawn is not None:
            weights = {"ess": drawn.chances.ess, "floor": drawn.chances.floor}
        return {"shuffle": shuffle, "importance": weights}


def _digest(sampler: Sampler) -> str:
    """A name for the chances of all rows, whose order is that of the commit."""
    return digest128(sampler.chances.p.data).hex()


def _quality(plan: Plan, rows: int) -> dict[str, float] | None:
    """The shuffle quality of some batches all over a pass; None where no batch is full."""
    full = plan.order.length // plan.batch_size
    if not full or plan.batch_size < 2:
        return None
    numbers = range(0, full, -(-full // _SAMPLED_BATCHES))
    return shuffle_quality([plan.rows(number) for number in numbers], rows)._asdict()


def check_stream(rows: Rows, options: StreamOptions) -> None:
    """Refuse options that this lake cannot serve.

    Raises InvalidValueError, MissingError, InvalidTypeError for a column whose blocks do not fit
    together, GpuUnavailableError for a CUDA device that is not there.
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
        rows.refuse_unfit(name)
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
