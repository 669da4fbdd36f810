"""``mldb export``: tensors at a moment into a file that others read."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import MOMENT_TYPE, SIZE_TYPE, shown_bytes

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf
    from mldb.tools.formats.export_file import ExportReport

_NAMES_SHOWN = 5


@store_command("export", "FILE")
@click.option(
    "--as-of", "as_of", type=MOMENT_TYPE, default=None, help="The moment; now by default."
)
@click.option("--prefix", default="", help="Only names that start with this.")
@click.option("--name", "names", multiple=True, help="Only this tensor; may be given again.")
@click.option("--strip-prefix", default="", help="Cut this off the names in the file.")
@click.option("--format", type=click.Choice(["safetensors", "npz", "npy"]), default=None)
@click.option("--no-metadata", is_flag=True, help="Leave the metadata of tensors out.")
@click.option("--once", is_flag=True, help="Write names that share their bytes once.")
@click.option("--skip-sparse", is_flag=True, help="Leave sparse tensors out.")
@click.option("--shard-bytes", type=SIZE_TYPE, default=None, help="A folder of such files.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def command(
    call: Call,
    as_of: AsOf,
    prefix: str,
    names: tuple[str, ...],
    strip_prefix: str,
    format: str | None,
    no_metadata: bool,
    once: bool,
    skip_sparse: bool,
    shard_bytes: int | None,
    force: bool,
) -> None:
    """Write tensors at a moment into a safetensors, npz or npy file.

    The end of FILE says which. The file comes to exist whole or not at all, and one that is there
    is left alone without --force. safetensors keeps every dtype of models, and metadata; npz and
    npy hold bfloat16 and fp8 as float32. Sparse tensors have no place in these files. With
    --shard-bytes FILE is a folder: shards and their index, as transformers reads them.

    \b
    mldb export run model.safetensors --prefix model/ --strip-prefix model/
    mldb export run model --shard-bytes 5GB
    mldb export run weights.npy --name conv1_weights --as-of 3
    """
    from mldb.tools.formats.export_file import export_file

    inside = os.path.join(os.path.realpath(call.path), "")
    if os.path.realpath(call.words[0]).startswith(inside):
        raise click.UsageError(f"{call.words[0]!r} lies in the store; name a file elsewhere")
    if names and prefix:
        raise click.UsageError("--name and --prefix select in two ways; give one of them")
    with (
        call.store.at(as_of) as snapshot,
        progress_bar("exporting", quiet=call.out.as_json) as moved,
    ):
        report = export_file(
            snapshot,
            call.words[0],
            format=format,
            names=names or None,
            prefix=prefix,
            strip_prefix=strip_prefix,
            metadata=not no_metadata,
            once=once,
            skip_sparse=skip_sparse,
            shard_bytes=shard_bytes,
            replace=force,
            progress=moved,
        )
    if call.out.as_json:
        call.out.document(asdict(report))
    else:
        _print(call, report)


def _print(call: Call, report: ExportReport) -> None:
    call.out.text(
        f"{report.tensors:,} tensors, {shown_bytes(report.bytes)}, of epoch {report.epoch} "
        f"(lsn:{report.lsn}) in {report.path}"
    )
    if report.widened:
        call.out.text(f"in a wider dtype, with the same values: {_listed(report.widened)}")
    if report.shared:
        times = "written once" if report.once else "written for each; --once writes them once"
        call.out.text(f"share the bytes of another name ({times}): {_listed(tuple(report.shared))}")
    if report.skipped:
        call.out.text(f"sparse, left out: {_listed(report.skipped)}")
    if report.metadata_lost:
        call.out.text(f"metadata that the file cannot hold: {_listed(report.metadata_lost)}")


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
