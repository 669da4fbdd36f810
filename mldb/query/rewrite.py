"""From a text to SQL over relations: the one way into the query language.

A text is read as tokens, AS OF is cut out, the rest becomes a tree, the tree is held against what
is allowed, its tables and columns are found, and SQL is written from it. Nothing of the text itself
reaches the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mldb.errors import QueryError
from mldb.query.parsed import ParsedQuery


def parse_query(
    text: str, columns_of: Callable[[str], Sequence[str]], *, first_only: bool = False
) -> ParsedQuery:
    """Return what *text* asks for, as SQL over relations that the caller makes.

    *columns_of* gives the columns of a table, statistics and metadata keys among them; it is called
    once for each table that the text uses. *first_only*: the short form gives the first column
    alone. Raises QueryError that says what, where and what to write instead, and nothing else but
    what *columns_of* raises. Pure; any thread. Linear in the length of the text.
    """
    if not isinstance(text, str):
        raise QueryError(f"a query is a str, not {type(text).__name__}")
    # sqlglot takes a while to import, and only queries need it.
    from mldb.query.allowed import check_tree
    from mldb.query.grammar import parse_tokens, sql_of, tokens_of, too_deep
    from mldb.query.limits import check_text, question_of
    from mldb.query.relations import make_relations
    from mldb.query.resolve import Resolver
    from mldb.query.short_form import expand_short_form, short_table
    from mldb.query.words import cut_moments

    check_text(text)
    kept, moments = cut_moments(question_of(tokens_of(text), text), text)
    tree = parse_tokens(kept, text)
    check_tree(tree, text)
    resolver = Resolver(text, columns_of)
    table = short_table(tree)
    if table is not None:
        first = next(iter(resolver.columns(table).values()), None) if first_only else None
        expand_short_form(tree, first)
    try:
        resolver.resolve(tree, is_short=table is not None)
    except RecursionError as error:  # the caller was deep in the stack itself
        raise too_deep(text) from error
    taken = {token.text for token in kept}
    uses = make_relations(resolver.occurrences, resolver.stars, moments, taken, text)
    return ParsedQuery(sql_of(tree, text), uses, table is not None)
