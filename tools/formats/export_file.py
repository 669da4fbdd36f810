"""Tensors of a store at a moment into one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import IO, Any, Final, Literal, TypeAlias

from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.query.surface import Snapshot
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope, holder, read_array
from mldb.tools.formats.npy import npy_code, write_npy, write_npz
from mldb.tools.formats.safetensors import safetensors_dtype, write_safetensors
from mldb.tools.formats.tensors import BytesMoved, OutgoingTensor
from mldb.tools.formats.whole import whole_file

Format: TypeAlias = Literal["safetensors", "npz", "npy"]

FORMATS: Final[tuple[Format, ...]] = ("safetensors", "npz", "npy")
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
    other one was written. ``skipped`` are sparse tensors that were left out. ``metadata_lost`` are
    tensors with metadata that the file has no place for.
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


def format_of(path: str, given: str | None = None) -> Format:
    """The format that is given, or that the end of a path means. Raises InvalidValueError."""
    suffix = given or path.rpartition(".")[2].lower()
    for known in FORMATS:
        if suffix == known:
            return known
    raise InvalidValueError(
        f"{path!r:.200} does not end in .safetensors, .npz or .npy; say which with --format."
    )


def export_file(
    snapshot: Snapshot,
    path: str,
    *,
    format: str | None = None,
    names: Iterable[str] | None = None,
    prefix: str = "",
    strip_prefix: str = "",
    metadata: bool = True,
    once: bool = False,
    skip_sparse: bool = False,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the tensors of a snapshot to a file, which comes to exist whole or not at all.

    *names*: these, else all that start with *prefix*. *strip_prefix* is cut off the names in the
    file. *once* writes of names that share their bytes only the first, and the others into the
    metadata of a safetensors file, as ``safetensors.torch.save_model`` does. Tensors go one at a
    time, as views of the store where they lie as they are; an encoded one is decoded in memory.

    Raises TensorNotFoundError, MissingError where nothing is selected, InvalidTypeError naming
    tensors that the format cannot hold (all sparse ones, unless skipped), InvalidValueError for
    names that clash or a file that exists, StorageFullError, StorageIOError, CorruptError; then
    nothing is left of the file.
    """
    chosen = format_of(path, format)
    scope = snapshot._scope()
    selected = list(scope.names(prefix)) if names is None else list(dict.fromkeys(names))
    dense, skipped = _dense_of(scope, selected, skip_sparse=skip_sparse)
    if not dense:
        where = f" of prefix {prefix!r:.80}" if prefix else ""
        raise MissingError(f"no tensor{where} is there at commit {snapshot.lsn}. No file was made.")
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
    with whole_file(path, replace=replace) as file:
        _write(file, chosen, tensors, _about(snapshot, told, left_out), _Counter(total, progress))
    return ExportReport(
        path,
        chosen,
        snapshot.epoch,
        int(snapshot.lsn),
        len(tensors),
        total,
        widened,
        shared,
        once,
        tuple(skipped),
        lost,
    )


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
