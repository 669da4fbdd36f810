"""``mldb du``: where the bytes of a store are, and what was not stored twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.values import shown_bytes

if TYPE_CHECKING:
    from mldb.compaction.usage import Usage

_PART: Final = re.compile(r"[^/.]*[/.]?")
_COLUMNS: Final = ("versions", "stored", "decoded", "saved")


@dataclass(slots=True)
class Share:
    """Bytes of one name, or of all names that begin with one; ``names`` counts them."""

    kind: str
    name: str
    names: int = 0
    versions: int = 0
    stored: int = 0
    decoded: int = 0
    deduplicated: int = 0
    deltas: int = 0
    patches: int = 0
    compressed: int = 0

    @property
    def saved(self) -> int:
        """What was not stored."""
        return self.deduplicated + self.deltas + self.patches + self.compressed


_SUMMED: Final = tuple(item.name for item in fields(Share))[3:]


@store_command("du")
@click.option("--prefix", default="", help="Only names that start with this.")
@click.option(
    "--depth", type=click.IntRange(1), help="Together what shares so many parts of names."
)
@click.option("-n", "--limit", type=click.IntRange(0), default=None, help="So many at most.")
def command(call: Call, prefix: str, depth: int | None, limit: int | None) -> None:
    """Show bytes by name, over all epochs and lineages, the largest first.

    STORED is what they take in the segments, DECODED what all versions would take one by one, SAVED
    what deduplication, deltas, patches and compression did not have to store. Where names share
    bytes, the first one has them. A name's parts end with / or a dot.

    \b
    mldb du run --depth 1         by the first part of the names
    mldb du run --prefix model/   only these
    """
    usage = call.store.usage()
    found = sorted(_shares(usage, prefix, depth), key=lambda share: -share.stored)
    whole = Share("", "", len(found))
    for share in found:
        for column in _SUMMED:
            setattr(whole, column, getattr(whole, column) + getattr(share, column))
    if call.out.as_json:
        _document(call, usage, found[:limit], whole)
        return
    number = shown_bytes if call.out.is_terminal else str
    call.out.table(
        ("kind", "name", *_COLUMNS),
        (
            (
                *(share.kind, share.name, share.versions),
                *(number(getattr(share, column)) for column in _COLUMNS[1:]),
            )
            for share in found[:limit]
        ),
        right=_COLUMNS,
        empty="nothing is stored",
    )
    if limit is not None and len(found) > limit:
        call.out.text(f"{len(found) - limit:,} more; --limit shows them")
    call.out.text(
        f"{shown_bytes(whole.stored)} of the {shown_bytes(usage.file_bytes)} of all segments, "
        "which hold commits and indexes besides. Saved: "
        f"{shown_bytes(whole.deduplicated)} by deduplication, {shown_bytes(whole.deltas)} by "
        f"deltas, {shown_bytes(whole.patches)} by patches, {shown_bytes(whole.compressed)} by "
        "compression"
    )


def _shares(usage: Usage, prefix: str, depth: int | None) -> Iterator[Share]:
    """The shares of names, or of what they begin with."""
    found: dict[tuple[str, str], Share] = {}
    columns = [getattr(usage, column).tolist() for column in _SUMMED]
    for kind, name, *values in zip(usage.kinds, usage.names, *columns, strict=True):
        if not name.startswith(prefix):
            continue
        head = name if depth is None else _head(name, depth)
        share = found.setdefault((kind, head), Share(kind, head))
        share.names += 1
        for column, value in zip(_SUMMED, values, strict=True):
            setattr(share, column, getattr(share, column) + value)
    yield from found.values()


def _head(name: str, depth: int) -> str:
    end = 0
    for _ in range(depth):
        part = _PART.match(name, end)
        end = end if part is None else part.end()
    return name[:end]


def _document(call: Call, usage: Usage, found: list[Share], whole: Share) -> None:
    names = tuple(item.name for item in fields(Share))
    call.out.document(
        {
            "file_bytes": usage.file_bytes,
            "total": {name: getattr(whole, name) for name in _SUMMED} | {"saved": whole.saved},
            "shares": [
                {name: getattr(share, name) for name in names} | {"saved": share.saved}
                for share in found
            ],
        }
    )
