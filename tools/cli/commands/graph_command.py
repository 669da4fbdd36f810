"""``mldb graph``: relationships as a tree, or as DOT for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.values import MOMENT_TYPE

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf
    from mldb.history.relationships import Relationship


@store_command("graph")
@click.option("--as-of", "as_of", type=MOMENT_TYPE, default=None, help="The moment; now.")
@click.option("--kind", default=None, help="Only relationships of this kind.")
@click.option("--root", default=None, help="Only what this name leads to.")
@click.option("--dot", is_flag=True, help="Print DOT: mldb graph run --dot | dot -Tsvg > g.svg")
def command(call: Call, as_of: AsOf, kind: str | None, root: str | None, dot: bool) -> None:
    """Show how tensors and layers relate: a tree below every name that nothing leads to.

    A name that was shown already ends in "..."; a cycle is shown from its first name.
    """
    found = call.store.relationships(kind=kind, as_of=as_of)
    if root is not None:
        found = _reachable(found, root)
    if call.out.as_json:
        fields = ("source", "kind", "target", "lsn", "metadata")
        rows = [{field: getattr(item, field) for field in fields} for item in found]
        call.out.document({"relationships": rows})
    elif dot:
        for line in dot_lines(found):
            click.echo(line)
    elif not found:
        click.echo("no relationship at this moment", err=True)
    else:
        for line in tree_lines(found):
            call.out.text(line)


def _reachable(edges: Sequence[Relationship], root: str) -> list[Relationship]:
    below = _by_source(edges)
    seen, waiting = {root}, [root]
    while waiting:
        for edge in below.get(waiting.pop(), ()):
            if edge.target not in seen:
                seen.add(edge.target)
                waiting.append(edge.target)
    return [edge for edge in edges if edge.source in seen]


def _by_source(edges: Sequence[Relationship]) -> dict[str, list[Relationship]]:
    below: dict[str, list[Relationship]] = {}
    for edge in edges:
        below.setdefault(edge.source, []).append(edge)
    return below


def tree_lines(edges: Sequence[Relationship]) -> Iterator[str]:
    """Yield the lines of a tree. Each name has its branches once; pure, and no recursion."""
    below, targets = _by_source(edges), {edge.target for edge in edges}
    shown: set[str] = set()
    roots = [name for name in below if name not in targets]
    for root in [*roots, *below]:  # what stands in a cycle alone comes last
        if root in shown:
            continue
        shown.add(root)
        yield root
        waiting = _branches(below[root], "")
        while waiting:
            edge, lead, is_last = waiting.pop()
            again = edge.target in shown and edge.target in below
            stem = "└─ " if is_last else "├─ "
            yield f"{lead}{stem}{edge.target}  ({edge.kind}){' ...' if again else ''}"
            if edge.target not in shown:
                shown.add(edge.target)
                more = lead + ("   " if is_last else "│  ")
                waiting += _branches(below.get(edge.target, []), more)


def _branches(edges: Sequence[Relationship], lead: str) -> list[tuple[Relationship, str, bool]]:
    """The branches of a name as a stack: the first is taken first."""
    last = len(edges) - 1
    return [(edge, lead, number == last) for number, edge in enumerate(edges)][::-1]


def dot_lines(edges: Sequence[Relationship]) -> Iterator[str]:
    """Yield the lines of a graph in DOT. Pure."""
    yield "digraph mldb {"
    yield "  rankdir=LR; node [shape=box];"
    for edge in edges:
        yield f"  {_quoted(edge.source)} -> {_quoted(edge.target)} [label={_quoted(edge.kind)}];"
    yield "}"


def _quoted(text: str) -> str:
    """A quoted identifier of DOT, in which only the quotation mark and the backslash mean more."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
