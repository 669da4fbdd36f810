"""How long and how deep a text may be, and which statements it may hold.

All is decided on the tokens, before a tree is made: the parser takes a stack frame or twenty for
every bracket, and knows statements that are no question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sqlglot import Token, TokenType

from mldb.errors import QueryError
from mldb.query.messages import NUMBERED_NAME, refusal, shown_word

TEXT_CHARACTERS_MAX: Final = 65_536
BRACKETS_MAX: Final = 32
SELECTS_MAX: Final = 200
_TOKENS_MAX: Final = 16_384
_PREFIXES_MAX: Final = 16
_NUMBER_CHARACTERS_MAX: Final = 100

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_OPENING: Final = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSING: Final = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE})
_PREFIXES: Final = frozenset(
    {TokenType.NOT, TokenType.DASH, TokenType.PLUS, TokenType.TILDE, TokenType.PARAMETER}
)
_STARTS: Final = frozenset(
    {TokenType.SELECT, TokenType.WITH, TokenType.FROM, TokenType.VALUES, TokenType.L_PAREN}
)
_IN_CTE: Final = frozenset(
    {*_STARTS, TokenType.PARTITION_BY, TokenType.ORDER_BY, TokenType.R_PAREN, TokenType.ROWS}
)

_CHECKED: Final = frozenset(
    {
        *(TokenType.SEMICOLON, TokenType.NUMBER, TokenType.ALIAS, TokenType.WITH),
        *(TokenType.PIPE_GT, TokenType.VAR),
    }
)
_HALVES: Final = frozenset({"ORDER", "GROUP", "PARTITION"})


def check_text(text: str) -> None:
    """Raise QueryError for a text that is too long, or has characters that no query has."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise refusal(
            text,
            None,
            f"the query has {len(text):,} characters, the limit is {TEXT_CHARACTERS_MAX:,}. "
            "Ask in several queries, or filter the result in Python",
        )
    forbidden = _FORBIDDEN.search(text)
    if forbidden is not None:
        raise refusal(
            text,
            forbidden.start(),
            f"the query holds the character U+{ord(forbidden.group()):04X}. Leave it out",
        )


def question_of(tokens: Sequence[Token], text: str) -> list[Token]:
    """Return *tokens* without semicolons at the end: those of one question of a bounded depth.

    Raises QueryError for everything else.
    """
    end = len(tokens)
    while end and tokens[end - 1].token_type is TokenType.SEMICOLON:
        end -= 1
    if not end:
        raise refusal(text, None, "the query is empty. Write SELECT name FROM tensors")
    if end > _TOKENS_MAX:
        raise refusal(text, None, f"the query has {end:,} words, the limit is {_TOKENS_MAX:,}")
    question = list(tokens[:end])
    _check_start(question[0], text)
    depth = prefixes = selects = 0
    for index, token in enumerate(question):
        kind = token.token_type
        if kind in _OPENING or kind is TokenType.CASE:
            depth += 1
        elif kind in _CLOSING or kind is TokenType.END:
            depth -= 1
        elif kind is TokenType.SELECT or kind is TokenType.VALUES:
            selects += 1
        elif kind in _CHECKED:
            _check_token(question, index, text)
        prefixes = prefixes + 1 if kind in _PREFIXES else 0
        if depth > BRACKETS_MAX or prefixes > _PREFIXES_MAX or selects > SELECTS_MAX:
            what = (
                f"{BRACKETS_MAX} brackets or CASE inside each other, {_PREFIXES_MAX} signs in a "
                f"row, {SELECTS_MAX} times SELECT"
            )
            raise refusal(text, token.start, f"the query is nested too deep; the limits are {what}")
    return question


def _check_token(tokens: Sequence[Token], index: int, text: str) -> None:
    token = tokens[index]
    if token.token_type is TokenType.SEMICOLON:
        following = tokens[index + 1]
        raise refusal(
            text,
            following.start,
            f"a second statement starts at {shown_word(following.text)}. One text is one query; "
            "nothing of it was run",
        )
    if token.token_type is TokenType.NUMBER:
        _check_number(tokens, index, text)
    elif token.token_type is TokenType.ALIAS:
        _check_cte(tokens, index, text)
    elif token.token_type is TokenType.WITH:
        # Behind UNION it is read, and lost when SQL is written: its tables would be others.
        if index and tokens[index - 1].token_type is not TokenType.L_PAREN:
            message = "WITH stands at the start of a query or behind a bracket"
            raise refusal(text, token.start, message)
    elif token.token_type is TokenType.PIPE_GT:
        raise refusal(text, token.start, "the query holds |>. Write it as SELECT … FROM …")
    elif token.text.upper() in _HALVES:  # the parser takes a lone one as the name of a table
        word = token.text
        raise refusal(
            text,
            token.start,
            f"{word} goes with BY, as in {word} BY name. As text write '{word}' in single quotes",
        )


def _check_start(token: Token, text: str) -> None:
    if token.token_type not in _STARTS:
        raise refusal(
            text,
            token.start,
            f"a query starts with SELECT, not with {shown_word(token.text)}. Queries only read: "
            "nothing can be changed, attached, copied or set by one",
        )


def _check_number(tokens: Sequence[Token], index: int, text: str) -> None:
    token = tokens[index]
    if len(token.text) > _NUMBER_CHARACTERS_MAX:
        raise refusal(
            text, token.start, f"a number has more than {_NUMBER_CHARACTERS_MAX} characters"
        )
    following = tokens[index + 1] if index + 1 < len(tokens) else None
    # 0xFF is read as 0 with the name xFF here, and as 255 by the engine.
    if following is None or following.start != token.end + 1:
        return
    if following.token_type in {TokenType.VAR, TokenType.NUMBER} or following.text[:1].isalpha():
        raise number_in_name(text, token.start) or refusal(
            text,
            token.start,
            f"{shown_word(text[token.start : following.end + 1])} is neither a number nor a name. "
            "Write numbers in decimal, and text in single quotes",
        )


def number_in_name(text: str, offset: int) -> QueryError | None:
    """Return the error for an unquoted name with numbers that stands at *offset*, if one does."""
    for found in NUMBERED_NAME.finditer(text):
        if found.start() <= offset <= found.end():
            name = found.group()
            return refusal(
                text,
                found.start(),
                f"{name} has a number between its dots and needs quotes: write '{name}'",
            )
    return None


def _check_cte(tokens: Sequence[Token], index: int, text: str) -> None:
    """Refuse ``AS (`` with a statement in it: the parser would take any."""
    following = list(tokens[index + 1 : index + 5])
    while following and following[0].text.upper() in {"NOT", "MATERIALIZED"}:
        following.pop(0)
    if len(following) < 2 or following[0].token_type is not TokenType.L_PAREN:
        return
    inner = following[1]
    is_word = inner.token_type in {TokenType.VAR, TokenType.IDENTIFIER, TokenType.RANGE}
    if inner.token_type not in _IN_CTE and not is_word:
        raise refusal(
            text,
            inner.start,
            f"a table in WITH is made by SELECT, not by {shown_word(inner.text)}",
        )
