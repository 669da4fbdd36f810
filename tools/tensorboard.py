"""Metrics to and from event files of TensorBoard, where the package tensorboard is installed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from mldb.database import MLDatabase
from mldb.errors import CorruptError, InvalidTypeError, MissingError
from mldb.history.as_of import AsOf
from mldb.history.kinds.changes import records_of
from mldb.history.kinds.metrics import NO_STEP
from mldb.log import format as fmt
from mldb.names import escape_key
from mldb.query.surface import Snapshot
from mldb.write.metric_plans import MetricRows
from mldb.write.rules import check_epoch

INSTALL: Final = "TensorBoard's event files need its package: pip install tensorboard"
_STEP_MAX: Final = (1 << 63) - 1
_NANOSECONDS: Final = 1_000_000_000
_QUEUED: Final = 1000
_FRAME_BYTES: Final = 16  # of a record beside its bytes


class _Scalar(NamedTuple):
    """One point of an event file; *time* in nanoseconds."""

    tag: str
    value: float
    step: int
    time: int


def export_metrics(
    store: MLDatabase | Snapshot | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    as_of: AsOf = None,
) -> int:
    """Write the curves of a store as one run of TensorBoard into *folder*; return the points.

    *store*: a database, a snapshot, or a path, which is opened to read. *names*: all of them where
    None. A metric's name is its tag; a point without a step gets its place in the curve, from 0.
    TensorBoard keeps values as float32. A new event file is added to what is in *folder*. Raises
    UsageError's kin for a closed store, what reading raises, and ImportError with the install line.
    """
    event, summary, writer_of = _writing()
    with ExitStack() as opened:
        if not isinstance(store, MLDatabase | Snapshot):
            store = opened.enter_context(MLDatabase(store, mode="r"))
        wanted = store.metrics(as_of=as_of) if names is None else list(names)
        writer = writer_of(os.fspath(folder), max_queue_size=_QUEUED)
        opened.callback(writer.close)
        count = 0
        for name in wanted:
            curve = store.metrics(name, as_of=as_of)
            times = curve.time.astype("i8").tolist()
            columns = zip(curve.step.tolist(), times, curve.value.tolist(), strict=True)
            for place, (step, time, value) in enumerate(columns):
                writer.add_event(
                    event(
                        wall_time=time / _NANOSECONDS,
                        step=place if step == NO_STEP else step,
                        summary=summary(value=[summary.Value(tag=name, simple_value=value)]),
                    )
                )
            count += len(curve)
    return count


def import_metrics(
    folder: str | os.PathLike[str], store: MLDatabase, *, epoch: int | None = None
) -> int:
    """Log the scalars of all event files under *folder* into *store*; return the points.

    A tag is the name of a metric, behind the folder of its file: ``train/loss`` for ``loss`` in the
    run ``train``. What names do not allow is escaped as the keys of states are. Steps and times are
    kept; *epoch* is that of the commits, None for the head's. Images, texts, histograms and the
    like are left out. Called twice it logs all twice. Raises MissingError when there is no event
    file, CorruptError for a damaged one, with its name, what ``db.log`` raises, and ImportError
    with the install line. Files are read one after another, and stored some MiB at a time: what was
    stored before an error stays.
    """
    package = _reading()
    if not isinstance(store, MLDatabase):
        raise InvalidTypeError(f"store is a {type(store).__name__}, not an open database")
    epoch = check_epoch(epoch)
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file() and "tfevents" in path.name)
    if not files:
        raise MissingError(f"there is no event file of TensorBoard under {root}")
    waiting, count = _Waiting(store, epoch), 0
    for path in files:
        run = path.parent.relative_to(root).parts
        for scalar in _scalars(package, path):
            waiting.add("/".join((*map(escape_key, run), _name_of(scalar.tag))), scalar)
            count += 1
    waiting.store()
    return count


class _Waiting:
    """Points on their way into a store: as many as one commit holds. For one thread."""

    def __init__(self, store: MLDatabase, epoch: int | None) -> None:
        self._store = store
        self._epoch = epoch
        self._rows = MetricRows()
        self._count = 0

    def add(self, name: str, scalar: _Scalar) -> None:
        plans = self._store._metrics.plans
        rows = plans.rows({name: scalar.value}, scalar.step, scalar.time)
        if self._count >= fmt.ENTRIES_MAX or not self._rows.add(rows):
            self.store()
            self._rows.add(rows)
        self._count += 1

    def store(self) -> None:
        if self._rows:
            self._store._commit(records_of(self._rows.changes()), self._epoch)
        self._rows, self._count = MetricRows(), 0


def _name_of(tag: str) -> str:
    """A tag as the name of a metric: parts that names do not allow are escaped."""
    return "/".join(map(escape_key, tag.split("/")))


def _scalars(package: _Reading, path: Path) -> Iterator[_Scalar]:
    """Yield the scalars of one event file. Raises CorruptError.

    A file that ends in the middle of a record ends there, as that of a run that still writes does.
    """
    plugins: dict[str, str] = {}  # by tag: files of TensorFlow 2 say it once
    place = 0
    try:
        for record in package.records(os.fspath(path)).Load():
            place += len(record) + _FRAME_BYTES
            event = package.event.FromString(record)
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                plugin = plugins.setdefault(value.tag, plugin)
                number = _number(package, value, plugin)
                if number is not None:
                    step = min(max(event.step, 0), _STEP_MAX)
                    yield _Scalar(value.tag, number, step, round(event.wall_time * _NANOSECONDS))
    except (ValueError, TypeError, OverflowError, OSError, package.undecodable) as error:
        raise CorruptError(
            f"an event file of TensorBoard cannot be read: {error!s:.200}", file=str(path)
        ) from error
    _refuse_damage(path, place)


def _number(package: _Reading, value: Any, plugin: str) -> float | None:
    """The scalar that a value holds; None for anything else."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or plugin != "scalars":
        return None
    array = package.array(value.tensor)
    return float(array) if array.ndim == 0 and array.dtype.kind in "biuf" else None


def _refuse_damage(path: Path, place: int) -> None:
    """Raise CorruptError when a whole record stands where the package found the end of the file.

    A record is its length (u64), a checksum (u32), that many bytes, and a checksum of these. The
    package stops at a wrong checksum as it does at half a record.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(place)
        head = file.read(8)
    if len(head) == 8 and int.from_bytes(head, "little") + _FRAME_BYTES <= size - place:
        raise CorruptError(
            "a record of an event file of TensorBoard is damaged; points in front of it were read",
            file=str(path),
            offset=place,
        )


def _writing() -> tuple[Any, Any, Any]:
    """The classes of events, of summaries, and of what writes them."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise ImportError(f"{INSTALL} ({error})") from error
    return Event, Summary, EventFileWriter


class _Reading(NamedTuple):
    """What reading takes from the package."""

    records: Any
    event: Any
    array: Any
    undecodable: type[Exception]


def _reading() -> _Reading:
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ImportError(f"{INSTALL} ({error})") from error
    return _Reading(RawEventFileLoader, Event, make_ndarray, DecodeError)
