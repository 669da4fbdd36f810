"""What a query may be made of: classes of nodes, their parts, types, units, functions.

A list of what is allowed, not of what is forbidden: fuzzing a list of forbidden things got
``LATERAL information_schema.tables`` through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlglot import exp

from mldb.errors import QueryError
from mldb.query.functions import (
    GROWTH_MAX,
    TABLE_FUNCTIONS,
    text_growth_of,
    why_refused,
    wrong_size,
)
from mldb.query.grammar import COMMA, start_of
from mldb.query.limits import number_in_name
from mldb.query.messages import comma_list, refusal, shown_word

_QUERIES: Final = (
    *(exp.Select, exp.Union, exp.Except, exp.Intersect, exp.Subquery, exp.Values, exp.With),
    *(exp.CTE, exp.From, exp.Join, exp.Table, exp.TableAlias, exp.Unnest, exp.Where, exp.Group),
    *(exp.Rollup, exp.Cube, exp.GroupingSets, exp.Having, exp.Qualify, exp.Order, exp.Ordered),
    *(exp.Limit, exp.Offset, exp.Distinct, exp.Window, exp.WindowSpec, exp.Filter),
    *(exp.IgnoreNulls, exp.RespectNulls),
)
_VALUES: Final = (
    *(exp.Alias, exp.Star, exp.Column, exp.Identifier, exp.Dot, exp.Literal, exp.Boolean),
    *(exp.Null, exp.Array, exp.Tuple, exp.Paren, exp.Interval, exp.Var, exp.DataType),
    *(exp.DataTypeParam, exp.Bracket, exp.Slice, exp.Anonymous, exp.CurrentDate),
    *(exp.CurrentTime, exp.CurrentTimestamp),
)
_OPERATORS: Final = (
    *(exp.And, exp.Or, exp.Not, exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE),
    *(exp.NullSafeEQ, exp.NullSafeNEQ, exp.Is, exp.In, exp.Between, exp.Like, exp.ILike),
    *(exp.SimilarTo, exp.Glob, exp.Escape, exp.RegexpLike, exp.StartsWith, exp.Exists),
    *(exp.Any, exp.All, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Pow),
    *(exp.Neg, exp.DPipe, exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseNot),
    *(exp.BitwiseLeftShift, exp.BitwiseRightShift, exp.Case, exp.If, exp.Cast, exp.TryCast),
    *(exp.Extract, exp.Trim, exp.StrPosition, exp.Substring, exp.JSONExtract),
    *(exp.JSONExtractScalar, exp.JSONPath, exp.JSONPathRoot, exp.JSONPathKey),
    exp.JSONPathSubscript,
)
NODES: Final = frozenset((*_QUERIES, *_VALUES, *_OPERATORS))

# Parts of a node that are set by clauses which must not pass, some of them plain words.
_PARTS: Final[dict[type, frozenset[str]]] = {
    exp.Select: frozenset(
        {
            *("with_", "distinct", "expressions", "from_", "joins", "where", "group", "having"),
            *("qualify", "windows", "order", "limit", "offset"),
        }
    ),
    exp.Table: frozenset({"this", "alias", "joins"}),
    exp.TableAlias: frozenset({"this", "columns"}),
    exp.Subquery: frozenset({"this", "alias", "with_", "order", "limit", "offset"}),
    exp.Values: frozenset({"expressions", "alias", "order", "limit", "offset"}),
    exp.Unnest: frozenset({"expressions", "alias"}),
    exp.With: frozenset({"expressions", "recursive"}),
    exp.CTE: frozenset({"this", "alias", "materialized"}),
    exp.Join: frozenset({"this", "on", "using", "side", "kind", "method"}),
    exp.Limit: frozenset({"expression"}),
    exp.Cast: frozenset({"this", "to"}),
    exp.TryCast: frozenset({"this", "to", "safe"}),
    exp.Star: frozenset({"except_", "replace", "rename"}),
    exp.Column: frozenset({"this", "table", "db", "catalog"}),
    exp.In: frozenset({"this", "expressions", "query", "field"}),
    exp.Anonymous: frozenset({"this", "expressions"}),
}
_PLURALS: Final = (
    *("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND", "MILLISECOND"),
    *("MICROSECOND", "DECADE"),
)
_UNITS: Final = frozenset(
    {
        *_PLURALS,
        *(f"{unit}S" for unit in _PLURALS),
        *("DOW", "ISODOW", "DOY", "DAYOFWEEK", "DAYOFYEAR", "ISOYEAR", "YEARWEEK", "EPOCH"),
        "ALL",  # GROUP BY ALL, ORDER BY ALL
    }
)
_FRAMES: Final = frozenset({"CURRENT ROW", "TIES", "NO OTHERS"})
_DTYPE: Final = exp.DataType.Type
_TYPES: Final = frozenset(
    {
        *(_DTYPE.BOOLEAN, _DTYPE.TINYINT, _DTYPE.SMALLINT, _DTYPE.INT, _DTYPE.BIGINT),
        *(_DTYPE.INT128, _DTYPE.UTINYINT, _DTYPE.USMALLINT, _DTYPE.UINT, _DTYPE.UBIGINT),
        *(_DTYPE.UINT128, _DTYPE.FLOAT, _DTYPE.DOUBLE, _DTYPE.DECIMAL, _DTYPE.TEXT),
        *(_DTYPE.DATE, _DTYPE.TIME, _DTYPE.TIMESTAMP, _DTYPE.TIMESTAMPNTZ, _DTYPE.TIMESTAMPTZ),
        *(_DTYPE.TIMESTAMP_S, _DTYPE.TIMESTAMP_MS, _DTYPE.TIMESTAMP_NS, _DTYPE.INTERVAL),
        *(_DTYPE.JSON, _DTYPE.ARRAY, _DTYPE.LIST),
    }
)
_NODES_MAX: Final = 32_768
_DEPTH_MAX: Final = 400  # chains of operators; the engine's own limit is 1,000

_INSTEAD: Final[dict[str, str]] = {
    "lambda": "functions inside functions are not; use list_sum, list_max and the like, or unnest",
    "comprehension": "list comprehensions are not; use list_sum, list_max and the like, or unnest",
    "placeholder": "parameters are not; write the value itself",
    "parameter": "parameters are not; write the value itself",
    "lateral": "LATERAL is not; leave the word out, a subquery sees the tables before it",
    "tablesample": "samples are not; use ORDER BY random() LIMIT n",
    "positionalcolumn": "column numbers are not; name the column",
    "withingroup": "WITHIN GROUP is not; use quantile_cont(column, 0.5)",
    "historicaldata": "AT (…) is not; write AS OF EPOCH 3",
    "version": "FOR VERSION is not; write AS OF EPOCH 3",
    "fetch": "FETCH is not; write LIMIT n",
    "propertyeq": "named arguments are not; give them by position",
    "struct": "structs are not; use columns",
    "collate": "COLLATE is not; compare lower(a) with lower(b)",
}


def check_tree(tree: exp.Expr, text: str) -> None:
    """Raise QueryError for the first thing in *tree* that no query may have."""
    if not isinstance(tree, (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)):
        raise refusal(text, None, "a query is a SELECT. Write SELECT name FROM tensors")
    growth = 1
    for node in _nodes(tree, text):
        if type(node) not in NODES:
            raise _not_allowed(node, text)
        if isinstance(node, exp.Select):
            _check_select(node, text)
        parts = _PARTS.get(type(node))
        if parts is not None:
            _check_parts(node, parts, text)
        if isinstance(node, exp.Anonymous):
            growth *= _check_call(node, text)
            if growth > GROWTH_MAX:
                message = "the replacements of this query can make a text too long; use fewer"
                raise refusal(text, start_of(node), message)
        elif isinstance(node, exp.DataType):
            _check_type(node, text)
        elif isinstance(node, exp.Join):
            _check_join(node, text)
        elif isinstance(node, exp.Var):
            words = _FRAMES if isinstance(node.parent, exp.WindowSpec) else _UNITS
            if str(node.this).upper() not in words:
                message = f"{shown_word(str(node.this))} is not known here, as a unit of time or so"
                raise refusal(text, start_of(node), message)
        elif isinstance(node, exp.Column) and not isinstance(node.this, (exp.Identifier, exp.Star)):
            start = start_of(node)
            raise (start is not None and number_in_name(text, start)) or refusal(
                text, start, "a column is written as a name, or as table.name"
            )


def _nodes(tree: exp.Expr, text: str) -> Iterator[exp.Expr]:
    count = 0
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if depth > _DEPTH_MAX or count > _NODES_MAX:
            raise refusal(
                text,
                None,
                f"the query is too deep or too large; the limits are {_DEPTH_MAX} operators in a "
                f"chain and {_NODES_MAX:,} parts. Write name IN ('a', 'b') for chains of OR",
            )
        yield node
        stack.extend((child, depth + 1) for child in node.iter_expressions(reverse=True))


def _not_allowed(node: exp.Expr, text: str) -> QueryError:
    instead = _INSTEAD.get(node.key)
    what = instead or f"{shown_word(node.key.upper())} is not"
    return refusal(
        text, start_of(node), f"SELECT with joins, subqueries and windows is allowed here; {what}"
    )


def _check_select(node: exp.Select, text: str) -> None:
    joins = node.args.get("joins") or ()
    if not node.expressions or (joins and not node.args.get("from_")):
        raise refusal(
            text, start_of(node), "SELECT needs columns, and joins a FROM: SELECT name FROM …"
        )


def _check_join(node: exp.Join, text: str) -> None:
    """Refuse a join without a condition: it would be every row with every row, and no error."""
    is_bare = not node.args.get("on") and not node.args.get("using")
    is_meant = node.meta.get(COMMA) or "CROSS" in str(node.args.get("kind")).upper()
    if is_bare and not is_meant and not node.args.get("method"):
        raise refusal(
            text,
            start_of(node),
            "JOIN needs a condition: write USING (name) or ON a.name = b.name behind the table; "
            "every row with every row is CROSS JOIN",
        )


def _check_parts(node: exp.Expr, allowed: frozenset[str], text: str) -> None:
    is_table = isinstance(node, exp.Table)
    wrong = next((part for part, value in node.args.items() if value and part not in allowed), "")
    if is_table and (
        wrong in {"db", "catalog"} or not isinstance(node.this, (exp.Identifier, exp.Anonymous))
    ):
        raise refusal(
            text, start_of(node), "a table is one name, such as tensors; schemas there are none"
        )
    if wrong:
        word = shown_word(wrong.rstrip("_").upper())
        raise refusal(text, start_of(node), f"{word} cannot be used with {node.key.upper()}")


def _check_call(node: exp.Anonymous, text: str) -> int:
    """Refuse a call that is not allowed; return how much longer it can make a text."""
    name = node.this.lower() if isinstance(node.this, str) else ""
    if not name:
        raise refusal(text, start_of(node), "a function is written without quotes")
    in_from = isinstance(node.parent, exp.Table)
    if in_from and name not in TABLE_FUNCTIONS:
        what = f"{shown_word(name)} gives no table; of functions, {comma_list(TABLE_FUNCTIONS)} do"
        raise refusal(text, start_of(node), why_refused(name) or what)
    arguments = node.expressions
    wrong = why_refused(name) or wrong_size(name, arguments)
    if (
        wrong is None
        and any(isinstance(one, exp.Star) for one in arguments)
        and (name != "count" or len(arguments) > 1)
    ):
        wrong = f"{name}(*) is not possible; name a column"
    if wrong is not None:
        raise refusal(text, start_of(node), wrong)
    return text_growth_of(name, arguments)


def _check_type(node: exp.DataType, text: str) -> None:
    if node.this not in _TYPES or node.args.get("values") or node.args.get("kind"):
        start = start_of(node) if node.parent is None else start_of(node.parent)
        raise refusal(
            text,
            start,
            "this type cannot be cast to. Plain ones can: INTEGER, BIGINT, DOUBLE, DECIMAL(10, 2), "
            "VARCHAR, BOOLEAN, DATE, TIMESTAMP, INTERVAL, JSON, and lists such as INTEGER[]",
        )
