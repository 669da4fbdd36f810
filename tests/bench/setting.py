"""What every workload is given: the scale, the contenders, and where to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.peer import Ability, Peer, Purpose, Store
from tests.bench.registry import able
from tests.bench.timing import Workspace
from tests.bench.workloads import Scale, State


@dataclass(frozen=True, slots=True)
class Setting:
    """One run of the harness."""

    scale: Scale
    peers: list[Peer]
    workspace: Workspace

    def able(self, ability: Ability) -> list[Peer]:
        """Return the contenders that have *ability*."""
        return able(self.peers, ability)

    def notes(self, ability: Ability) -> dict[str, str]:
        """Return how each contender does *ability*, by name."""
        return {peer.name: peer.notes.get(ability, "") for peer in self.peers}

    def has(self, name: str) -> bool:
        """Tell whether the contender *name* takes part."""
        return any(peer.name == name for peer in self.peers)

    def build(self, peers: list[Peer], purpose: Purpose, write: Callable[[Store], None]) -> Folders:
        """Let every peer with files of its own write once; return the folder each peer reads."""
        folders: dict[str, Path] = {}
        for peer in peers:
            if not peer.reads:
                folders[peer.name] = self.workspace.fresh(peer.name)
                store = peer.open(folders[peer.name], purpose)
                write(store)
                store.close()
        for peer in peers:
            if peer.reads:
                folders[peer.name] = folders[peer.reads]
        self.workspace.settle()
        return folders

    def drop(self, folders: Folders) -> None:
        """Remove the folders that :meth:`build` made."""
        for folder in set(folders.values()):
            self.workspace.drop(folder)


Folders = dict[str, Path]


def check_equal(peer: Peer, folder: Path, expected: State) -> None:
    """Read *expected* back and compare all bytes; RuntimeError names the first difference."""
    store = peer.open(folder, "read")
    for name, array in expected.items():
        got: Any = np.ascontiguousarray(store.get(name)).reshape(-1).view(np.uint8)
        if not np.array_equal(got, array.reshape(-1).view(np.uint8)):
            raise RuntimeError(
                f"{peer.name} returned other bytes for {name} than were stored: no figures"
            )
        del got
    store.close()


def check_total(peer: Peer, got: int, expected: int) -> None:
    """Compare the sum over all bytes that a measured read returned with the true one."""
    if got != expected:
        raise RuntimeError(
            f"{peer.name} read bytes that sum to {got}, stored {expected}: no figures"
        )
