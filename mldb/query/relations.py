"""From the tables of a query to relations: which moment each is of, and what it is called.

A table that a query reads at two moments is two relations; one that it reads twice at one moment is
one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import count

from sqlglot import exp

from mldb.log.index.address import Lsn
from mldb.query.grammar import start_of
from mldb.query.messages import refusal
from mldb.query.parsed import STATISTICS, STATISTICS_TABLES, TableUse, fold_name
from mldb.query.scopes import Occurrence, StarUse, rename_table
from mldb.query.words import AsOfClause

_AsOf = int | Lsn | datetime | str | None


def make_relations(
    occurrences: Sequence[Occurrence],
    stars: Sequence[StarUse],
    moments: Sequence[AsOfClause],
    taken: Collection[str],
    text: str,
) -> tuple[TableUse, ...]:
    """Put relations in the place of the tables of a tree, and return what they are.

    *taken* are the words of the text, which no relation is called. Raises QueryError for a moment
    that belongs to no table, or may belong to one or to all.
    """
    dated = _dated(occurrences, moments, text)
    groups: dict[tuple[str, type, _AsOf], list[Occurrence]] = {}
    for occurrence in sorted(occurrences, key=lambda one: start_of(one.node.this) or 0):
        as_of = dated.get(id(occurrence))
        # An epoch and an Lsn of the same number are equal, and two moments.
        groups.setdefault((occurrence.table, type(as_of), as_of), []).append(occurrence)
    words = {fold_name(word) for word in taken}
    numbers = {table: count() for table in {one.table for one in occurrences}}
    uses = []
    named: dict[int, frozenset[str]] = {}
    for (table, _, as_of), found in groups.items():
        relation = next(name for n in numbers[table] if (name := f"{table}__{n}") not in words)
        names = frozenset().union(*(one.named for one in found))
        columns = None if any(one.is_starred for one in found) else names
        uses.append(TableUse(table, relation, as_of, columns, names))
        for one in found:
            named[id(one)] = names
            rename_table(one.node, relation)
    for star in stars:
        _leave_out_statistics(star, named)
    return tuple(uses)


def _dated(
    occurrences: Sequence[Occurrence], moments: Sequence[AsOfClause], text: str
) -> dict[int, _AsOf]:
    """Return the moment of each occurrence that has one, by the id of the occurrence."""
    dated: dict[int, _AsOf] = {}
    for moment in moments:
        owner = next((one for one in occurrences if moment.after in one.ends), None)
        others = [one for one in occurrences if one is not owner and id(one) not in dated]
        if owner is not None and id(owner) in dated:
            raise refusal(text, moment.start, "one table has two AS OF. Leave one out")
        if owner is not None and moment.is_last and others:
            raise refusal(
                text,
                moment.start,
                f"{moment.words} may be meant for {owner.table} alone or for all tables. For "
                f"{owner.table} alone write {moment.words} AS {owner.table[0]}, with any name "
                "behind it, or put its SELECT in brackets; for all write it behind each",
            )
        if owner is not None:
            dated[id(owner)] = moment.as_of
        elif moment.is_last and others:
            dated.update((id(one), moment.as_of) for one in others)
        elif moment.is_last and occurrences:
            raise refusal(text, moment.start, "every table has an AS OF of its own already")
        else:
            raise refusal(
                text,
                moment.start,
                f"{moment.words} stands behind no table. Write it behind the name of one, as in "
                f"FROM tensors {moment.words}, or at the end of the text for all of them",
            )
    return dated


def _leave_out_statistics(use: StarUse, named: dict[int, frozenset[str]]) -> None:
    """Keep statistics out of a star, whatever else the query names: a star is always the same."""
    kept = [
        column
        for column in use.star.args.get("except_") or ()
        if not any(_is_statistic(column, one.occurrence, use) for one in use.sources)
    ]
    for source in use.sources:
        occurrence = source.occurrence
        if occurrence is None or occurrence.table not in STATISTICS_TABLES:
            continue
        for name in sorted(named[id(occurrence)] & STATISTICS):
            table = None if use.is_qualified else exp.Identifier(this=source.alias, quoted=True)
            column = exp.Identifier(this=occurrence.columns[name], quoted=True)
            kept.append(exp.Column(this=column, table=table))
    use.star.set("except_", kept or None)


def _is_statistic(column: exp.Expr, occurrence: Occurrence | None, use: StarUse) -> bool:
    """Say whether *column*, which a star is told to leave out, is a statistic of *occurrence*."""
    if occurrence is None or occurrence.table not in STATISTICS_TABLES:
        return False
    name = fold_name(column.name)
    others = (one for one in use.sources if one.occurrence is not occurrence)
    return name in STATISTICS and not any(
        one.columns is None or name in one.columns for one in others
    )
