"""A snapshot: the whole read surface, fixed at one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, overload

from mldb.closing import Closing
from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError, MissingError
from mldb.history.as_of import AsOf, held, resolve, snapshot_intervals
from mldb.history.reading import ReadSurface
from mldb.integers import integer
from mldb.log.index.address import Lsn, to_time
from mldb.log.readers import Hold
from mldb.tensors.scope import Scope

if TYPE_CHECKING:
    import torch

    from mldb.history.checkpoints import Checkpoint
    from mldb.history.diff import TensorDiff
    from mldb.history.metrics import MetricColumns
    from mldb.history.relationships import Relationship
    from mldb.history.versions import Version
    from mldb.state.report import LoadReport
    from mldb.tensors.handle import TensorHandle


class StateSurface(ReadSurface):
    """The read surface of a database or snapshot: handles, history, relationships, states."""

    def tensor(self, name: str, *, as_of: AsOf = None) -> TensorHandle:
        """Return a lazy handle: shape, dtype and metadata now, bytes when asked.

        A slice of the handle reads its own bytes alone. Raises TensorNotFoundError.

        Cost: a lookup; a slice O(its bytes).
        """
        from mldb.tensors.handle import TensorHandle

        scope = self._scope(as_of)
        return TensorHandle(scope, name, scope.tensor_entry(name))

    def tensor_version(self, name: str, lsn: int) -> TensorHandle:
        """Return a handle of the version of *name* that commit *lsn* stored, as histories list it.

        Unlike ``tensor(name, as_of=lsn)`` it needs that version alone: retention may have dropped
        the commit and kept the version, for a later moment at which it is still the newest. Raises
        VersionGoneError where this lineage has no such version, or no longer.
        """
        from mldb.history.versions import entry_of
        from mldb.tensors.handle import TensorHandle

        scope = self._scope()
        return TensorHandle(scope, name, entry_of(scope, name, lsn))

    def listing(
        self, prefix: str = "", *, as_of: AsOf = None, limit: int | None = None
    ) -> dict[str, Version]:
        """Return the version of each tensor whose name starts with *prefix*, in byte order.

        With *limit* only the first so many, which costs what these do. For lists of many: a tenth
        of what a handle of each costs. Nothing of the tensors is read. Raises InvalidTypeError and
        InvalidValueError for a limit that is no count.

        Cost: O(names with the prefix, or *limit*), those that were deleted on the way included.
        """
        from mldb.history.versions import listing_of

        if limit is not None and integer("limit", limit) < 0:
            raise InvalidValueError(f"limit={limit} is no count; None lists all")
        return listing_of(self._scope(as_of), prefix, limit)

    def history(self, name: str, *, as_of: AsOf = None) -> list[Version]:
        """Return every version of *name* along this lineage, oldest first.

        The list is empty when it never existed; deletions are not versions. Raises
        InvalidNameError.

        Cost: O(versions of *name*).
        """
        from mldb.history.versions import history_of

        return history_of(self._scope(as_of), name)

    def diff(
        self,
        before: AsOf,
        after: AsOf = None,
        *,
        prefix: str = "",
        values: bool = True,
        same: bool = False,
    ) -> Iterator[TensorDiff]:
        """Yield what changed between two moments, tensor by tensor, in the order of names.

        ``db.diff(3, 7)`` compares epoch 3 with epoch 7; *after* is now by default. Each has the
        kind of change, dtypes, shapes, and where values can be compared the norm of the difference,
        also relative to that before, the cosine, and the largest difference of an element. With
        ``values=False`` nothing is read, and versions with other bytes count as changed. *same*
        yields what did not change as well. Both moments are fixed at the call and stay readable
        until the iterator ends.

        Raises VersionGoneError, and CorruptError where a tensor is damaged.

        Cost: O(tensors), and reading those that changed, one at a time.
        """
        return _diff(self._scope(before), self._scope(after), prefix, values, same)

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

        Cost: O(relationships of *source*, else of *target*; of all where neither is given).
        """
        from mldb.history import relationships

        return relationships.relationships_in(self._scope(as_of), source, target, kind)

    def state_dict(
        self, *, as_of: AsOf = None, prefix: str = "", device: str | torch.device | None = None
    ) -> dict[str, Any]:
        """Return a state dict for ``load_state_dict``, from the newest checkpoint as of *as_of*.

        *prefix* selects and is cut off: for ``checkpoint({"model": m, ...})`` pass "model/", for
        its child "model/encoder.". For a module or another object with ``state_dict()`` the answer
        is what that gave: order, types, extra state and torch's versions of modules. Elsewhere, and
        without a checkpoint, it is torch tensors by name. The tensors are the caller's own, plain
        ones under any mode of torch; large ones are private mappings, until *device* is given.
        Raises what reading raises.

        Cost: O(names of the checkpoint), and O(bytes) of the selected tensors when they are read
        first.
        """
        from mldb.history import checkpoints

        return checkpoints.state_dict(self._scope(as_of), prefix, device)

    @overload
    def load(self, state: None, *, as_of: AsOf = None) -> Any: ...
    @overload
    def load(
        self,
        state: object,
        *,
        as_of: AsOf = None,
        strict: bool = True,
        assign: bool = False,
        strip_prefix: str | None = None,
        part: bool = False,
    ) -> LoadReport: ...
    def load(
        self,
        state: Any,
        *,
        as_of: AsOf = None,
        strict: bool = True,
        assign: bool = False,
        strip_prefix: str | None = None,
        part: bool = False,
    ) -> Any:
        """Load the newest checkpoint as of *as_of* into live objects, and return what was loaded.

        *state* is a module, an optimizer, or a nested tree holding them. The answer is a
        LoadReport: names loaded, missing, unexpected and ignored, and ``state``, the tree with
        plain values (a step, a cursor) as they were saved; ``report["step"]`` is one of them. Tied
        tensors stay tied. ``state=None`` loads nothing and returns the saved tree itself.

        With ``part=True`` the dicts around live objects name a part of the checkpoint, such as
        ``{"model": m}`` of a whole run: what they do not name is not read, missed or reported, and
        what they name is loaded as strictly as ever. The state of an optimizer goes by name where
        it and the saved one were built from ``named_parameters()``, else by position; with names
        and ``strict=False`` it may be over other parameters, which keep the state they have.

        Modules load by their own ``load_state_dict``, hooks and all: what it takes is taken. With
        *strict*, keys must agree; without, a module without any key in common with what was saved
        gives a NothingLoadedWarning. ``strip_prefix="auto"`` takes off the prefixes of
        ``torch.compile`` (``_orig_mod.``) and of DistributedDataParallel (``module.``), on either
        side; any other text is taken off where a saved key starts with it. *assign* puts the
        saved tensors in the places of a module's, as in torch: for modules on the meta device.
        Build its optimizer afterwards.

        Raises InvalidTypeError for a state that is a name or a number and holds nothing to load
        into, MissingError without a checkpoint or for missing keys, InvalidValueError for
        unexpected ones, other shapes, whatever a module refuses, and tensors on the meta device;
        then nothing was changed. For that each module loads twice, first on stand-ins: see
        :func:`mldb.state.load.restore_into`. From the thread that trains; nobody else may use the
        objects meanwhile.

        Cost: O(bytes) of what is loaded; each module is filled twice.
        """
        from mldb.history import checkpoints
        from mldb.state.report import listed
        from mldb.state.tree import restore_into

        if part and state is None:
            raise InvalidValueError(
                'part=True loads what the state names: pass the part, as {"model": model}'
            )
        for name, value in (("strict", strict), ("assign", assign), ("part", part)):
            if not isinstance(value, bool):
                raise InvalidTypeError(
                    f"{name} is a {type(value).__name__}, not True or False. Nothing was changed."
                )
        scope = self._scope(as_of)
        tree = checkpoints.state_of(scope, state if part else None)
        if state is None:
            return tree
        _refuse_names(state, tree)
        try:
            return restore_into(
                state, tree, strict=strict, assign=assign, strip_prefix=strip_prefix
            )
        except MissingError as error:
            if not part:
                raise
            saved = checkpoints.keys_of_newest(scope)
            raise MissingError(f"{error} The checkpoint has {listed(saved)}.") from None

    @overload
    def metrics(self, name: None = None, *, as_of: AsOf = None) -> list[str]: ...
    @overload
    def metrics(self, name: str, *, as_of: AsOf = None) -> MetricColumns: ...
    def metrics(self, name: str | None = None, *, as_of: AsOf = None) -> MetricColumns | list[str]:
        """Return the curve of metric *name* along this lineage, or the names of all metrics.

        A curve is NumPy columns: ``.step .epoch .time .value .lsn``; without points it is empty. On
        a database, what this handle has buffered is stored first. Raises InvalidNameError,
        VersionGoneError, CorruptError.

        Cost: O(points of *name*); O(names of metrics) for their names.
        """
        from mldb.history.metrics import metric_columns, metric_names

        self._settle_metrics()
        scope = self._scope(as_of)
        return metric_names(scope) if name is None else metric_columns(scope, name)

    def _settle_metrics(self) -> None:
        """Store what was logged and waits; a snapshot has nothing."""

    def checkpoints(self, *, as_of: AsOf = None) -> list[Checkpoint]:
        """Return the checkpoints of this lineage, oldest first; the newest of each name.

        One whose commit retention dropped is listed as well; to load it raises VersionGoneError.

        Cost: O(names of checkpoints).
        """
        from mldb.history import checkpoints

        return checkpoints.checkpoints_in(self._scope(as_of))


def _diff(
    before: Scope, after: Scope, prefix: str, values: bool, same: bool
) -> Iterator[TensorDiff]:
    from mldb.history.diff import diff_of

    one, hold_one = held(before)
    two, hold_two = held(after)
    return _told(diff_of(one, two, prefix, values=values, same=same), hold_one, hold_two)


def _told(found: Iterator[TensorDiff], *holds: Hold) -> Iterator[TensorDiff]:
    try:
        yield from found
    finally:
        for hold in holds:
            hold.release()


def _refuse_names(state: object, tree: object) -> None:
    """Refuse what is meant to say which checkpoint, where a state to load into is asked for."""
    from mldb.state.structs import parts_of

    if isinstance(state, str | int | datetime) and parts_of(tree) is not None:
        raise InvalidTypeError(
            f"the state to load into is {state!r:.80}, which holds nothing, and a "
            f"{type(tree).__name__} was saved. Nothing was changed. as_of= says which checkpoint: "
            f"db.load(state, as_of={state!r:.80}), or db.load(None, as_of=...) for what was saved."
        )


class StateSnapshot(StateSurface, Closing):
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
        """The tags of the store when the snapshot was opened (tags are not rewound).

        Cost: O(tags).
        """
        from mldb.history import tags

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

    def _repr_html_(self) -> str:
        """The form of notebooks: the moment, and the first tensors. Reads none of them."""
        from mldb.history.shown import moment_html
        from mldb.html import html_of

        return html_of(self, lambda: moment_html(self._scope(), "snapshot", {}))
