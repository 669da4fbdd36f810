"""Model checkpoints: which were taken, and their states put together again."""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mldb import keys
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, MissingError
from mldb.history.as_of import snapshot_intervals
from mldb.history.kinds.checkpoints import unpack_checkpoint
from mldb.html import html_of, html_pairs, html_table
from mldb.log.index.address import Entry, Lsn, to_time
from mldb.printable import shown_bytes, shown_time
from mldb.state.parts import state_at, tensor_names
from mldb.state.skeleton import parse_skeleton
from mldb.state.tree import unflatten
from mldb.tensors.codec import rebuild, unpack_descriptor, view_numpy, view_torch
from mldb.tensors.decode import plain_mode
from mldb.tensors.scope import Scope, own_bytes, read_array, stored_bytes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model checkpoint: a single commit.

    ``stall_ms`` is how long the training thread waited for it; 0 in what is read back from a store.
    ``nbytes`` counts the bytes of its tensors. ``interrupted``: it was taken in a signal handler,
    in the middle of a step (see ``db.save_on_signal``).
    """

    name: str
    lsn: Lsn
    epoch: int
    step: int | None
    time: datetime
    metrics: dict[str, Any] = field(default_factory=dict)
    tensors: int = 0
    nbytes: int = 0
    stall_ms: float = 0.0
    interrupted: bool = False

    def _repr_html_(self) -> str:
        """The form of notebooks: when it was taken, how large, and its metrics."""
        return html_of(self, self._html)

    def _html(self) -> str:
        pairs: dict[str, object] = {
            "epoch": self.epoch,
            "step": "-" if self.step is None else self.step,
            "commit": self.lsn,
            "time": shown_time(self.time),
            "tensors": f"{self.tensors:,} ({shown_bytes(self.nbytes)})",
        }
        if self.interrupted:
            pairs["interrupted"] = "in the middle of a step"
        figures = html_pairs(pairs, caption=f"checkpoint {self.name}")
        if not self.metrics:
            return figures
        return figures + html_table(("metric", "value"), self.metrics.items(), right=("value",))


def checkpoints_in(scope: Scope) -> list[Checkpoint]:
    """Return the checkpoints of this lineage, the newest of each name, oldest first."""
    found = [
        _checkpoint(scope, key, entry)
        for key, entry in scope.view.live(keys.CHECKPOINTS, scope.intervals)
        if key != keys.LATEST_CHECKPOINT
    ]
    return sorted(found, key=lambda item: item.lsn)


def _checkpoint(scope: Scope, key: bytes, entry: Entry) -> Checkpoint:
    row = scope.view.commit_at(entry.commit_lsn)
    epoch, time = (0, 0) if row is None else (row.epoch, row.time)
    info = unpack_checkpoint(key, entry.attr)
    return Checkpoint(
        info.name,
        Lsn(entry.commit_lsn),
        epoch,
        info.step,
        to_time(time),
        info.metrics,
        info.tensors,
        info.nbytes,
        interrupted=info.interrupted,
    )


def latest(scope: Scope) -> Entry | None:
    """Return the newest checkpoint of any name, or None."""
    return scope.find(keys.LATEST_CHECKPOINT)


def at_checkpoint(scope: Scope, entry: Entry) -> Scope:
    """The snapshot at the checkpoint's own commit, so that its tensors belong together."""
    row = scope.view.commit_at(entry.commit_lsn)
    assert row is not None
    return scope._replace(commit=row, intervals=snapshot_intervals(scope.view, row))


def skeleton_of(scope: Scope, entry: Entry) -> bytes:
    """Return the packed skeleton of a checkpoint."""
    door, size = scope.source.door, entry.length
    return bytes(door.version(scope.view, keys.LATEST_CHECKPOINT, entry, size, "checkpoint"))


def state_of(scope: Scope, part: Any = None) -> Any:
    """Return the whole state of the newest checkpoint, typed as it was given; or a *part* of it.

    Of a part, which is a tree of live objects, what it does not name is neither read nor returned.

    Every tensor is the caller's own: writing to one reaches neither the store nor another reader.
    Raises MissingError.
    """
    entry = latest(scope)
    if entry is None:
        raise MissingError(
            f"there is no checkpoint at commit {scope.commit.lsn} (epoch {scope.commit.epoch}). "
            "db.checkpoint(state, epoch=...) takes one; single tensors are read with db[name]."
        )
    fixed = at_checkpoint(scope, entry)
    skeleton = skeleton_of(scope, entry)
    return unflatten(skeleton, lambda name: _own_tensor(fixed, name), part=part)


def keys_of_newest(scope: Scope) -> list[Any]:
    """Return the keys of the state of the newest checkpoint; none where it is no dict."""
    entry = latest(scope)
    if entry is None:
        return []
    state = unflatten(skeleton_of(scope, entry), lambda name: name)
    return list(state) if isinstance(state, dict) else []


def _own_tensor(scope: Scope, name: str) -> Any:
    """Return a tensor in the framework and layout it was given in, writable and private."""
    entry = scope.tensor_entry(name)
    what = unpack_descriptor(entry.attr)
    if what.layout != "dense":
        return rebuild(what, stored_bytes(scope, entry, name))
    view = view_torch if what.framework == "torch" else view_numpy
    return view(what, own_bytes(scope, entry, name))


def state_dict(scope: Scope, prefix: str, device: str | torch.device | None) -> dict[str, Any]:
    """Return the state dict at *prefix*, or tensors by name with *prefix* cut off.

    The names are those of the newest checkpoint, or all tensors when there is none.
    """
    if not isinstance(prefix, str):
        raise InvalidTypeError(f"prefix is a {type(prefix).__name__}, not a str")
    entry = latest(scope)
    if entry is None:
        return _by_name(scope, list(scope.names(prefix)), prefix, device)
    fixed = at_checkpoint(scope, entry)
    skeleton = parse_skeleton(skeleton_of(scope, entry))
    state = state_at(
        skeleton,
        prefix,
        lambda name: _moved(_own_tensor(fixed, name), device),
        lambda name: _torch_tensor(fixed, name, device),
    )
    if state is not None:
        found: dict[str, Any] = state
        return found
    names = [name for name in tensor_names(skeleton.root) if name.startswith(prefix)]
    return _by_name(fixed, names, prefix, device)


def _by_name(
    scope: Scope, names: list[str], prefix: str, device: str | torch.device | None
) -> dict[str, Any]:
    return {name[len(prefix) :]: _torch_tensor(scope, name, device) for name in names}


def _torch_tensor(scope: Scope, name: str, device: str | torch.device | None) -> Any:
    entry = scope.tensor_entry(name)
    what = unpack_descriptor(entry.attr)
    if what.layout != "dense":
        tensor = read_array(scope, entry, name)
    else:
        tensor = view_torch(what, own_bytes(scope, entry, name))
    return _moved(tensor, device)


def _moved(tensor: Any, device: str | torch.device | None) -> Any:
    if device is None or not hasattr(tensor, "to"):
        return tensor
    with plain_mode():
        return tensor.to(device)
