"""The walk over a tree: every table is found, every column is somebody's, bare words become text.

One SELECT after another, inner ones with what they see of the outer ones. FROM comes first in each,
since the rest is about its columns; what stands in FROM sees what stands before it, as the engine
has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sqlglot import exp

from mldb.errors import QueryError
from mldb.query.grammar import start_of
from mldb.query.messages import comma_list, did_you_mean, refusal, shown_word
from mldb.query.parsed import QUERY_TABLES, STATISTICS, fold_name
from mldb.query.scopes import (
    KnownColumns,
    Occurrence,
    QueryScope,
    QuerySource,
    StarUse,
    alias_columns,
    given_columns,
    made_name,
    rename_table,
    with_new_names,
)
from mldb.query.short_form import make_texts

_QUERIES = (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)
_SHORT_FORM = (
    "A query without FROM is the short form, SELECT tensors WHERE type=weights, where the word "
    "behind SELECT is a table: "
)


class Resolver:
    """Finds tables, columns and words of one tree, which it changes. For one thread, one tree.

    ``occurrences`` and ``stars`` hold what :meth:`resolve` found, in the order of the text.
    """

    def __init__(self, text: str, columns_of: Callable[[str], Sequence[str]]) -> None:
        self.occurrences: list[Occurrence] = []
        self.stars: list[StarUse] = []
        self._text = text
        self._columns_of = columns_of
        self._columns: dict[str, dict[str, str]] = {}

    def columns(self, table: str) -> dict[str, str]:
        """Return the columns of *table*, folded, in order, each with its own spelling."""
        found = self._columns.get(table)
        if found is None:
            found = {fold_name(name): name for name in self._columns_of(table)}
            self._columns[table] = found
        return found

    def resolve(self, tree: exp.Expr, *, is_short: bool) -> None:
        """Walk over *tree*. Raises QueryError for a table or column that is not there."""
        self._query(tree, None, {}, is_short=is_short)

    # --- queries ------------------------------------------------------------------------------

    def _query(
        self,
        node: exp.Expr,
        outer: QueryScope | None,
        tables: Mapping[str, KnownColumns],
        *,
        is_short: bool = False,
    ) -> KnownColumns:
        """Resolve a query and return the columns that it gives."""
        made = node.args.get("with_")
        if made is not None:
            tables = self._with(made, outer, tables)
        if isinstance(node, exp.Select):
            return self._select(node, QueryScope(outer, tables, is_short))
        if isinstance(node, exp.SetOperation):
            return self._set_operation(node, outer, tables)
        scope = QueryScope(outer, tables)
        given: KnownColumns = None
        if isinstance(node, exp.Subquery):
            given = self._query(node.this, outer, tables)
            scope.sources.append(QuerySource(None, given))
        else:
            for row in node.expressions:
                self._walk(row, scope)
        self._modifiers(node, scope)
        return given

    def _with(
        self, made: exp.With, outer: QueryScope | None, tables: Mapping[str, KnownColumns]
    ) -> dict[str, KnownColumns]:
        seen = dict(tables)
        for one in made.expressions:
            name = fold_name(one.alias)
            renamed = alias_columns(one)
            inner = {**seen, name: renamed} if made.args.get("recursive") else seen
            given = self._query(one.this, outer, inner)
            seen[name] = with_new_names(given, renamed)
            label = one.args["alias"]
            label.set("this", exp.Identifier(this=made_name(one.alias), quoted=True))
        return seen

    def _set_operation(
        self, node: exp.Expr, outer: QueryScope | None, tables: Mapping[str, KnownColumns]
    ) -> KnownColumns:
        # A chain of many leans to the left: it is followed in a loop, not a call for each.
        links: list[tuple[exp.Expr, Mapping[str, KnownColumns]]] = [(node, tables)]
        first = node.this
        while isinstance(first, exp.SetOperation):
            made = first.args.get("with_")
            if made is not None:
                tables = self._with(made, outer, tables)
            links.append((first, tables))
            first = first.this
        given = self._query(first, outer, tables)
        for link, seen in reversed(links):
            other = self._query(link.expression, outer, seen)
            if link.args.get("by_name"):
                given = None if given is None or other is None else given | other
            scope = QueryScope(outer, seen)
            scope.sources.append(QuerySource(None, given))
            self._modifiers(link, scope)
        return given

    def _modifiers(self, node: exp.Expr, scope: QueryScope) -> None:
        for part in ("order", "limit", "offset"):
            found = node.args.get(part)
            if found is not None:
                self._walk(found, scope)

    def _select(self, node: exp.Select, scope: QueryScope) -> KnownColumns:
        start = node.args.get("from_")
        if start is not None:
            self._source(start.this, scope)
        for join in node.args.get("joins") or ():
            self._join(join, scope)
        scope.labels.update(
            fold_name(one.alias) for one in node.expressions if isinstance(one, exp.Alias)
        )
        for part, value in node.args.items():
            if part not in {"from_", "joins", "with_"}:
                for child in value if isinstance(value, list) else (value,):
                    if isinstance(child, exp.Expr):
                        self._walk(child, scope)
        return given_columns(node.expressions, scope)

    # --- FROM ---------------------------------------------------------------------------------

    def _source(self, node: exp.Expr, scope: QueryScope) -> None:
        if isinstance(node, exp.Table):
            self._add(self._table(node, scope), node, scope)
            for join in node.args.get("joins") or ():
                self._join(join, scope)
            return
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Table | exp.Subquery):
            inner = node.this
            if isinstance(inner, exp.Table) or not node.alias:
                if node.alias:
                    raise self._error(node, "joins in brackets have no name of their own")
                self._source(inner, scope)
                return
        alias = fold_name(node.alias) or None
        if isinstance(node, _QUERIES):
            given = self._query(node, scope, scope.tables)
        else:
            for child in node.expressions:
                self._walk(child, scope)
            given = None
        self._add(QuerySource(alias, with_new_names(given, alias_columns(node))), node, scope)

    def _table(self, node: exp.Table, scope: QueryScope) -> QuerySource:
        alias = fold_name(node.alias) or None
        if isinstance(node.this, exp.Anonymous):
            return QuerySource(alias or fold_name(node.this.name), alias_columns(node))
        name = fold_name(node.name)
        if name in scope.tables:
            columns = with_new_names(scope.tables[name], alias_columns(node))
            rename_table(node, made_name(node.name))
            return QuerySource(alias or name, columns)
        if name not in QUERY_TABLES:
            known = (*QUERY_TABLES, *scope.tables)
            raise self._error(
                node,
                f"there is no table {shown_word(node.name)}{did_you_mean(name, known)} "
                f"The tables are {comma_list(known)}",
            )
        if alias_columns(node) is not None:
            raise self._error(node, "columns get other names behind SELECT, with AS, not in FROM")
        label = node.args.get("alias")
        ends = {node.this.meta.get("end"), label.this.meta.get("end") if label else None}
        found = Occurrence(
            name, node, self.columns(name), frozenset(end for end in ends if end is not None)
        )
        self.occurrences.append(found)
        return QuerySource(alias or name, frozenset(found.columns), found)

    def _add(self, source: QuerySource, node: exp.Expr, scope: QueryScope) -> None:
        if source.alias is not None and any(s.alias == source.alias for s in scope.sources):
            word = source.alias
            raise self._error(
                node,
                f"two tables are called {shown_word(word)}. Give each its own name, as in "
                f"{word} AS a JOIN {word} AS b USING (name)",
            )
        scope.sources.append(source)

    def _join(self, join: exp.Join, scope: QueryScope) -> None:
        method = str(join.args.get("method") or "").upper()
        if method not in {"", "ASOF"}:
            raise self._error(join, f"{method} JOIN is not allowed; write JOIN … USING (name)")
        self._source(join.this, scope)
        for column in join.args.get("using") or ():
            self._using(column, scope)
        on = join.args.get("on")
        if on is not None:
            self._walk(on, scope)

    def _using(self, column: exp.Expr, scope: QueryScope) -> None:
        name = fold_name(column.name)
        found = False
        for source in scope.sources:
            found = found or source.columns is None or name in source.columns
            if source.occurrence is not None and name in source.occurrence.columns:
                source.occurrence.named.add(name)
        if not found:
            raise self._unknown(column, column.name, scope)

    # --- columns ------------------------------------------------------------------------------

    def _walk(self, root: exp.Expr, scope: QueryScope) -> None:
        stack = [root]
        is_text = partial(self._is_text, scope=scope)
        while stack:
            node = stack.pop()
            if isinstance(node, _QUERIES):
                self._query(node, scope, scope.tables)
            elif isinstance(node, exp.Column):
                self._column(node, scope)
            elif isinstance(node, exp.Star):
                if not isinstance(node.parent, exp.Anonymous):  # COUNT(*) reads no column
                    self._star(node, scope.sources, scope, is_qualified=False)
            elif isinstance(node, exp.Dot):
                raise self._error(
                    node,
                    "a name with dots stands for text only to the right of a comparison; put it in "
                    "single quotes. Functions are written f(x), not x.f()",
                )
            else:
                make_texts(node, is_text)
                stack.extend(node.iter_expressions(reverse=True))

    def _is_text(self, parts: list[exp.Identifier], scope: QueryScope) -> bool:
        """Say whether a word to the right of a comparison is text: it can name no column."""
        if scope.is_short:
            return True
        first = fold_name(parts[0].name)
        if scope.source(first) is not None:
            return False
        return len(parts) > 1 or scope.is_known(first) is False

    def _column(self, node: exp.Column, scope: QueryScope) -> None:
        if node.args.get("db"):
            raise self._error(
                node,
                "a column is written as name or table.name. Text with dots is put in single quotes",
            )
        if node.args.get("table"):
            self._qualified(node, scope)
            return
        name = fold_name(node.name)
        found = scope.name_column(name)
        if found is not False:
            return
        if scope.source(name) is not None:
            raise self._error(
                node,
                f"{shown_word(node.name)} is a table; write a column of it, or text in single "
                "quotes",
            )
        raise self._unknown(node, node.name, scope)

    def _qualified(self, node: exp.Column, scope: QueryScope) -> None:
        alias = fold_name(node.table)
        source = scope.source(alias)
        if source is None:
            known = [s.alias for one in scope.chain() for s in one.sources if s.alias]
            where = f"The tables of this FROM are {comma_list(known)}" if known else _SHORT_FORM
            raise self._error(
                node,
                f"there is no table {shown_word(node.table)} here{did_you_mean(alias, known)} "
                f"{where}. Text with dots is put in single quotes",
            )
        if isinstance(node.this, exp.Star):
            self._star(node.this, [source], scope, is_qualified=True)
        elif source.occurrence is not None:
            name = fold_name(node.name)
            if name not in source.occurrence.columns:
                raise self._unknown(node, node.name, scope, source)
            source.occurrence.named.add(name)

    def _star(
        self,
        star: exp.Star,
        sources: Sequence[QuerySource],
        scope: QueryScope,
        *,
        is_qualified: bool,
    ) -> None:
        for source in sources:
            if source.occurrence is not None:
                source.occurrence.is_starred = True
        self.stars.append(StarUse(star, list(sources), is_qualified))
        for part in ("except_", "rename"):  # names, checked by the engine where they are not ours
            for name in star.args.get(part) or ():
                if (part == "rename") != isinstance(name, exp.Alias):
                    raise self._error(name, "write * EXCLUDE (name) or * RENAME (name AS label)")
                word = name.this if part == "rename" else name
                if scope.is_known(fold_name(word.name)) is False:
                    raise self._unknown(word, word.name, scope)
        for replacement in star.args.get("replace") or ():
            if not isinstance(replacement, exp.Alias):
                raise self._error(replacement, "write * REPLACE (upper(name) AS name)")
            self._walk(replacement.this, scope)

    # --- errors -------------------------------------------------------------------------------

    def _error(self, node: exp.Expr, message: str) -> QueryError:
        return refusal(self._text, start_of(node), message)

    def _unknown(
        self, node: exp.Expr, name: str, scope: QueryScope, only: QuerySource | None = None
    ) -> QueryError:
        sources = [only] if only else [s for one in scope.chain() for s in one.sources]
        ours = {s.occurrence.table: s.occurrence.columns for s in sources if s.occurrence}
        known = {column for s in sources for column in s.columns or ()}
        guess = did_you_mean(name, known)
        if not sources:
            return self._error(
                node,
                f"there is no column {shown_word(name)} without a table"
                f"{did_you_mean(name, QUERY_TABLES)} {_SHORT_FORM}{comma_list(QUERY_TABLES)}",
            )
        lines = [
            f"The columns of {table} are {comma_list(has.values())}." for table, has in ours.items()
        ]
        if fold_name(name) in STATISTICS:
            lines.append("Statistics belong to tensors and versions, and a star leaves them out.")
        lines.append("Text is put in single quotes")
        return self._error(node, f"unknown column {shown_word(name)}{guess} {' '.join(lines)}")
