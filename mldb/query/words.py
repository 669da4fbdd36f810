"""AS OF: which moment a query asks about.

``AS OF EPOCH 3``, ``AS OF LSN 17``, ``AS OF TAG 'best'`` (or a checkpoint's name) and
``AS OF TIMESTAMP '2026-01-31 12:00:00+01:00'`` (UTC where no zone is given) are cut from the tokens
before they are parsed; text in quotes is one token and stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlglot import Token, TokenType

from mldb.log.index.address import Lsn
from mldb.query.messages import refusal, shown_word

_KINDS: Final = {
    "EPOCH": TokenType.NUMBER,
    "LSN": TokenType.NUMBER,
    "TAG": TokenType.STRING,
    "TIMESTAMP": TokenType.STRING,
}
_FORMS: Final = (
    "AS OF EPOCH 3, AS OF LSN 17, AS OF TAG 'best' or AS OF TIMESTAMP '2026-01-31 12:00'"
)
_NUMBER_MAX: Final = 2**63 - 1
_DIGITS = re.compile(r"[0-9](?:_?[0-9])*")
# What may follow a column that is called "of", as in SELECT name AS of FROM tensors, is none of
# these.
_VALUES: Final = frozenset({TokenType.NUMBER, TokenType.STRING, TokenType.DASH})


@dataclass(frozen=True, slots=True)
class AsOfClause:
    """One AS OF of a text: what it says, and where it stands. Offsets are characters."""

    as_of: int | Lsn | datetime | str
    start: int
    after: int
    """Where the token before it ends, which tells the table that it belongs to."""
    is_last: bool
    words: str


def cut_moments(tokens: Sequence[Token], text: str) -> tuple[list[Token], list[AsOfClause]]:
    """Return *tokens* without each AS OF, and what these say. Raises QueryError for a wrong one."""
    kept: list[Token] = []
    moments: list[AsOfClause] = []
    index = 0
    while index < len(tokens):
        if not _is_as_of(tokens, index, text):
            kept.append(tokens[index])
            index += 1
            continue
        start, end = tokens[index].start, tokens[index + 3].end
        moments.append(
            AsOfClause(
                as_of=_moment(tokens[index + 2], tokens[index + 3], text),
                start=start,
                after=kept[-1].end if kept else -1,
                is_last=index + 4 == len(tokens),
                words=text[start : end + 1],
            )
        )
        index += 4
    return kept, moments


def _is_as_of(tokens: Sequence[Token], index: int, text: str) -> bool:
    words = tokens[index : index + 4]
    if (
        len(words) < 2
        or words[0].token_type is not TokenType.ALIAS
        or words[1].token_type is not TokenType.VAR
        or words[1].text.upper() != "OF"
    ):
        return False
    if len(words) == 2:
        raise refusal(text, words[0].start, f"AS OF is not complete. Write {_FORMS}")
    kind = words[2]
    wanted = _KINDS.get(kind.text.upper()) if kind.token_type not in _VALUES else None
    if wanted is not None and len(words) == 4 and words[3].token_type is wanted:
        return True
    if wanted is not None or kind.token_type in _VALUES or kind.token_type is TokenType.VAR:
        raise refusal(text, words[0].start, f"AS OF is not complete. Write {_FORMS}")
    return False


def _moment(kind: Token, value: Token, text: str) -> int | Lsn | datetime | str:
    word = kind.text.upper()
    if word == "TAG":
        if not value.text:
            raise refusal(text, value.start, "AS OF TAG names no tag. Write AS OF TAG 'best'")
        return value.text
    if word == "TIMESTAMP":
        return _timestamp(value, text)
    number = int(value.text) if _DIGITS.fullmatch(value.text) else -1
    if not 0 <= number <= _NUMBER_MAX:
        raise refusal(
            text,
            value.start,
            f"AS OF {word} takes a whole number from 0 to 2^63 - 1, not {shown_word(value.text)}",
        )
    return Lsn(number) if word == "LSN" else number


def _timestamp(value: Token, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value.text.strip())
    except ValueError as error:
        raise refusal(
            text,
            value.start,
            f"AS OF TIMESTAMP cannot read {shown_word(value.text)}. Write it as "
            "'2026-01-31 12:00:00+01:00'; without a zone it is UTC",
        ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
