"""A snapshot: the whole read surface, fixed at one commit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from mldb.closing import Closing
from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError
from mldb.history import checkpoints, relationships, tags
from mldb.history.as_of import AsOf, held, resolve, snapshot_intervals
from mldb.history.checkpoints import Checkpoint
from mldb.history.reading import ReadSurface
from mldb.history.relationships import Relationship
from mldb.history.versions import Version, history_of
from mldb.log.index.address import Lsn, to_time
from mldb.state.tree import restore_into
from mldb.tensors.handle import TensorHandle
from mldb.tensors.scope import Scope

if TYPE_CHECKING:
    import torch


class StateSurface(ReadSurface):
    """The read surface of a database or snapshot: handles, history, relationships, states."""

    def tensor(self, name: str, *, as_of: AsOf = None) -> TensorHandle:
        """Return a lazy handle: shape, dtype and metadata now, bytes when asked.

        A slice of the handle reads its own bytes alone. Raises TensorNotFoundError.
        """
        scope = self._scope(as_of)
        return TensorHandle(scope, name, scope.tensor_entry(name))

    def history(self, name: str, *, as_of: AsOf = None) -> list[Version]:
        """Return every version of *name* along this lineage, oldest first.

        The list is empty when it never existed; deletions are not versions. Raises
        InvalidNameError.
        """
        return history_of(self._scope(as_of), name)

    def relationships(
        self,
        source: str | None = None,
        target: str | None = None,
        kind: str | None = None,
        *,
        as_of: AsOf = None,
    ) -> list[Relationship]:
        """Return the relationships that match, sorted by source, kind and target.

        None matches anything. Both ends may be any names, tensors or not.
        """
        return relationships.relationships_in(self._scope(as_of), source, target, kind)

    def state_dict(
        self, *, as_of: AsOf = None, prefix: str = "", device: str | torch.device | None = None
    ) -> dict[str, Any]:
        """Return torch tensors by name, for ``load_state_dict``.

        They are those of the newest checkpoint as of *as_of*; without any, all tensors. *prefix*
        selects and is cut off: for ``checkpoint({"model": m, ...})`` pass ``prefix="model/"``. The
        tensors are the caller's own; large ones are private mappings. Raises what reading raises.
        """
        return checkpoints.state_dict(self._scope(as_of), prefix, device)

    def load(
        self, state: Any, *, as_of: AsOf = None, strict: bool = True, part: bool = False
    ) -> Any:
        """Load the newest checkpoint as of *as_of* into live objects, and return the state.

        *state* is a module, an optimizer, or a nested tree holding them; plain values in it (a
        step, a cursor) are taken from the returned tree. Tied tensors stay tied. ``state=None``
        only returns the tree. The state of an optimizer goes by name where it and the saved one
        were built from ``named_parameters()``, else by position.

        With ``part=True`` the dicts around live objects name a part of the checkpoint, such as
        ``{"model": m}`` of a whole run: what they do not name is not read, missed or returned, and
        what they name is loaded as strictly as ever.

        Raises MissingError without a checkpoint or for missing keys, InvalidValueError for
        unexpected ones or other shapes; then nothing was changed.
        """
        if part and state is None:
            raise InvalidValueError(
                'part=True loads what the state names: pass the part, as {"model": model}'
            )
        tree = checkpoints.state_of(self._scope(as_of), state if part else None)
        return tree if state is None else restore_into(state, tree, strict=strict)

    def checkpoints(self, *, as_of: AsOf = None) -> list[Checkpoint]:
        """Return the checkpoints of this lineage, oldest first; the newest of each name."""
        return checkpoints.checkpoints_in(self._scope(as_of))


class Snapshot(StateSurface, Closing):
    """Everything as it was at one commit, for as long as it is open. Made by ``db.at(as_of)``.

    A context manager; any thread. While open, its commit is registered, so compaction keeps what it
    reads; one that is dropped without :meth:`close` gives it free as well. Arrays taken from it
    live on after it is closed.
    """

    def __init__(self, scope: Scope, guard: Callable[[], None]) -> None:
        self._guard = guard
        self._fixed, self._hold = held(scope)

    def _scope(self, as_of: AsOf = None) -> Scope:
        self._guard()
        if not self._hold.is_held:
            raise ClosedError("this snapshot is closed; db.at(as_of) opens another")
        fixed = self._fixed
        if as_of is None:
            return fixed
        row = resolve(fixed.view, fixed.intervals, as_of)
        return fixed._replace(commit=row, intervals=snapshot_intervals(fixed.view, row))

    @property
    def lsn(self) -> Lsn:
        """The commit that this snapshot is fixed at; 0 is the empty state before the first."""
        return Lsn(self._fixed.commit.lsn)

    @property
    def epoch(self) -> int:
        """The epoch of that commit."""
        return self._fixed.commit.epoch

    @property
    def time(self) -> datetime:
        """The time of that commit (UTC)."""
        return to_time(self._fixed.commit.time)

    def tags(self) -> dict[str, Lsn]:
        """The tags of the store when the snapshot was opened (tags are not rewound)."""
        return tags.tags(self._scope().view)

    def close(self) -> None:
        """Give the commit free for retention. Closing twice is harmless."""
        self._hold.release()

    def __reduce__(self) -> NoReturn:
        """A snapshot belongs to an open store, which does not travel between processes."""
        raise InvalidTypeError(
            f"a snapshot is not pickled; send the path of the store and {self.lsn!r}, and call "
            "mldb.open(path).at(lsn=...) where it is used"
        )

    def __repr__(self) -> str:
        """One line: epoch and commit."""
        return f"<Snapshot epoch={self.epoch} lsn={self.lsn}>"
