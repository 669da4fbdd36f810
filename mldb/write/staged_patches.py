"""The patches of one transaction: rows that change, of tensors of which nothing else is staged."""

from __future__ import annotations

from collections.abc import Iterator

from mldb.history.kinds.patches import PatchedVersion, tensor_patched
from mldb.log.frame import Record
from mldb.log.patch import Patch, merge_patches


class StagedPatches:
    """One patch for each key. Used by one thread; what it is given is not changed."""

    def __init__(self) -> None:
        self._patches: dict[bytes, tuple[PatchedVersion, Patch]] = {}

    def __bool__(self) -> bool:
        return bool(self._patches)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._patches)

    def put(self, key: bytes, below: PatchedVersion, patch: Patch) -> None:
        """Stage rows on a version; on rows that are staged already they are laid over."""
        staged = self._patches.get(key)
        if staged is not None:
            below, patch = staged[0], merge_patches(staged[1], patch)
        self._patches[key] = below, patch

    def get(self, key: bytes) -> tuple[PatchedVersion, Patch] | None:
        """Return what is staged for a key."""
        return self._patches.get(key)

    def pop(self, key: bytes) -> None:
        """Drop what is staged for a key."""
        self._patches.pop(key, None)

    def records(self) -> list[Record]:
        """Return a record for each, hashed."""
        return [tensor_patched(key, *staged) for key, staged in self._patches.items()]
