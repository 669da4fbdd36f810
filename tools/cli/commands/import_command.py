"""``mldb import``: tensors of a file that others wrote, as one commit."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import SIZE_TYPE, shown_bytes

_NAMES_SHOWN = 5


@store_command("import", "FILE", access="path")
@click.option("--prefix", default="", help="Put this in front of the names.")
@click.option("--only", default="", help="Only names of the file that start with this.")
@click.option("--strip-prefix", default="", help="Cut this off the names of the file.")
@click.option("--epoch", type=click.IntRange(0), default=None, help="That of the head by default.")
@click.option("--format", type=click.Choice(["safetensors", "npz", "npy", "pt"]), default=None)
@click.option("--escape", is_flag=True, help="Write names that mldb does not allow with %XX.")
@click.option("--max-bytes", type=SIZE_TYPE, default=None, help="What a packed npz may grow to.")
@click.option("--new", is_flag=True, help="Make the store when it does not exist.")
def command(
    call: Call,
    prefix: str,
    only: str,
    strip_prefix: str,
    epoch: int | None,
    format: str | None,
    escape: bool,
    max_bytes: int | None,
    new: bool,
) -> None:
    """Store the tensors of a safetensors, npz, npy or .pt file as one commit.

    The end of FILE says which; a folder is one of sharded safetensors files with their index.
    Nothing of the file is believed, of a .pt file (.pth, .bin, .ckpt) the tensors are read and
    nothing is unpickled, and whatever is wrong with it, or when Ctrl-C comes, nothing is stored.
    The file may be larger than memory. Metadata that `mldb export` wrote come back.

    \b
    mldb import run model.safetensors --prefix model/ --epoch 4
    mldb import run model.safetensors --new    into a new store
    mldb import run last.ckpt --only state_dict/ --strip-prefix state_dict/
    """
    from mldb.tools.formats.import_file import SPILL_BYTES, import_file, read_tensors

    path = call.words[0]
    if _is_to_be_made(call.path, new=new):
        read_tensors(path, format=format, max_bytes=max_bytes)  # no store for a file that is none
    import mldb

    with (
        mldb.open(call.path, background_compaction=False, spill_bytes=SPILL_BYTES) as db,
        progress_bar("importing", quiet=call.out.as_json) as moved,
    ):
        report = import_file(
            db,
            path,
            format=format,
            prefix=prefix,
            only=only,
            strip_prefix=strip_prefix,
            epoch=epoch,
            escape=escape,
            max_bytes=max_bytes,
            progress=moved,
        )
    if call.out.as_json:
        # A name of the file may be no UTF-8.
        readable = {
            "escaped": {_readable(name): key for name, key in report.escaped.items()},
            "shared": {_readable(name): _readable(kept) for name, kept in report.shared.items()},
            "left_out": [_readable(name) for name in report.left_out],
        }
        call.out.document(asdict(report) | readable)
        return
    call.out.text(
        f"{report.tensors:,} tensors, {shown_bytes(report.bytes)}, stored as epoch {report.epoch} "
        f"(lsn:{report.lsn})"
    )
    for name, key in report.escaped.items():
        call.out.text(f"{name} is stored as {key}")
    if report.left_out:
        call.out.text(f"no tensors, left out: {_readable(_listed(report.left_out))}")


def _readable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _is_to_be_made(path: str, *, new: bool) -> bool:
    """Whether a store is to be made: where that is asked for, never in a folder of something else.

    Raises click.UsageError.
    """
    found = os.listdir(path) if os.path.isdir(path) else []
    if any(name.startswith("MANIFEST-") for name in found):
        return False
    if found or (os.path.exists(path) and not os.path.isdir(path)):
        raise click.UsageError(f"{path!r} holds no store of mldb; nothing was changed.")
    if not new:
        raise click.UsageError(f"there is no store at {path!r}; --new makes one.")
    return True
