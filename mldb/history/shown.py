"""A moment of a store as notebooks show it. Nothing of the tensors is read, rows are bounded."""

from __future__ import annotations

from collections.abc import Mapping

from mldb.history.versions import listing_of
from mldb.html import ROWS_MAX, html_pairs, html_table
from mldb.log.index.address import to_time
from mldb.printable import shown_bytes, shown_shape, shown_time
from mldb.tensors.scope import Scope


def moment_html(scope: Scope, caption: str, pairs: Mapping[str, object]) -> str:
    """Return *pairs*, the commit of *scope*, and its first tensors in the order of names.

    Costs what the first names of a listing cost, not their number.
    """
    commit = scope.commit
    told = {
        **pairs,
        "epoch": commit.epoch,
        "commit": commit.lsn,
        "time": shown_time(to_time(commit.time)) if commit.lsn else "-",
    }
    found = listing_of(scope, "", ROWS_MAX + 1)
    if not found:
        return html_pairs({**told, "tensors": "none"}, caption=caption)
    return html_pairs(told, caption=caption) + html_table(
        ("name", "dtype", "shape", "epoch", "bytes"),
        (
            (name, item.dtype, shown_shape(item.shape), item.epoch, shown_bytes(item.nbytes))
            for name, item in found.items()
        ),
        right=("epoch", "bytes"),
        rest="more; .names() has all, len() counts them",
    )
