"""Tensors of a store at a moment into one file, or into a folder of shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, Literal, TypeAlias

from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.history.as_of import AsOf
from mldb.integers import integer
from mldb.query.surface import Snapshot
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope, holder, read_array
from mldb.tools.formats.npy import npy_code, write_npy, write_npz
from mldb.tools.formats.safetensors import safetensors_dtype, write_safetensors
from mldb.tools.formats.sharded import INDEX_NAME, INDEX_SUFFIX, index_text, split_into_shards
from mldb.tools.formats.tensors import BytesMoved, OutgoingTensor
from mldb.tools.formats.whole import whole_file, whole_folder

if TYPE_CHECKING:
    from mldb.database import MLDatabase

Format: TypeAlias = Literal["safetensors", "npz", "npy"]

FORMATS: Final[tuple[Format, ...]] = ("safetensors", "npz", "npy")
PT_SUFFIXES: Final = ("pt", "pth", "bin", "ckpt")
"""What files of torch.save are called."""
STORE_KEY: Final = "mldb"
METADATA_OF_TENSORS: Final = "mldb.metadata"
SHARED_NAMES: Final = "mldb.shared"
"""Keys of what a safetensors file says of the store, of metadata, and of names left out."""
_RESERVED: Final = frozenset({"format", STORE_KEY, METADATA_OF_TENSORS, SHARED_NAMES})
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. ``bytes`` are those of the tensors.

    ``widened`` are tensors whose dtype the format lacks, in one that holds every value of theirs.
    ``shared`` maps names whose bytes are those of another name to that; with ``once`` only the
    other one was written. ``shards`` are the files of a folder. ``skipped`` are sparse tensors that
    were left out. ``metadata_lost`` are tensors with metadata that the file has no place for.
    """

    path: str
    format: Format
    epoch: int
    lsn: int
    tensors: int
    bytes: int
    widened: tuple[str, ...]
    shared: Mapping[str, str]
    once: bool
    skipped: tuple[str, ...]
    metadata_lost: tuple[str, ...]
    shards: tuple[str, ...] = ()


def format_of(path: str, given: str | None = None) -> Format:
    """The format that is given, or that the end of a path means. Raises InvalidValueError."""
    suffix = given or path.rpartition(".")[2].lower()
    for known in FORMATS:
        if suffix == known:
            return known
    if suffix in PT_SUFFIXES:
        raise InvalidValueError(
            f"{path!r:.200}: a file of torch.save is a pickle, which mldb reads within limits and "
            "does not write. Export .safetensors, which safetensors.torch.load_file gives to torch."
        )
    raise InvalidValueError(
        f"{path!r:.200} does not end in .safetensors, .npz or .npy; say which with --format."
    )


def export_file(
    source: MLDatabase | Snapshot | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    as_of: AsOf = None,
    format: str | None = None,
    names: Iterable[str] | None = None,
    prefix: str = "",
    strip_prefix: str = "",
    metadata: bool = True,
    once: bool = False,
    skip_sparse: bool = False,
    shard_bytes: int | None = None,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the tensors of a store at a moment to a file, which comes to exist whole or not at all.

    *source*: an open store or a snapshot, or the path of a store, which is opened for reading.
    *names*: these, else all that start with *prefix*. *strip_prefix* is cut off the names in the
    file. *format*: "safetensors", "npz" or "npy"; else the end of *path* says it. *once* writes of
    names that share their bytes only the first, and the others into the metadata of a safetensors
    file, as ``safetensors.torch.save_model`` does. With *shard_bytes* the path is that of a folder,
    of safetensors files of at most so many bytes and the index that ``transformers`` reads; it,
    too, comes to exist whole. Tensors go one at a time, as views of the store where they lie as
    they are; an encoded one is decoded in memory. Takes as long as writing the bytes and syncing
    them. Any thread.

    Raises TensorNotFoundError, MissingError where nothing is selected, InvalidTypeError naming
    tensors that the format cannot hold (all sparse ones, unless skipped), InvalidValueError for
    names that clash or a file that exists, StorageFullError, StorageIOError, CorruptError; then
    nothing is left of the file.
    """
    path = os.fspath(path)
    with _moment(source, as_of) as snapshot:
        chosen = format_of(path, "safetensors" if shard_bytes and format is None else format)
        scope = snapshot._scope()
        selected = list(scope.names(prefix)) if names is None else list(dict.fromkeys(names))
        dense, skipped = _dense_of(scope, selected, skip_sparse=skip_sparse)
        _refuse_nothing(dense, prefix, snapshot)
        written = _mapped_names(dense, strip_prefix)
        shared = _shared(scope, dense, written)
        left_out = shared if once else {}
        _refuse_left_out(chosen, left_out)
        tensors = [
            _outgoing(scope, name, written[name]) for name in dense if written[name] not in left_out
        ]
        widened = _refuse_unknown(tensors, chosen)
        told, lost = _metadata_of(scope, dense, written, chosen) if metadata else ({}, ())
        total = sum(tensor.nbytes for tensor in tensors)
        counter = _Counter(total, progress)
        about = partial(_about, snapshot)
        shards: tuple[str, ...] = ()
        if shard_bytes is None:
            with whole_file(path, replace=replace) as file:
                _write(file, chosen, tensors, about(told, left_out), counter)
        else:
            of_shard = _told(about, told, left_out)
            shards = _write_shards(path, chosen, tensors, of_shard, shard_bytes, replace, counter)
        lsn = int(snapshot.lsn)
        kept = widened, shared, once, tuple(skipped), lost, shards
        return ExportReport(path, chosen, snapshot.epoch, lsn, len(tensors), total, *kept)


@contextmanager
def _moment(
    source: MLDatabase | Snapshot | str | os.PathLike[str], as_of: AsOf
) -> Iterator[Snapshot]:
    """The snapshot that is meant; what is opened here is closed again."""
    if isinstance(source, Snapshot):
        if as_of is not None:
            raise InvalidTypeError("a snapshot is of a moment already; leave as_of out")
        yield source
        return
    from mldb.database import MLDatabase

    if isinstance(source, MLDatabase):
        with source.at(as_of) as snapshot:
            yield snapshot
        return
    with MLDatabase(source, mode="r") as db, db.at(as_of) as snapshot:
        yield snapshot


def _refuse_nothing(names: Sequence[str], prefix: str, snapshot: Snapshot) -> None:
    if not names:
        where = f" of prefix {prefix!r:.80}" if prefix else ""
        raise MissingError(f"no tensor{where} is there at commit {snapshot.lsn}. No file was made.")


def _refuse_left_out(chosen: Format, left_out: Mapping[str, str]) -> None:
    if left_out and chosen != "safetensors":
        raise InvalidValueError(
            f"{chosen} has no place for names that are left out; export without --once. Nothing "
            "was written."
        )


def _write(
    file: IO[bytes],
    chosen: Format,
    tensors: Sequence[OutgoingTensor],
    about: Mapping[str, str],
    moved: BytesMoved,
) -> None:
    if chosen == "safetensors":
        write_safetensors(file, tensors, about, moved)
    elif chosen == "npz":
        write_npz(file, tensors, moved)
    else:
        write_npy(file, tensors[0], moved)


_AboutShard: TypeAlias = Callable[[Sequence[OutgoingTensor]], Mapping[str, str]]


def _told(
    about: Callable[[dict[str, Any], Mapping[str, str]], dict[str, str]],
    told: Mapping[str, Any],
    left_out: Mapping[str, str],
) -> _AboutShard:
    """What one shard says: the metadata of the tensors in it, and their other names."""

    def of_shard(tensors: Sequence[OutgoingTensor]) -> Mapping[str, str]:
        here = {tensor.name for tensor in tensors}
        others = {name: kept for name, kept in left_out.items() if kept in here}
        return about(
            {name: own for name, own in told.items() if name in here or name in others}, others
        )

    return of_shard


def _write_shards(
    path: str,
    chosen: Format,
    tensors: Sequence[OutgoingTensor],
    about: _AboutShard,
    shard_bytes: int,
    replace: bool,
    moved: BytesMoved,
) -> tuple[str, ...]:
    """Write a folder of shards and their index; return the names of its files."""
    if chosen != "safetensors":
        raise InvalidValueError(f"shards are safetensors files, not {chosen}. Nothing was written.")
    shard_bytes = integer("shard_bytes", shard_bytes)
    if shard_bytes < 1:
        raise InvalidValueError(f"shard_bytes={shard_bytes} is below 1. Nothing was written.")
    shards = split_into_shards(tensors, shard_bytes)
    with whole_folder(path, replace=replace, ours=_is_of_shards) as folder:
        for shard, group in shards.items():
            with open(os.path.join(folder, shard), "xb") as file:
                write_safetensors(file, group, about(group), moved)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors)
            with open(os.path.join(folder, INDEX_NAME), "xb") as file:
                file.write(index_text(shards, total))
            return (*shards, INDEX_NAME)
    return tuple(shards)


def _is_of_shards(name: str) -> bool:
    return name.endswith((".safetensors", INDEX_SUFFIX))


class _Counter:
    """Adds up what was moved, and tells it."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _dense_of(
    scope: Scope, names: Sequence[str], *, skip_sparse: bool
) -> tuple[list[str], list[str]]:
    dense: list[str] = []
    sparse: list[str] = []
    for name in names:
        what = unpack_descriptor(scope.tensor_entry(name).attr)
        (dense if what.layout == "dense" else sparse).append(name)
    if sparse and not skip_sparse:
        raise InvalidTypeError(
            f"{_listed(sparse)} {'is' if len(sparse) == 1 else 'are'} sparse, and these files hold "
            "dense tensors alone. Nothing was written; leave them out with --skip-sparse, or store "
            "them dense."
        )
    return dense, sparse


def _mapped_names(names: Sequence[str], strip_prefix: str) -> dict[str, str]:
    found = {name: name.removeprefix(strip_prefix) for name in names}
    taken: dict[str, str] = {}
    for name, short in found.items():
        if not short:
            raise InvalidValueError(f"nothing is left of {name!r} without {strip_prefix!r:.80}")
        if short in taken:
            raise InvalidValueError(
                f"{name!r} and {taken[short]!r} would both be {short!r} without "
                f"{strip_prefix!r:.80}. Nothing was written."
            )
        taken[short] = name
    return found


def _shared(scope: Scope, names: Sequence[str], written: Mapping[str, str]) -> dict[str, str]:
    """Names whose bytes, dtype and shape are those of one before them, with that one."""
    first: dict[object, str] = {}
    found = {}
    for name in names:
        entry = scope.tensor_entry(name)
        _, held = holder(scope, entry, name)
        place = held.segment, held.offset, held.length, entry.attr
        other = first.setdefault(place, name)
        if other != name and held.length:
            found[written[name]] = written[other]
    return found


def _outgoing(scope: Scope, name: str, written: str) -> OutgoingTensor:
    entry = scope.tensor_entry(name)
    what = unpack_descriptor(entry.attr)
    read = partial(read_array, scope, entry, name)
    return OutgoingTensor(written, what.dtype, what.shape, what.nbytes, read)


def _refuse_unknown(tensors: Sequence[OutgoingTensor], chosen: Format) -> tuple[str, ...]:
    """Refuse what the format cannot hold; return what it holds in a wider dtype."""
    find = safetensors_dtype if chosen == "safetensors" else npy_code
    found = [(tensor, find(tensor.code)) for tensor in tensors]
    unknown = [tensor for tensor, code in found if code is None]
    if unknown:
        codes = ", ".join(sorted({tensor.code for tensor in unknown}))
        raise InvalidTypeError(
            f"{chosen} has no place for {codes}: {_listed([tensor.name for tensor in unknown])}. "
            "Nothing was written; choose another format, or convert them first."
        )
    if chosen == "npy" and len(tensors) != 1:
        raise InvalidValueError(
            f"a .npy file holds one tensor, and {len(tensors)} are selected; name one with --name, "
            "or write .npz. Nothing was written."
        )
    if chosen == "safetensors":
        return ()
    return tuple(tensor.name for tensor, code in found if code != tensor.code)


def _metadata_of(
    scope: Scope, names: Sequence[str], written: Mapping[str, str], chosen: Format
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata that the file can hold, by name in the file; and the names of the rest.

    Only a safetensors file has a place for them, as JSON.
    """
    found: dict[str, Any] = {}
    lost = []
    for name in names:
        own = scope.metadata(name)
        if not own:
            continue
        if chosen == "safetensors" and _is_json(own):
            found[written[name]] = own
        else:
            lost.append(written[name])
    return found, tuple(lost)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _about(snapshot: Snapshot, told: dict[str, Any], left_out: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a safetensors file. "pt" is what readers of models ask for."""
    stamp = snapshot.time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    moment = {"epoch": snapshot.epoch, "lsn": int(snapshot.lsn), "time": stamp}
    found = {"format": "pt", STORE_KEY: json.dumps(moment)}
    if told:
        found[METADATA_OF_TENSORS] = json.dumps(told, ensure_ascii=False)
    if left_out:
        found[SHARED_NAMES] = json.dumps(left_out, ensure_ascii=False)
        # As save_model writes it, so that load_model finds them.
        found |= {name: kept for name, kept in left_out.items() if name not in _RESERVED}
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
