"""What a lake needs of the store it lives in, passed in by the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mldb.deferred import dataclass
from mldb.history.as_of import AsOf
from mldb.history.snapshot import StateSnapshot
from mldb.lake.states import LakeStates
from mldb.log.frame import Record
from mldb.log.index.address import CommitRow
from mldb.log.pending import PendingSegment
from mldb.log.view import View
from mldb.tensors.scope import Scope
from mldb.write.buffers import BufferPool

Validate = Callable[[View], None]
Commit = Callable[[list[Record], int | None, Validate | None, PendingSegment | None], CommitRow]


@dataclass(frozen=True, slots=True)
class Host:
    """The store behind a lake. Any thread; the callables refuse use after close and after fork.

    ``reopen`` opens the same store again, read-only, in another process: it is a class, so that it
    travels to the workers of a DataLoader.
    """

    path: str
    reopen: Callable[..., Any]
    scope: Callable[[AsOf], Scope]
    at: Callable[[AsOf], StateSnapshot]
    commit: Commit
    open_pending: Callable[[], PendingSegment]
    settle: Callable[[], None]
    buffers: BufferPool
    note_rows: Callable[[str, int | None], None]
    """Told how many rows came to a lake, by its name; None when its policy was set."""
    known: LakeStates
    """What this handle knows of its lakes, at any commit."""


def head_scope(scope: Scope, view: View) -> Scope:
    """The scope of the newest head, inside a commit."""
    return scope._replace(view=view, commit=view.commit, intervals=view.intervals)
