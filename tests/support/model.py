"""What a store must hold, as plain dicts: one content per commit, and the lineage between them.

A change is a function of something with the verbs of a transaction. The same function runs on the
model's draft and on the store, so that a test says only once what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

import mldb
from mldb.history.snapshot import StateSurface

Value: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""A tensor: dtype with its byte order, shape, bytes."""

Point: TypeAlias = tuple[int, float]
"""A step and a value that was logged."""

Relation: TypeAlias = tuple[str, str, str]
"""Source, kind, target."""


class Verbs(Protocol):
    """The verbs that a transaction and a draft of the model share."""

    def store_tensor(self, name: str, data: Any, metadata: dict[str, Any] | None = None) -> None:
        """Store a version."""

    def update_tensor(self, name: str, rows: Any, values: Any) -> None:
        """Store a version that differs in some rows."""

    def delete_tensor(self, name: str) -> None:
        """End a name and its metadata."""

    def set_metadata(self, name: str, metadata: dict[str, Any]) -> None:
        """Replace the metadata of an existing tensor."""

    def create_relationship(
        self, source: str, target: str, kind: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Relate two names."""

    def delete_relationship(self, source: str, target: str, kind: str) -> None:
        """End a relationship."""


Change: TypeAlias = Callable[[Verbs], None]


def value_of(data: Any) -> Value:
    """Return a dense array as something that can be compared to the last bit."""
    array = np.asarray(data)
    return f"{array.dtype.name} {array.dtype.str}", array.shape, array.tobytes()


@dataclass(slots=True)
class Content:
    """The state at one commit. As a draft it takes the verbs of a transaction."""

    tensors: dict[str, Value] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    relations: dict[Relation, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, Value] = field(default_factory=dict, compare=False)
    """The versions that the commit itself made."""
    points: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    """The curves of the metrics."""

    def draft(self) -> Content:
        """Return a copy that may be changed."""
        tensors, metadata = dict(self.tensors), dict(self.metadata)
        return Content(tensors, metadata, dict(self.relations), points=dict(self.points))

    def log(self, values: dict[str, float], step: int) -> None:
        """Add a point to each of some curves."""
        for name, value in values.items():
            self.points[name] = (*self.points.get(name, ()), (step, value))

    def store_tensor(self, name: str, data: Any, metadata: dict[str, Any] | None = None) -> None:
        """Store a version; None leaves the metadata as it is."""
        self.tensors[name] = self.stored[name] = value_of(data)
        if metadata is not None:
            self.set_metadata(name, metadata)

    def update_tensor(self, name: str, rows: Any, values: Any) -> None:
        """Store a version that differs in some rows of one that NumPy knows the dtype of."""
        (_, dtype), shape, data = self.tensors[name][0].split(), *self.tensors[name][1:]
        changed = np.frombuffer(data, dtype).reshape(shape).copy()
        changed[rows] = values
        self.store_tensor(name, changed)

    def delete_tensor(self, name: str) -> None:
        """End a name and its metadata; relationships stay."""
        del self.tensors[name]
        self.metadata.pop(name, None)
        self.stored.pop(name, None)

    def set_metadata(self, name: str, metadata: dict[str, Any]) -> None:
        """Replace the metadata; {} is none."""
        assert name in self.tensors
        self.metadata[name] = dict(metadata)
        if not metadata:
            del self.metadata[name]

    def create_relationship(
        self, source: str, target: str, kind: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Relate two names."""
        self.relations[source, kind, target] = dict(metadata or {})

    def delete_relationship(self, source: str, target: str, kind: str) -> None:
        """End a relationship."""
        del self.relations[source, kind, target]


def content_of(surface: StateSurface, as_of: Any = None) -> Content:
    """Read everything that a database or snapshot shows."""
    names = surface.names(as_of=as_of)
    metadata = {name: surface.metadata(name, as_of=as_of) for name in names}
    return Content(
        {name: value_of(surface.query_tensor(name, as_of=as_of)) for name in names},
        {name: found for name, found in metadata.items() if found},
        {
            (found.source, found.kind, found.target): found.metadata
            for found in surface.relationships(as_of=as_of)
        },
        points={name: points_of(surface, name, as_of) for name in surface.metrics(as_of=as_of)},
    )


def points_of(surface: StateSurface, name: str, as_of: Any = None) -> tuple[Point, ...]:
    """Read the curve of one metric."""
    curve = surface.metrics(name, as_of=as_of)
    return tuple(zip(curve.step.tolist(), curve.value.tolist(), strict=True))


@dataclass(slots=True)
class Commit:
    """One commit. ``parent`` is an index into the commits of the model, which starts with none."""

    lsn: int
    epoch: int
    parent: int
    content: Content
    tags: dict[str, int] = field(default_factory=dict)
    pins: frozenset[int] = frozenset()


@dataclass(slots=True)
class Model:
    """All commits in the order of the log; the first stands for the empty store."""

    commits: list[Commit] = field(default_factory=lambda: [Commit(0, 0, 0, Content())])

    @property
    def head(self) -> Commit:
        """The newest commit."""
        return self.commits[-1]

    def add(self, lsn: int, epoch: int | None, content: Content, parent: int = -1) -> Commit:
        """Append a commit; tags and pins are those of the store, whatever its parent."""
        head = self.head
        where = len(self.commits) - 1 if parent < 0 else parent
        label = head.epoch if epoch is None else epoch
        commit = Commit(int(lsn), label, where, content, dict(head.tags), head.pins)
        self.commits.append(commit)
        return commit

    def mark(self, lsn: int) -> Commit:
        """Append a commit of which only tags or pins will differ."""
        return self.add(lsn, None, self.head.content.draft())

    def lineage(self, index: int = -1) -> list[int]:
        """Return the indexes of the commits that lead to one, oldest first, without the empty."""
        found: list[int] = []
        index = len(self.commits) - 1 if index < 0 else index
        while index:
            found.append(index)
            index = self.commits[index].parent
        return found[::-1]

    def at_epoch(self, epoch: int, index: int = -1) -> Commit:
        """Return the last commit of a lineage with an epoch up to this one; the empty before."""
        chain = [self.commits[place] for place in self.lineage(index)]
        return next((c for c in reversed(chain) if c.epoch <= epoch), self.commits[0])

    def index_of(self, lsn: int) -> int | None:
        """Return the place of the commit with this LSN."""
        return next((i for i, commit in enumerate(self.commits) if commit.lsn == lsn), None)

    def history(self, name: str, index: int = -1) -> list[tuple[int, int, Value]]:
        """Return (LSN, epoch, value) of each version of a name along a lineage, oldest first."""
        chain = [self.commits[place] for place in self.lineage(index)]
        return [(c.lsn, c.epoch, c.content.stored[name]) for c in chain if name in c.content.stored]


def differences(db: mldb.MLDatabase, model: Model, index: int) -> list[str]:
    """Compare a store with the model up to commit *index*: the head, and every read of the past."""
    head = model.commits[index]
    found: list[str] = []

    def compare(what: str, have: object, want: object) -> None:
        if have != want:
            found.append(f"{what}: {have!r:.300} is not {want!r:.300}")

    compare("head", (int(db.lsn), db.epoch), (head.lsn, head.epoch))
    compare("tags", {name: int(lsn) for name, lsn in db.tags().items()}, head.tags)
    compare("pins", frozenset(map(int, db.pins())), head.pins)
    compare("content", content_of(db), head.content)
    chain = [model.commits[place] for place in model.lineage(index)]
    for epoch in sorted({commit.epoch for commit in chain}):
        want = model.at_epoch(epoch, index)
        compare(f"content as of epoch {epoch}", content_of(db, epoch), want.content)
    by_epoch = {model.at_epoch(commit.epoch, index).lsn for commit in chain}
    for commit in model.commits[: index + 1]:
        # Those that an epoch leads to were compared above; it stands for the same snapshot.
        lsn = mldb.Lsn(commit.lsn)
        if commit.lsn in by_epoch:
            compare(
                f"names as of commit {lsn}", db.names(as_of=lsn), sorted(commit.content.tensors)
            )
        else:
            compare(f"content as of commit {lsn}", content_of(db, lsn), commit.content)
    for name, target in head.tags.items():
        place = model.index_of(target)
        assert place is not None
        want = model.commits[place]
        compare(f"content as of tag {name!r}", content_of(db, name), want.content)
    for name in sorted({name for commit in chain for name in commit.content.stored}):
        versions = [(int(item.lsn), item.epoch) for item in db.history(name)]
        want_versions = [item[:2] for item in model.history(name, index)]
        compare(f"history of {name!r}", versions, want_versions)
    return found
