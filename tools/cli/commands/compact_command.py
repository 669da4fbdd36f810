"""``mldb compact``: give back what retention lets go, and encode what is cold."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import SPAN_TYPE, shown_bytes

if TYPE_CHECKING:
    from mldb.compaction.report import CompactionReport

_NAMES_SHOWN: Final = 20


class _ColdType(click.ParamType[Any]):
    """``all``, ``none``, or a span."""

    name = "all|none|SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in ("all", "none") else SPAN_TYPE.convert(value, param, ctx)


@store_command("compact", access="rw")
@click.option("--plan", "plan_only", is_flag=True, help="Only tell what would be done.")
@click.option(
    "--cold",
    type=_ColdType(),
    default=None,
    help="Versions to encode anew: older than a span (7d by default), all, or none.",
)
def command(call: Call, plan_only: bool, cold: timedelta | Literal["all", "none"] | None) -> None:
    """Rewrite segments so that they hold what retention keeps, and give the rest back.

    Without a retention nothing is lost: old versions become differences to their neighbours, and
    small segments are merged. Readers go on in every process. Ctrl-C leaves what is done.

    \b
    mldb compact run --plan             what would come back, and of which names
    mldb compact run --cold all         encode everything but the newest versions
    """
    with progress_bar("compacting", quiet=call.out.as_json) as moved:
        report = call.store.compact(plan_only=plan_only, cold=cold, progress=moved)
    if call.out.as_json:
        call.out.document({**asdict(report), "bytes_returned": report.bytes_returned})
    else:
        _print(call, report)


def _print(call: Call, report: CompactionReport) -> None:
    gives = "would give back" if report.planned_only else "gave back"
    call.out.text(
        f"{gives} {shown_bytes(report.bytes_returned)}: {shown_bytes(report.bytes_before)} to "
        f"{shown_bytes(report.bytes_after)}, {report.segments_before:,} segments to "
        f"{report.segments_after:,}"
    )
    call.out.text(
        f"commits: {report.commits_kept:,} kept, {report.commits_pruned:,} pruned; versions: "
        f"{report.versions_kept:,} kept, {report.versions_dropped:,} dropped, "
        f"{report.recoded:,} encoded anew ({shown_bytes(report.recoded_bytes)})"
    )
    if report.names:
        call.out.table(
            ("name", "versions", "dropped", "bytes", "given back"),
            (
                (item.name, item.versions, item.dropped, item.bytes, item.bytes_dropped)
                for item in report.names[:_NAMES_SHOWN]
            ),
            right=("versions", "dropped", "bytes", "given back"),
        )
    if len(report.names) > _NAMES_SHOWN:
        call.out.text(f"{len(report.names) - _NAMES_SHOWN} more names; --json lists them all")
