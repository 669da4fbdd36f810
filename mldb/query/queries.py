"""The queries of one handle: from a text and a moment to rows."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from mldb.deferred import dataclass
from mldb.errors import (
    ClosedError,
    InvalidTypeError,
    InvalidValueError,
    LimitError,
    LockedError,
    ReentryError,
)
from mldb.history.as_of import AsOf, held, resolve, snapshot_intervals
from mldb.log.ownership import OwnedLock
from mldb.query.catalogue import Catalogue, StoreMoment
from mldb.query.columns import TableColumns
from mldb.query.engine import Engine, Relation
from mldb.query.fields import name_fields
from mldb.query.parsed import STATISTICS, STATISTICS_TABLES, ParsedQuery, TableUse, fold_name
from mldb.query.result import QueryResult
from mldb.query.rewrite import parse_query
from mldb.query.running import StoppableWork, StoppedError
from mldb.query.statistics_cache import KnownStatistics, shown_value
from mldb.query.tables.table import TableAsk
from mldb.query.tables.tables import table_called
from mldb.tensors.scope import Scope

if TYPE_CHECKING:
    from mldb.lake.states import LakeStates

_TIMEOUT_MAX: Final = 1e6
_TEXTS_MAX: Final = 256
"""Texts whose meaning is kept."""
_CLOSE_SECONDS: Final = 0.02

_Place = tuple[type, AsOf]


@dataclass(frozen=True, slots=True)
class _Known:
    """What a text came to while its tables had these columns."""

    columns: Mapping[str, Sequence[str]]
    parsed: ParsedQuery


@dataclass(frozen=True, slots=True)
class _Fields:
    """The keys of metadata of one table as a query sees them: column to key, and key to column."""

    names: Mapping[str, str]
    counts: Mapping[_Place, Counter[str]]
    """How often each key is there, at each moment of the query."""


class Queries:
    """What answers the queries of one handle and of its snapshots. Any thread.

    Queries follow one another. A signal handler that asks inside a query of the same thread gets
    ReentryError. ``close`` ends what runs. ``_lock`` guards everything but ``_is_closed``.
    """

    def __init__(self, lakes: Callable[[], LakeStates], *, saves: bool) -> None:
        """*lakes*: what the handle knows of its lakes. *saves*: whether hints may be written."""
        self._lock = OwnedLock("the queries of this handle")
        self._catalogue = Catalogue(lakes)
        self._known = KnownStatistics(saves=saves)
        self._engine: Engine | None = None
        self._texts: OrderedDict[tuple[str, bool], _Known] = OrderedDict()
        self._is_closed = False

    def ask(
        self,
        base: Callable[[], Scope],
        text: str,
        as_of: AsOf,
        timeout: float,
        *,
        first_only: bool = False,
    ) -> QueryResult:
        """Answer *text*; *base* gives the snapshot that moments are looked up from.

        Raises QueryError, LimitError after *timeout* seconds and for too much memory, what as_of
        raises, ClosedError, CorruptError.
        """
        _check_timeout(timeout)
        if self._lock.is_inside():
            raise ReentryError(
                "a query was begun inside a query of the same thread, by a signal handler or a "
                "finalizer. The outer one goes on; ask again behind it."
            )
        with self._lock.hold():
            work = StoppableWork(
                lambda own: self._answer(own, base(), text, as_of, first_only), self._interrupt
            )
            try:
                return work.answer(timeout)
            except TimeoutError:
                raise LimitError(
                    f"the query ran longer than {timeout:g} s and was stopped. Narrow it, or give "
                    "timeout= more seconds."
                ) from None
            except StoppedError:
                raise ClosedError("the store was closed while the query ran") from None

    def _interrupt(self) -> None:
        engine = self._engine
        if engine is not None:
            engine.interrupt()

    def close(self) -> None:
        """End what runs and free the engine. Closing twice is harmless."""
        self._is_closed = True
        while not self._lock.is_inside():
            self._interrupt()
            with suppress(LockedError), self._lock.hold(_CLOSE_SECONDS):
                self._free()
                return

    def _free(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # --- one query, in a thread of its own --------------------------------------------------------

    def _answer(
        self,
        work: StoppableWork[QueryResult],
        base: Scope,
        text: str,
        as_of: AsOf,
        first_only: bool,
    ) -> QueryResult:
        with ExitStack() as stack:
            moments = self._moments(stack, base, (as_of, *moments_in(text)), work.check)
            here = (type(as_of), as_of)
            fields: dict[str, _Fields] = {}
            parsed = self._parsed(text, first_only, partial(_columns_of, fields, moments))
            relations = [
                self._relation(work, use, moments, here, fields[use.table]) for use in parsed.uses
            ]
            scope = moments[here].scope

            def statistic(which: str, name: str, lsn: int) -> float | None:
                return shown_value(getattr(self._known.of(scope, name, lsn, work.check), which))

            answer = self._opened(work).run(parsed.sql, relations, statistic)
            self._known.save(scope)
            return QueryResult(answer.columns, answer.arrays)

    def _moments(
        self, stack: ExitStack, base: Scope, asked: Iterable[AsOf], check: Callable[[], None]
    ) -> dict[_Place, StoreMoment]:
        """Hold the snapshots that are asked about until *stack* ends; all get the newest view."""
        scopes: dict[_Place, Scope] = {}
        for place in {(type(one), one): None for one in asked}:
            scope, hold = held(_scope_at(base, place[1]))
            stack.callback(hold.release)
            scopes[place] = scope
        views = [scope.view for scope in scopes.values()]
        view = max(views, key=lambda one: (one.number, one.commit.lsn))
        return {
            place: StoreMoment(scope._replace(view=view), self._catalogue, check)
            for place, scope in scopes.items()
        }

    def _opened(self, work: StoppableWork[QueryResult]) -> Engine:
        work.check()
        if self._is_closed:
            raise StoppedError
        if self._engine is None:
            self._engine = Engine()
        return self._engine

    def _parsed(
        self, text: str, first_only: bool, columns_of: Callable[[str], Sequence[str]]
    ) -> ParsedQuery:
        """Return what *text* asks for; once while columns are the same."""
        known = self._texts.get((text, first_only))
        if known is not None and all(
            columns_of(table) == columns for table, columns in known.columns.items()
        ):
            self._texts.move_to_end((text, first_only))
            return known.parsed
        seen: dict[str, Sequence[str]] = {}

        def noted(table: str) -> Sequence[str]:
            seen[table] = columns_of(table)
            return seen[table]

        parsed = parse_query(text, noted, first_only=first_only)
        self._texts[text, first_only] = _Known(seen, parsed)
        if len(self._texts) > _TEXTS_MAX:
            self._texts.popitem(last=False)
        return parsed

    def _relation(
        self,
        work: StoppableWork[QueryResult],
        use: TableUse,
        moments: Mapping[_Place, StoreMoment],
        here: _Place,
        fields: _Fields,
    ) -> Relation:
        """What the engine is given for one table at one moment."""
        place = here if use.as_of is None else (type(use.as_of), use.as_of)
        moment, table = moments[place], table_called(use.table)
        shown = _shown(use, table.columns, fields, place)
        chosen = {name: fields.names[name] for name in shown if name in fields.names}
        statistics = sorted(use.named & STATISTICS) if use.table in STATISTICS_TABLES else []
        asked = TableAsk(frozenset(shown) - chosen.keys(), chosen, bool(statistics))
        view, commit = moment.scope.view, moment.scope.commit
        key: object = (use.table, view.number, commit.lsn, tuple(shown), *chosen.items(), asked[2])

        def make() -> TableColumns:
            work.check()
            return table.read(moment, asked)

        return Relation(use.relation, key if table.is_kept else object(), make, shown, statistics)


def moments_in(text: str) -> list[AsOf]:
    """Return what every AS OF of a text says. Raises QueryError."""
    if not isinstance(text, str) or "of" not in text.lower():
        return []
    from mldb.query.grammar import tokens_of
    from mldb.query.limits import check_text, question_of
    from mldb.query.words import cut_moments

    check_text(text)
    _, moments = cut_moments(question_of(tokens_of(text), text), text)
    return [moment.as_of for moment in moments]


def _scope_at(base: Scope, as_of: AsOf) -> Scope:
    """The snapshot that *as_of* means, seen from *base*; None is *base* itself."""
    if as_of is None:
        return base
    row = resolve(base.view, base.intervals, as_of)
    return base._replace(commit=row, intervals=snapshot_intervals(base.view, row))


def _columns_of(
    fields: dict[str, _Fields], moments: Mapping[_Place, StoreMoment], name: str
) -> Sequence[str]:
    """Return the columns of a table at all moments of a query, and note the keys among them."""
    table = table_called(name)
    if name not in fields:
        counts = {place: table.keys_at(moment) for place, moment in moments.items()}
        every: Counter[str] = sum(counts.values(), Counter())
        taken = table.columns
        fields[name] = _Fields(name_fields(every, taken, table.prefix), counts)
    statistics = sorted(STATISTICS) if name in STATISTICS_TABLES else []
    return (*table.columns, *fields[name].names, *statistics)


def _shown(use: TableUse, fixed: Sequence[str], fields: _Fields, place: _Place) -> list[str]:
    """The columns that a query sees of a table; of a star the keys that are there at its moment."""
    counts = fields.counts[place]
    if use.columns is None:
        names = [name for name, key in fields.names.items() if key in counts]
        names += [
            name for name in fields.names if name not in names and fold_name(name) in use.named
        ]
        return [*fixed, *names]
    wanted = use.columns
    return [name for name in (*fixed, *fields.names) if fold_name(name) in wanted] or [fixed[0]]


def _check_timeout(timeout: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidTypeError(f"timeout is a {type(timeout).__name__}; give seconds")
    if not 0 < timeout <= _TIMEOUT_MAX or math.isnan(timeout):
        raise InvalidValueError(
            f"timeout={timeout!r}: give seconds above 0, up to {_TIMEOUT_MAX:g}"
        )
