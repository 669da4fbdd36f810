"""``mldb retention``: how much of the past a store keeps."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mldb.tools.cli.command import Call, opened, store_command
from mldb.tools.cli.values import SIZE_TYPE, SPAN_TYPE, shown_bytes, shown_span

if TYPE_CHECKING:
    from mldb.compaction.retention import Retention


@store_command("retention", access="path")
@click.option("--last", type=click.IntRange(1), help="The last so many epochs.")
@click.option("--every", type=click.IntRange(1), help="Every epoch that is a multiple of this.")
@click.option("--within", type=SPAN_TYPE, help="Commits that are younger than this.")
@click.option("--checkpoints", type=click.IntRange(0), help="The newest so many checkpoints.")
@click.option("--max-bytes", type=SIZE_TYPE, help="What the store may take.")
@click.option("--abandoned", type=SPAN_TYPE, help="How long what a rewind left behind stays.")
@click.option("--keep-all", is_flag=True, help="Keep everything again, from now on.")
def command(call: Call, keep_all: bool, **rules: Any) -> None:
    """Show how much of the past is kept, or set it.

    Rules that are given take the place of all that were set before. Nothing is dropped by this:
    `mldb compact --plan` tells what would go, `mldb compact` drops it. Tags and pins always stay.

    \b
    mldb retention run                        show what is set
    mldb retention run --last 10 --every 50   keep ten epochs, and every fiftieth
    """
    given = {name: value for name, value in rules.items() if value is not None}
    if keep_all and given:
        raise click.UsageError("--keep-all and rules contradict each other")
    changes = bool(given) or keep_all
    with opened(call.path, mode="rw" if changes else "r") as db:
        policy = db.retention.set(**given) if changes else db.retention.get()
    if call.out.as_json:
        call.out.document({"keeps_all": policy.keeps_all, **asdict(policy)})
    else:
        _print(call, policy, changed=changes)


def _print(call: Call, policy: Retention, *, changed: bool) -> None:
    if policy.keeps_all:
        call.out.text("everything is kept")
        return
    shown = {
        "last": policy.last,
        "every": policy.every,
        "within": None if policy.within is None else shown_span(policy.within),
        "checkpoints": policy.checkpoints,
        "max bytes": None if policy.max_bytes is None else shown_bytes(policy.max_bytes),
        "abandoned": None if policy.abandoned is None else shown_span(policy.abandoned),
    }
    call.out.pairs({name: value for name, value in shown.items() if value is not None})
    if changed:
        call.out.text("set; mldb compact --plan tells what would go")
