"""Which name of a query is which column of which table: what the walk over a tree keeps.

A *source* is what stands in FROM: a table of the store, whose columns are known, or something that
the query makes (a subquery, a table of WITH, VALUES), whose columns are known as far as they can be
read off; what they really are is the engine's to say. A *scope* is one SELECT with its sources,
inside the scopes that its subqueries see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from mldb.query.parsed import STATISTICS, STATISTICS_TABLES, fold_name

KnownColumns = frozenset[str] | None
"""Folded names; None where they cannot be told."""


@dataclass(slots=True, eq=False)
class Occurrence:
    """One place where a query reads a table of the store."""

    table: str
    node: exp.Table
    columns: Mapping[str, str]
    """Folded name to the name as the table has it."""
    ends: frozenset[int]
    """Where its name and its alias end in the text: AS OF may stand there."""
    named: set[str] = field(default_factory=set)
    is_starred: bool = False

    @property
    def in_star(self) -> frozenset[str]:
        """The columns that a star gives."""
        names = frozenset(self.columns)
        return names - STATISTICS if self.table in STATISTICS_TABLES else names


@dataclass(slots=True, eq=False)
class QuerySource:
    """One entry of FROM. ``occurrence`` is None for what the query makes itself."""

    alias: str | None
    columns: KnownColumns
    occurrence: Occurrence | None = None


@dataclass(slots=True, eq=False)
class QueryScope:
    """One SELECT, and what it sees. ``is_short``: words to the right are always text."""

    outer: QueryScope | None
    tables: Mapping[str, KnownColumns]
    """Those of WITH that can be seen here."""
    is_short: bool = False
    sources: list[QuerySource] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    """Names that the SELECT gives with AS."""

    def chain(self) -> Iterator[QueryScope]:
        """Yield this scope and those around it, the nearest first."""
        scope: QueryScope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def source(self, alias: str) -> QuerySource | None:
        """Return the source called *alias* that is nearest."""
        for scope in self.chain():
            for source in scope.sources:
                if source.alias == alias:
                    return source
        return None

    def name_column(self, name: str) -> bool | None:
        """Note that the query names the column *name* without a table, wherever it is.

        Return False where nothing here can have it, None where something may that is not known.
        """
        is_open = False
        for scope in self.chain():
            found = name in scope.labels
            for source in scope.sources:
                if source.columns is None:
                    is_open = True
                elif name in source.columns:
                    found = True
                    if source.occurrence is not None:
                        source.occurrence.named.add(name)
            if found:
                return True
        return None if is_open else False

    def is_known(self, name: str) -> bool | None:
        """Say as ``name_column`` whether a column is called *name*, and note nothing."""
        is_open = False
        for scope in self.chain():
            if name in scope.labels:
                return True
            for source in scope.sources:
                if source.columns is None:
                    is_open = True
                elif name in source.columns:
                    return True
        return None if is_open else False


@dataclass(slots=True, eq=False)
class StarUse:
    """One star: the node that holds what it leaves out, and the tables of the store in it."""

    star: exp.Star
    sources: list[QuerySource]
    is_qualified: bool


def alias_columns(node: exp.Expr) -> KnownColumns:
    """Return the names that ``AS t(a, b)`` gives, None where it gives none."""
    alias = node.args.get("alias")
    columns = alias.args.get("columns") if isinstance(alias, exp.TableAlias) else None
    return frozenset(fold_name(column.name) for column in columns) if columns else None


def with_new_names(given: KnownColumns, names: KnownColumns) -> KnownColumns:
    """Return the columns of something that gives *given*, some of which got new *names*."""
    if names is None:
        return given
    return names | (given or frozenset())


def given_columns(projections: Sequence[exp.Expr], scope: QueryScope) -> KnownColumns:
    """Return the columns that a SELECT gives, None where one has no name that is known."""
    names: set[str] = set()
    for one in projections:
        while isinstance(one, exp.Paren):
            one = one.this
        sources: Sequence[QuerySource]
        if isinstance(one, exp.Alias):
            names.add(fold_name(one.alias))
            continue
        if isinstance(one, exp.Column) and not isinstance(one.this, exp.Star):
            names.add(fold_name(one.name))
            continue
        if isinstance(one, exp.Star):
            star, sources = one, scope.sources
        elif isinstance(one, exp.Column):
            source = scope.source(fold_name(one.table))
            star, sources = one.this, [] if source is None else [source]
        else:
            return None
        for source in sources:
            if source.columns is None:
                return None
            names |= source.occurrence.in_star if source.occurrence else source.columns
        if star.args.get("rename"):
            return None
    return frozenset(names)


def made_name(name: str) -> str:
    """Return what a table of WITH called *name* is called in SQL.

    The engine has tables of its own, and none of this name: were a table of WITH ever lost on the
    way, nothing else would be read in its place.
    """
    return f"with__{name}"


def rename_table(node: exp.Table, name: str) -> None:
    """Make *node* read the table *name*; the rest of the query calls it as before."""
    alias, before = node.args.get("alias"), exp.Identifier(this=node.name, quoted=True)
    if alias is None:
        node.set("alias", exp.TableAlias(this=before))
    elif alias.args.get("this") is None:
        alias.set("this", before)
    node.set("this", exp.Identifier(this=name, quoted=True))
