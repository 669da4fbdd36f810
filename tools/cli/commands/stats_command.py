"""``mldb stats``: figures of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.values import shown_bytes

_BYTES: Final = ("bytes", "_bytes", "reclaimable", "bytes_saved")


@store_command("stats")
@click.option("--all", "every", is_flag=True, help="Also caches, counters and tuned defaults.")
def command(call: Call, every: bool) -> None:
    """Show counts, bytes, and what `mldb compact` would give back.

    `mldb du` tells where the bytes are, `mldb doctor` who holds them. --json has all figures.
    """
    db = call.store
    stats = db.stats()
    if call.out.as_json:
        call.out.document(stats)
    elif every:
        call.out.pairs({name: _shown(name, value) for name, value in _flat(stats, "")})
    else:
        call.out.pairs(
            {
                "epoch": stats["epoch"],
                "versions": f"{stats['versions']:,}",
                "tensors": f"{len(db):,}",
                "checkpoints": f"{len(db.checkpoints()):,}",
                "lakes": f"{len(db.lakes()):,}",
                "segments": f"{stats['segments']:,}",
                "bytes": shown_bytes(stats["bytes"]),
                "would come back": _reclaimable(stats["reclaimable"]),
                "free on the disk": shown_bytes(stats["free_bytes"]),
                "processes": f"{stats['readers']:,}",
                "native": stats["native"],
            }
        )


def _reclaimable(count: int | None) -> str:
    if count is None:
        return "the retention cannot be met; mldb compact --plan says why"
    return shown_bytes(count)


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _shown(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and name.endswith(_BYTES):
        return shown_bytes(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
