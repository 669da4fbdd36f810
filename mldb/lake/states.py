"""What one handle knows of its lakes: their chains, which have any commit's state, and the rest.

The rest is what was computed of their rows, within a number of bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np

from mldb.arrays import Numbers
from mldb.errors import MldbError
from mldb.lake.projection import LakeState, require_lake
from mldb.lake.rows.chain import Chain, Size
from mldb.lake.rows.chain_hint import load_chain, save_chain
from mldb.tensors.cache import ByteCache
from mldb.tensors.scope import Scope

_T = TypeVar("_T")

CHAINS_MAX: Final = 4  # lineages of one lake that are kept; the one used last stays
_STATES_MAX: Final = 64
_FRESH_BLOCKS: Final = 512
_FRESH_ROWS: Final = 1 << 12  # of a block: ids of more rows are read back as fast
_LEARNT_BLOCKS: Final = 1024  # whose ids are read for the hint, where nobody asked for ids
SAVE_FROM: Final = 256
"""Changes that are not in the hint yet from which it is written again."""


class LakeStates:
    """The lakes of one handle. Any thread; made once, and cleared when the handle closes.

    ``_chains`` and ``_states`` are replaced or changed in single steps; a race costs a fold.
    """

    def __init__(self, cache_bytes: int, *, saves: bool) -> None:
        """*saves*: whether hints may be written."""
        self.derived = ByteCache(cache_bytes, "the cache of what was computed of lakes")
        self.folded = 0  # changes read from the log
        self.loaded = 0  # changes read from hints
        self._saves = saves
        self._chains: dict[bytes, tuple[Chain, ...]] = {}  # by lake id, the one used last first
        self._states: dict[tuple[str, int], LakeState] = {}
        self._fresh: dict[int, Numbers] = {}  # by commit, the ids of what was added last
        self._added: dict[str, int] = {}  # commits of this handle that nothing looked at
        self._at_close: list[weakref.finalize[..., Any]] = []
        self._is_closed = False

    # --- states -----------------------------------------------------------------------------------

    def fold(self, scope: Scope, name: str) -> LakeState:
        """Return the state of lake *name* in *scope*: O(what changed since the nearest known).

        Raises MissingError, CorruptError, VersionGoneError.
        """
        info, head = require_lake(scope, name)
        version = head.commit_lsn
        known = self._states.get((name, version))
        if known is not None and known.info == info:
            return known
        chain, size = self._nearest(scope, name, info.lake_id)
        if chain.last_commit(size) != version:
            chain, size = self._grown(scope, chain, size, version)
        state = LakeState(name, version, info, chain, size)
        if len(self._states) >= _STATES_MAX:
            for old in list(islice(tuple(self._states), _STATES_MAX // 2)):
                self._states.pop(old, None)
        self._states[name, version] = state
        return state

    def _nearest(self, scope: Scope, name: str, lake_id: bytes) -> tuple[Chain, Size]:
        """The chain that begins with most of what *scope* sees, and how much that is."""
        chains = self._chains.get(lake_id)
        if chains is None:
            chain = load_chain(scope, name, lake_id)
            if chain is None:
                chain = Chain(name, lake_id)
            else:
                self.loaded += chain.changes
            chain.fresh = self._fresh
            chains = self._chains.setdefault(lake_id, (chain,))
        sizes = [chain.visible(scope.intervals) for chain in chains]
        best = max(range(len(chains)), key=lambda number: sum(sizes[number]))
        return chains[best], sizes[best]

    def _grown(self, scope: Scope, chain: Chain, size: Size, version: int) -> tuple[Chain, Size]:
        """Take in what is behind *size*: in place at the end of a chain, else in a fork of it."""
        guard = chain.lock.hold_unless_inside()
        if guard is None:  # inside the call that grows it: what it has told is whole
            fork = chain.fork(size)
            fork.extend(scope)
            return fork, fork.size
        with guard:
            size = chain.visible(scope.intervals)  # another thread may have been here
            if chain.last_commit(size) == version:
                return chain, size
            before = chain.changes
            if size == chain.size:
                chain.extend(scope)
                self.folded += chain.changes - before
                return chain, chain.size
            fork = chain.fork(size)
        fork.extend(scope)
        self.folded += fork.changes - sum(size)
        known = (fork, *self._chains.get(chain.lake_id, ()))
        self._chains[chain.lake_id] = known[:CHAINS_MAX]
        for key, state in tuple(self._states.items()):
            if state.chain in known[CHAINS_MAX:]:
                self._states.pop(key, None)
        return fork, fork.size

    # --- what is computed of a state --------------------------------------------------------------

    def compute(
        self, state: LakeState, what: Hashable, make: Callable[[], _T], nbytes: Callable[[_T], int]
    ) -> _T:
        """Return what *make* returns for a state and *what*, made once while there is room."""
        return self.derived.get((state.info.lake_id, state.version, what), nbytes, make)

    # --- hints ------------------------------------------------------------------------------------

    def note_ids(self, commit: int, ids: Numbers) -> None:
        """Remember the ids of rows that were just added, for who looks for ids next."""
        if len(self._fresh) >= _FRESH_BLOCKS:
            for old in tuple(self._fresh)[: _FRESH_BLOCKS // 2]:
                self._fresh.pop(old, None)
        if len(ids) <= _FRESH_ROWS:
            self._fresh[commit] = ids

    def note_change(self, scope: Callable[[], Scope], name: str) -> None:
        """Count a commit to a lake; now and then take in what came, so that no close has to.

        What is wrong with the lake is for who reads it: the change is stored, whatever else is.
        """
        count = self._added[name] = self._added.get(name, 0) + 1
        if count >= SAVE_FROM and self._saves:
            self._added[name] = 0
            with suppress(MldbError):
                now = scope()
                state = self.fold(now, name)
                self._learn_ids(state, now)
                self.save(state, now)

    @staticmethod
    def _learn_ids(state: LakeState, scope: Scope) -> None:
        """Have the ids of the last rows in the index, so that the hint has all of them."""
        chain = state.chain
        known = int(np.searchsorted(chain.stops.first(state.size.blocks), chain.index.count))
        if state.size.blocks - known <= _LEARNT_BLOCKS:
            with chain.lock.hold():
                chain.learn_ids(scope)

    def save(self, state: LakeState, scope: Scope) -> None:
        """Write the hint of a lake when enough is new; failures are ignored.

        By the share that is new, so that all writes together cost O(1) a change.
        """
        chain = state.chain
        if self._is_due(chain, max(SAVE_FROM, chain.saved // 8)):
            save_chain(scope, chain)
            for other in self._chains.get(chain.lake_id, ()):
                other.saved = min(other.saved, other.shared(chain))

    def _is_due(self, chain: Chain, least: int) -> bool:
        if not self._saves or chain.changes < SAVE_FROM:
            return False
        learnt = not chain.saved_ids and chain.index.count >= chain.stored(chain.size)
        return learnt or chain.changes - chain.saved >= least

    def at_close(self, act: Callable[[], object]) -> None:
        """Have *act* called once when the handle closes, or was dropped; at once where it did."""
        finalizer = weakref.finalize(self, act)
        finalizer.atexit = False
        self._at_close.append(finalizer)
        if self._is_closed:
            finalizer()

    def close(self, scope: Scope) -> None:
        """Write the hints that are worth it, and forget everything; raises nothing of a disk."""
        chains, self._chains = self._chains, {}
        for known in chains.values():
            chain = max(known, key=lambda chain: sum(chain.visible(scope.intervals)))
            if self._is_due(chain, SAVE_FROM):
                save_chain(scope, chain)
        self._states.clear()
        self.derived.clear()
        self._is_closed = True
        for finalizer in self._at_close:
            finalizer()

    def stats(self) -> dict[str, Any]:
        """Changes folded and loaded, what is held of them, and the cache's figures."""
        chains = [chain for known in tuple(self._chains.values()) for chain in known]
        return {
            "folded": self.folded,
            "loaded": self.loaded,
            "chains": len(chains),
            "chain_bytes": sum(chain.nbytes for chain in chains),
            **self.derived.stats(),
        }
