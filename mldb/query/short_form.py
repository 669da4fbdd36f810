"""The short form, and words that stand for text.

``SELECT tensors WHERE type=weights ORDER BY creation_time`` has no FROM and one word, a table. What
stands to the right of a comparison in it is always text, whatever columns there are: "text unless
such a column exists" would turn ``type=layer`` into the comparison of two columns.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from mldb.query.parsed import QUERY_TABLES, fold_name

_COMPARISONS = (
    *(exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeEQ, exp.NullSafeNEQ),
    *(exp.Like, exp.ILike, exp.SimilarTo, exp.Glob, exp.RegexpLike),
)


def expand_short_form(tree: exp.Expr, first_column: str | None = None) -> str | None:
    """Give a query in the short form its FROM, and return its table, folded; else return None.

    It then selects *first_column*, or all where that is None. *tree* is changed.
    """
    table = short_table(tree)
    if table is None:
        return None
    name = tree.expressions[0].this
    star = exp.Star() if first_column is None else _column(first_column)
    tree.set("expressions", [star])
    tree.set("from_", exp.From(this=exp.Table(this=name)))
    return table


def short_table(tree: exp.Expr) -> str | None:
    """Return the table of a query in the short form, folded; None for every other query."""
    if type(tree) is not exp.Select or tree.args.get("from_") or len(tree.expressions) != 1:
        return None
    (word,) = tree.expressions
    if type(word) is not exp.Column or word.args.get("table") or tree.args.get("with_"):
        return None
    table = fold_name(word.name)
    return table if table in QUERY_TABLES else None


def make_texts(node: exp.Expr, is_text: Callable[[list[exp.Identifier]], bool]) -> None:
    """Make text of each word to the right in the comparison *node* that *is_text* says is one.

    It is given the names between the dots of a word, none of which is in quotes.
    """
    right: tuple[str, ...]
    if isinstance(node, _COMPARISONS):
        right = ("expression",)
    elif type(node) is exp.In:
        right = ("expressions",)
    elif type(node) is exp.Between:
        right = ("low", "high")
    else:
        return
    for key in right:
        operand = node.args.get(key)
        if isinstance(operand, list):  # as a whole: to replace one of n costs n
            node.set(key, [_text_or_same(one, is_text) for one in operand])
        elif operand is not None:
            text = _text_or_same(operand, is_text)
            if text is not operand:
                node.set(key, text)


def _text_or_same(operand: exp.Expr, is_text: Callable[[list[exp.Identifier]], bool]) -> exp.Expr:
    word = operand
    while type(word) is exp.Paren:
        word = word.this
    parts = word_parts(word)
    if not parts or any(part.quoted for part in parts) or not is_text(parts):
        return operand
    return exp.Literal.string(".".join(part.name for part in parts))


def word_parts(node: exp.Expr) -> list[exp.Identifier]:
    """Return the names of a dotted word from left to right; nothing for what is no word."""
    parts: list[exp.Identifier] = []
    while type(node) is exp.Dot and type(node.expression) is exp.Identifier:
        parts.append(node.expression)
        node = node.this
    if type(node) is not exp.Column:
        return []
    for part in (node.this, *(node.args.get(key) for key in ("table", "db", "catalog"))):
        if type(part) is exp.Identifier:
            parts.append(part)
        elif part is not None:
            return []
    return parts[::-1]


def _column(name: str) -> exp.Column:
    return exp.Column(this=exp.Identifier(this=name, quoted=True))
