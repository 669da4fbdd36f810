"""The parser and the generator: sqlglot's of the engine's dialect, made to change less.

All of a text goes through a tree and is written anew: comments are gone, every name is in double
quotes, so what the engine reads is what was checked. Functions keep their names: sqlglot would
translate some, and it is the names that are allowed or refused.

Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Final

from sqlglot import Token, TokenType, exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError, TokenError
from sqlglot.generators.duckdb import DuckDBGenerator
from sqlglot.parsers.duckdb import DuckDBParser

from mldb.errors import QueryError
from mldb.query.limits import number_in_name
from mldb.query.messages import refusal, shown_word

COMMA: Final = "is_comma"
"""What the meta of a join says of it: it is a comma in FROM."""

_SPECIAL_ARGUMENTS: Final = ("CAST", "TRY_CAST", "EXTRACT", "TRIM", "POSITION", "SUBSTRING")
_DIALECT: Final = DuckDB()
# Lists are counted from 1 in the text and in the engine: nothing is to be added or taken away, and
# no line to be logged about it.
_DIALECT.INDEX_OFFSET = 0


class _PlainParser(DuckDBParser):
    """Leaves functions as they are written, but for those with words among their arguments."""

    FUNCTIONS: ClassVar[dict[str, Callable[..., Any]]] = {}
    FUNCTION_PARSERS: ClassVar[dict[str, Callable[..., Any]]] = {
        name: DuckDBParser.FUNCTION_PARSERS[name] for name in _SPECIAL_ARGUMENTS
    }
    NO_PAREN_FUNCTIONS: ClassVar[dict[TokenType, Any]] = {
        TokenType.CURRENT_DATE: exp.CurrentDate,
        TokenType.CURRENT_TIME: exp.CurrentTime,
        TokenType.CURRENT_TIMESTAMP: exp.CurrentTimestamp,
    }
    NO_PAREN_FUNCTION_PARSERS: ClassVar[dict[str, Callable[..., Any]]] = {
        "CASE": DuckDBParser.NO_PAREN_FUNCTION_PARSERS["CASE"]
    }

    def _parse_join(
        self,
        skip_join_token: bool = False,
        parse_bracket: bool = False,
        alias_tokens: Collection[TokenType] | None = None,
    ) -> exp.Join | None:
        # In the tree "a, b" and "a LEFT JOIN b" without ON are the same, and so is their SQL.
        is_comma = bool(self._curr) and self._curr.token_type is TokenType.COMMA
        join = super()._parse_join(skip_join_token, parse_bracket, alias_tokens)
        if join is not None:
            join.meta[COMMA] = is_comma
        return join

    def _warn_unsupported(self) -> None:
        # It would log, and take what follows as a command of which nothing is known.
        self.raise_error("no query")


class _PlainGenerator(DuckDBGenerator):
    """Writes what ``_PlainParser`` left."""

    def ignorenulls_sql(self, expression: exp.IgnoreNulls) -> str:
        return self._inside(expression, "IGNORE NULLS")

    def respectnulls_sql(self, expression: exp.RespectNulls) -> str:
        return self._inside(expression, "RESPECT NULLS")

    def neg_sql(self, expression: exp.Neg) -> str:
        return self._prefixed("-", expression)

    def bitwisenot_sql(self, expression: exp.BitwiseNot) -> str:
        return self._prefixed("~", expression)

    def _prefixed(self, sign: str, expression: exp.Expr) -> str:
        operand = self.sql(expression, "this")
        space = "" if operand[:1].isalnum() or operand[:1] in {'"', "("} else " "
        return f"{sign}{space}{operand}"  # -~ would be one operator, and -- a comment

    def _inside(self, expression: exp.Expr, words: str) -> str:
        call = expression.this
        if not isinstance(call, exp.Anonymous):  # f(x IGNORE NULLS), which is where it belongs
            return f"{self.sql(expression, 'this')} {words}"
        arguments = self.expressions(call, flat=True)
        return f"{call.this}({arguments} {words})"


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of *text*. Raises QueryError where a quote or comment has no end."""
    try:
        return _DIALECT.tokenize(text)
    except (SqlglotError, RecursionError) as error:
        raise refusal(text, None, f"the query cannot be read: {_reason(error)}") from error
    except Exception as error:  # whatever a tokenizer trips over, it is the text
        raise refusal(text, None, "the query cannot be read") from error


def parse_tokens(tokens: list[Token], text: str) -> exp.Expr:
    """Return the one statement of *tokens*. Raises QueryError with the place in *text*."""
    parser = _PlainParser(dialect=_DIALECT, error_level=ErrorLevel.IMMEDIATE)
    try:
        trees = parser.parse(tokens, text)
    except ParseError as error:
        raise _explained(error, tokens, text) from error
    except RecursionError as error:
        raise too_deep(text) from error
    except Exception as error:  # whatever a parser trips over, it is the text
        raise refusal(text, None, "the query cannot be understood") from error
    found = [tree for tree in trees if tree is not None and not isinstance(tree, exp.Semicolon)]
    if len(found) != 1:
        raise refusal(text, None, "one text is one query. Write SELECT name FROM tensors")
    return found[0]


def sql_of(tree: exp.Expr, text: str) -> str:
    """Return *tree* as the engine reads it. *tree* is used up; *text* is for the error."""
    for node in list(tree.find_all(exp.JSONExtract, exp.JSONExtractScalar)):
        # The engine binds these less tightly than the tree that was checked.
        if not isinstance(node.parent, exp.Paren):
            arrow = exp.Paren()
            node.replace(arrow)
            arrow.set("this", node)
    generator = _PlainGenerator(
        dialect=_DIALECT,
        comments=False,
        identify=True,
        normalize_functions=False,
        unsupported_level=ErrorLevel.RAISE,
    )
    try:
        return generator.generate(tree, copy=False)
    except RecursionError as error:
        raise too_deep(text) from error
    except Exception as error:  # what passed the allow-list and still has no SQL
        raise refusal(text, None, f"the query cannot be run: {_reason(error)}") from error


def start_of(node: exp.Expr) -> int | None:
    """Return where in the text *node* starts, as far as its names tell."""
    starts = [found for child in node.walk() if (found := child.meta.get("start")) is not None]
    return min(starts, default=None)


def too_deep(text: str) -> QueryError:
    """Return the error for a query that took more of the stack than there is."""
    return refusal(
        text,
        None,
        "the query is nested too deep. Write name IN ('a', 'b') for long chains of OR, and give "
        "subqueries names with WITH",
    )


def _reason(error: BaseException) -> str:
    return (
        "quotes or a comment have no end"
        if isinstance(error, TokenError)
        else ("it uses something that has no counterpart in the engine")
    )


def _explained(error: ParseError, tokens: Sequence[Token], text: str) -> QueryError:
    """Return what the parser stumbled over, in words for who wrote the query."""
    details = error.errors[0] if error.errors else {}
    place = (details.get("line"), details.get("col"))
    index = next((i for i, t in enumerate(tokens) if (t.line, t.col) == place), len(tokens) - 1)
    token = tokens[index]
    before = tokens[index - 1] if index else token
    numbered = number_in_name(text, token.start) or number_in_name(text, before.start)
    if numbered is not None:
        return numbered
    hint = "Check the word before it, commas and brackets"
    if TokenType.MOD in {token.token_type, before.token_type}:
        hint = "Patterns need quotes: write name LIKE 'enc%'"
    elif token.token_type not in {TokenType.VAR, TokenType.NUMBER} and token.text.isidentifier():
        word = token.text
        hint = f"As text write '{word}' in single quotes, as a column \"{word}\" in double quotes"
    return refusal(
        text, token.start, f"the query cannot be understood at {shown_word(token.text)}. {hint}"
    )
