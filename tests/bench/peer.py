"""What a contender can do: one class per peer implements :class:`Store`, :class:`Peer` names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tests.bench.workloads import Array, State

# What a store is opened for, so that each peer can use its best documented settings for it.
Purpose: TypeAlias = Literal["bulk", "durable", "lazy", "read"]
Ability: TypeAlias = Literal[
    "checkpoint", "load", "lazy", "batch", "commits", "as_of", "rows", "records"
]
# Copies the rows from a start on into the given (rows, width) buffer.
RowReader: TypeAlias = Callable[[int, Array], None]


class Store:
    """One open store of one peer. Not thread-safe; arrays it returns are valid until ``close``.

    A key-value store holds opaque bytes: what it returns has the bytes of what was put, while dtype
    and shape may be lost. Peers override what they can do and list it in :attr:`Peer.can`.
    """

    def put_all(self, prepared: Any) -> None:
        """Save one whole state, atomically where the peer can; durable at return."""
        raise NotImplementedError

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        """Put small tensors one after another, with no fsync."""
        raise NotImplementedError

    def put_batch(self, batch: State) -> None:
        """Put small tensors together; durable at return."""
        raise NotImplementedError

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        """Make *changed* (*full* with all that stayed) the state of *epoch*; durable at return."""
        raise NotImplementedError

    def put_rows(self, name: str, matrix: Array) -> None:
        """Store one large matrix so that slices of rows can be read."""
        raise NotImplementedError

    def get(self, name: str) -> Array:
        """Return one tensor."""
        raise NotImplementedError

    def get_all(self) -> Iterator[Array]:
        """Return every tensor of the store."""
        raise NotImplementedError

    def get_as_of(self, name: str, epoch: int) -> Array:
        """Return the tensor as it was at *epoch*."""
        raise NotImplementedError

    def rows(self, name: str, row_values: int) -> RowReader:
        """Return a reader of row slices of the fp32 matrix *name*, *row_values* wide."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store."""


def _unchanged(state: State) -> Any:
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One contender: how to open it, what it can do, and how (``notes``, by ability).

    ``prepare`` turns a state dict of arrays into what the peer is used with, outside of any timing.
    ``reads`` names the peer whose files this one reads (itself when empty).
    """

    name: str
    open: Callable[[Path, Purpose], Store]
    can: frozenset[Ability]
    notes: dict[Ability, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reads: str = ""
    prepare: Callable[[State], Any] = field(default=_unchanged)

    def installed(self) -> bool:
        """Tell whether the packages this peer needs can be imported."""
        return all(find_spec(package) is not None for package in self.needs)


def as_torch(state: State) -> Any:
    """Return the state as torch tensors over the same memory."""
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


def abilities(*names: Ability) -> frozenset[Ability]:
    """Return a typed set of abilities."""
    return frozenset(names)
