"""Lightning's checkpoints in one store: saved, loaded, removed through its plugin interface."""

from __future__ import annotations

import logging
import os
import posixpath
from typing import TYPE_CHECKING, Any

from lightning.pytorch.plugins.io import CheckpointIO as _CheckpointIO

from mldb.adapters.lightning_behind import Behind
from mldb.adapters.lightning_marker import (
    KEPT_BY,
    Marker,
    checkpoint_name,
    local_path,
    read_marker,
    remove_marker,
    write_marker,
)
from mldb.adapters.lightning_places import placed
from mldb.adapters.lightning_store import StoreHolder
from mldb.adapters.lightning_tree import with_long_keys, with_short_names
from mldb.errors import (
    FormatVersionError,
    InvalidTypeError,
    MissingError,
    VersionGoneError,
)
from mldb.history.events import Rewound, TagDeleted, TagSet
from mldb.log.index.address import Lsn

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.history.checkpoints import Checkpoint

_logger = logging.getLogger(__name__)


class CheckpointIO(_CheckpointIO):
    """Where a Trainer keeps its checkpoints: ``Trainer(plugins=[CheckpointIO("run/store")])``.

    All of them go to one store as commits of their own. At each path that Lightning names lies a
    small marker file (see :mod:`mldb.adapters.lightning_marker`), so that ``ckpt_path`` works with
    a path, "last" and "best". The checkpoint is named by its path from the folder that the store
    lies in, without ``.ckpt``, and the tag ``lightning/NAME`` keeps it from retention.

    To remove a checkpoint takes its marker and its tag. What it stored stays readable by name and
    commit until a compaction under a retention drops it.

    With ``wait=False`` a save fixes the values and returns; commit, tag and marker, and removals
    that were asked for after it, follow in this order behind. What failed there is raised by the
    next save, load or teardown, and nothing is removed after it.

    It opens the store when first used and closes it at teardown; an open database that was given
    stays open. It travels to other processes by the path. Any thread.
    """

    def __init__(
        self, store: str | os.PathLike[str] | MLDatabase, *, wait: bool = True, **options: Any
    ) -> None:
        """*store*: the folder of the store, or one that is open; *options* as for ``mldb.open``.

        Raises InvalidTypeError, InvalidNameError.
        """
        if not isinstance(wait, bool):
            raise InvalidTypeError(f"wait is a {type(wait).__name__}, not True or False")
        self._store = StoreHolder(store, options)
        self._root = posixpath.dirname(self._store.path)
        self._wait = wait
        self._behind = Behind()
        self._loaded: tuple[Lsn, int] | None = None  # commit and step of what was loaded last
        self._is_told = False

    @property
    def path(self) -> str:
        """The folder of the store."""
        return self._store.path

    def name_of(self, path: str | os.PathLike[str]) -> str:
        """Return the name that the checkpoint at *path* has in the store."""
        return checkpoint_name(local_path(path), self._root)

    # --- what Lightning calls ---------------------------------------------------------------------

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Store *checkpoint* as one commit and put its marker at *path*.

        Its epoch and step are those of the checkpoint; in a store that is further already, because
        a new run or a resumed one begins in it, the commit has the head's epoch. Raises
        InvalidTypeError naming the place of a value that is not stored, InvalidNameError for a path
        that is not of this machine, and what a commit raises; then nothing was stored.
        """
        if storage_options is not None:
            raise InvalidTypeError(
                "storage_options mean nothing to mldb's CheckpointIO; give options of the store to "
                "CheckpointIO(store, ...). Nothing was stored."
            )
        if not isinstance(checkpoint, dict):
            raise InvalidTypeError(f"the checkpoint is a {type(checkpoint).__name__}, not a dict")
        self._behind.raise_failed()
        place = local_path(path)
        db = self._store.get()
        options: dict[str, Any] = {
            "epoch": self._label(db, _count(checkpoint.get("epoch"))),
            "step": _count(checkpoint.get("global_step")),
            "name": checkpoint_name(place, self._root),
            "prune": True,  # the head has what the newest checkpoint has
        }
        state = with_short_names(checkpoint)
        if self._wait:
            _keep(db, db.checkpoint(state, **options), place)
        else:
            pending = db.checkpoint(state, wait=False, **options)
            self._behind.run(lambda: _keep(db, pending.result(), place))

    def _label(self, db: MLDatabase, epoch: int | None) -> int:
        """The epoch that the commit is labelled with: never lower than that of the head."""
        head = db.epoch
        if epoch is None:
            return head
        if epoch < head and not self._is_told:
            self._is_told = True
            _logger.info(
                "the store %s is at epoch %d: checkpoints of epoch %d and after have that label "
                "until the run gets there",
                *(self.path, head, epoch),
            )
        return max(epoch, head)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the checkpoint whose marker lies at *path*, with its types, on the CPU.

        *map_location* moves its tensors as ``torch.load`` does. *weights_only* changes nothing: no
        checkpoint in a store holds code. Raises MissingError, FormatVersionError for a file that is
        no marker, VersionGoneError where retention dropped it, CorruptError.
        """
        self._behind.drain()
        place = local_path(path)
        marker = read_marker(place)
        with self._store.reading() as db:
            state = _loaded(db, marker, place)
        if not isinstance(state, dict):
            raise FormatVersionError(f"{place} names a {type(state).__name__}, not a checkpoint")
        self._loaded = Lsn(marker.lsn), _count(state.get("global_step")) or 0
        found: dict[str, Any] = placed(with_long_keys(state), map_location)
        return found

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Take away the marker at *path* and the tag that keeps the checkpoint.

        A file there that is no marker stays, with a warning in the log. Where the checkpoint is
        being saved behind, that comes first.
        """
        place = local_path(path)
        tag = KEPT_BY + checkpoint_name(place, self._root)
        if self._wait:
            self._remove(place, tag)
        else:
            self._behind.run(lambda: self._remove(place, tag))

    def teardown(self) -> None:
        """Wait for what is saved behind, and close the store; raises what failed there."""
        try:
            self._behind.drain()
        finally:
            self._behind.stop()
            self._store.close()

    # --- what resuming needs ----------------------------------------------------------------------

    def rewind_to_loaded(self) -> bool:
        """Make the checkpoint that was loaded last the head of the store; whether that changed it.

        What came after it stays readable by commit. Points of metrics that belong to steps before
        it and were logged after it, as Lightning does, are logged again. Called by
        :class:`mldb.adapters.lightning.ExactResume`.
        """
        self._behind.drain()
        if self._loaded is None:
            return False
        lsn, step = self._loaded
        db = self._store.get()
        later = [event for event in db.events(lsn) if event.lsn > lsn]
        if all(isinstance(event, TagSet | TagDeleted) for event in later):
            return False
        is_left = any(isinstance(event, Rewound) and event.target < lsn for event in later)
        points = [] if is_left else _points_between(db, lsn, step)
        db.rewind(lsn)
        for at, values in points:
            db.log(values, step=at, buffer=True)
        db.sync()
        return True

    def _remove(self, place: str, tag: str) -> None:
        try:
            was_marker = remove_marker(place)
        except FormatVersionError as error:
            _logger.warning("not removed: %s", error)
            return
        db = self._store.get()
        if was_marker and tag in db.tags():
            db.untag(tag)

    def __getstate__(self) -> dict[str, Any]:
        """The path and the settings; what runs here stays here."""
        self._behind.drain()
        return self.__dict__ | {"_behind": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._behind = Behind()


def _keep(db: MLDatabase, checkpoint: Checkpoint, place: str) -> None:
    """Tag a stored checkpoint and put its marker at *place*, in this order: a marker is kept."""
    db.tag(KEPT_BY + checkpoint.name, checkpoint.lsn)
    write_marker(place, Marker.of(checkpoint))


def _loaded(db: MLDatabase, marker: Marker, place: str) -> Any:
    try:
        with db.at(lsn=marker.lsn) as moment:
            if not any(map(marker.fits, reversed(moment.checkpoints()))):
                raise MissingError(_foreign(db, marker, place))
            return moment.load(None)
    except VersionGoneError as error:
        raise VersionGoneError(f"{place}: {error}", below=error.below, above=error.above) from error
    except MissingError as error:
        raise MissingError(_foreign(db, marker, place)) from error


def _foreign(db: MLDatabase, marker: Marker, place: str) -> str:
    return (
        f"{place} names checkpoint {marker.name!r} of commit {marker.lsn}, which the store "
        f"{db.path} does not have. Give CheckpointIO the store that the run was saved in."
    )


def _points_between(db: MLDatabase, lsn: Lsn, step: int) -> list[tuple[int, dict[str, float]]]:
    """The points that were logged after commit *lsn* for steps before *step*, by step."""
    found: dict[int, dict[str, float]] = {}
    for name in db.metrics():
        curve = db.metrics(name)
        late = (curve.lsn > lsn) & (curve.step >= 0) & (curve.step < step)
        for at, value in zip(curve.step[late].tolist(), curve.value[late].tolist(), strict=True):
            found.setdefault(at, {})[name] = value
    return sorted(found.items())


def _count(value: Any) -> int | None:
    """A number from 0 of a checkpoint of Lightning's; those of Fabric have none."""
    return value if type(value) is int and value >= 0 else None
