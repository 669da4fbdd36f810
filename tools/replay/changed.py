"""Replay with other values: each version of a tensor goes through a function of the caller.

``transform(name, array, metadata)`` returns the three of the new store, or None to leave the tensor
out. At every commit the new store shows what the function makes of what the old one showed. A name
becomes one name, always the same, and no two become one; a function that breaks this is refused.
What the function hands back as it got it goes over as it is stored, bases and all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgpack

from mldb import keys
from mldb.errors import InvalidTypeError, InvalidValueError, MldbError
from mldb.history.kinds import CHECKPOINT_TAKEN, METADATA_SET, TENSOR_PATCHED, TENSOR_STORED
from mldb.history.kinds.changes import attr_draft
from mldb.log import format as fmt
from mldb.log.batches import StoredBatch
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.index.address import CommitRow, Entry, Lsn
from mldb.names import check_name
from mldb.state.skeleton import TENSOR
from mldb.tensors.codec import (
    Descriptor,
    Prepared,
    pack_descriptor,
    pack_metadata,
    prepare_named,
    unpack_descriptor,
)
from mldb.tensors.dtypes import torch_dtype
from mldb.tensors.scope import Scope, read_array
from mldb.tools.replay.chosen import ChosenName, LeftEntry, NameChoice, assembled, names_in_state
from mldb.tools.replay.source import ReplaySource

Transform = Callable[[str, Any, dict[str, Any]], "tuple[str, Any, Mapping[str, Any]] | None"]
_TENSORISH: Final = frozenset({keys.TENSORS, keys.METADATA})


class TensorChange(NameChoice):
    """Like :class:`NameChoice`, with a function of every tensor. One thread, commits in log order.

    Commits up to *trusted_from* were written by an earlier run: nothing is built on what they have.
    """

    def __init__(
        self, source: ReplaySource, chosen: ChosenName, transform: Transform, trusted_from: int
    ) -> None:
        super().__init__(source, chosen)
        self._transform = transform
        self._trusted_from = trusted_from
        self._target_of: dict[str, str | None] = {}
        self._source_of: dict[str, str] = {}
        self._changed: set[tuple[bytes, int]] = set()  # versions that are not what they were
        self._reshaped: set[str] = set()  # names with another dtype or shape than before
        self._decided: dict[str, bool] = {}  # names of the present commit: whether as they are
        self._at = 0

    # --- names ------------------------------------------------------------------------------------

    def takes(self, name: str) -> bool:
        """Whether a name is chosen, and no tensor that the function leaves out."""
        return super().takes(name) and self.target(name) is not None

    def target(self, name: str) -> str | None:
        """Return the name in the new store, None for a tensor that is left out.

        A name that is no tensor stays. Of one that was not met yet the first version decides.
        """
        if name in self._target_of:
            return self._target_of[name]
        key = keys.TENSORS + name.encode()
        view = self.source.view
        first = next((e for e in view.versions(key) if not e.flags & fmt.ENTRY_TOMBSTONE), None)
        row = None if first is None else view.commit_at(first.commit_lsn)
        if row is None or not super().takes(name):
            return name
        self._call(self.source.scope_at(row), name)
        return self._target_of[name]

    def _settle(self, name: str, target: str | None, lsn: int) -> None:
        known = self._target_of.setdefault(name, target)
        if known != target:
            raise InvalidValueError(
                f"transform made {target!r:.80} of tensor {name!r:.80} at {Lsn(lsn)!r} and "
                f"{known!r:.80} before. A name becomes one name, or is left out, always the same. "
                "The target is unfinished."
            )
        if target is not None and self._source_of.setdefault(target, name) != name:
            raise InvalidValueError(
                f"transform made {target!r:.80} of both {self._source_of[target]!r:.80} and "
                f"{name!r:.80}. No two tensors become one. The target is unfinished."
            )

    def _call(self, scope: Scope, name: str) -> tuple[Any, Any, dict[str, Any]] | None:
        """Ask the function; return the array given and the two returned, None to leave it out."""
        entry = scope.tensor_entry(name)
        array = read_array(scope, entry, name)
        metadata = scope.metadata(name)
        answer = self._transform(name, array, dict(metadata))
        if answer is None:
            self._settle(name, None, scope.commit.lsn)
            return None
        try:
            target, made, described = answer
            check_name(target)
            described = dict(described or {})
        except (TypeError, ValueError) as error:
            if isinstance(error, MldbError):
                raise
            raise InvalidTypeError(
                f"transform returned {answer!r:.80} for {name!r:.80}; return (name, array, "
                "metadata), or None to leave the tensor out"
            ) from None
        self._settle(name, target, scope.commit.lsn)
        return array, made, described

    # --- records ----------------------------------------------------------------------------------

    def record(self, record: Record, batch: StoredBatch) -> Record | None:
        """Return what becomes of one record, None where nothing is left of it."""
        if batch.row.lsn != self._at:
            self._at, self._decided = batch.row.lsn, {}
        drafts = record.named_drafts()
        if not any(draft.key[:1] in _TENSORISH for draft in drafts):
            left = super().record(record, batch)
            return None if left is None else self._renamed_record(left)
        parts: list[LeftEntry] = []
        for draft in drafts:
            if draft.key[:1] not in _TENSORISH:
                parts += [LeftEntry(self._renamed(draft))] if self._stays(draft) else []
            elif self.takes(keys.name_of(draft.key)):
                parts += self._parts(draft, batch.row)
        if not parts:
            return None
        if record.kind in (METADATA_SET, TENSOR_PATCHED) and _stores_whole(parts):
            record = replace(record, kind=TENSOR_STORED, extra=None)
        return assembled(record, parts)

    def _parts(self, draft: Draft, row: CommitRow) -> list[LeftEntry]:
        """What one entry becomes. Of a name that changed, all is told with its first entry."""
        name = keys.name_of(draft.key)
        target = self.target(name)
        assert target is not None
        if draft.flags & fmt.ENTRY_TOMBSTONE:
            return [LeftEntry(draft._replace(key=draft.key[:1] + target.encode()))]
        is_same = self._decided.get(name)
        if is_same is None:
            scope = self.source.scope_at(row)
            entry = scope.find(keys.TENSORS + name.encode())
            if entry is None:  # metadata of a tensor that does not exist here
                return [LeftEntry(draft._replace(key=draft.key[:1] + target.encode()))]
            changed = self._changed_parts(scope, entry, name, target)
            self._decided[name] = is_same = not changed
            if changed:
                return changed
        if not is_same:
            return []
        part = self._with_bytes(draft, row.lsn)
        if draft.key[:1] == keys.TENSORS:
            self._note_owner(part.draft.digest, draft.key, row.lsn, part.draft.encoding)
        return [part]

    def _changed_parts(self, scope: Scope, entry: Entry, name: str, target: str) -> list[LeftEntry]:
        """The tensor and its metadata as the function makes them; nothing where all is the same."""
        answer = self._call(scope, name)
        assert answer is not None  # its target is known, and there is one
        given, made, metadata = answer
        is_same = target == name and made is given and metadata == scope.metadata(name)
        key, lsn = keys.TENSORS + name.encode(), entry.commit_lsn
        if is_same and (key, lsn) not in self._changed and not self._is_foreign(lsn, scope):
            return []
        self._changed.add((key, lsn))
        before = unpack_descriptor(entry.attr)
        prepared = _like(prepare_named(target, made), before)
        if prepared.descriptor != before:
            self._reshaped.add(name)
        key = keys.TENSORS + target.encode()
        blank = Draft(key, 0, fmt.ENCODING_RAW, 0, 0, b"", 0, prepared.attr)
        part = self.own(blank, _joined(prepared))
        self._note_owner(part.draft.digest, key, scope.commit.lsn, part.draft.encoding)
        return [
            part,
            LeftEntry(attr_draft(keys.METADATA + target.encode(), pack_metadata(metadata))),
        ]

    def _is_foreign(self, lsn: int, scope: Scope) -> bool:
        """Whether a version of an older commit was written by an earlier run: changed perhaps."""
        return lsn <= self._trusted_from and lsn < scope.commit.lsn

    def _keeps_base(self, draft: Draft) -> bool:
        key = draft.owner or draft.key
        is_changed = (key, draft.base) in self._changed or draft.base <= self._trusted_from
        return not is_changed and super()._keeps_base(draft)

    # --- what names tensors -----------------------------------------------------------------------

    def _renamed_record(self, record: Record) -> Record:
        if record.kind == CHECKPOINT_TAKEN:
            return self._renamed_state(record)
        drafts = [self._renamed(draft) for draft in record.named_drafts()]
        return replace(record, drafts=drafts)

    def _renamed(self, draft: Draft) -> Draft:
        """A relationship whose ends have their new names; anything else as it is."""
        if draft.key[:1] not in (keys.RELATIONS, keys.REVERSE):
            return draft
        ends = keys.split_relation(draft.key)
        source, kind, target = (*(self._end(ends[0]), ends[1].encode(), self._end(ends[2])),)
        make = keys.relation_key if draft.key[:1] == keys.RELATIONS else keys.reverse_key
        return draft._replace(key=make(source, kind, target))

    def _end(self, name: str) -> bytes:
        target = self.target(name)
        return (name if target is None else target).encode()

    def _renamed_state(self, record: Record) -> Record:
        """The checkpoint with the new names in its skeleton.

        Tensors that shared a storage share none any more where one has another dtype or shape.
        """
        names = names_in_state(record)
        targets = {name: self.target(name) or name for name in names}
        if self._reshaped.isdisjoint(names) and all(old == new for old, new in targets.items()):
            return record
        fields = msgpack.unpackb(b"".join(map(bytes, record.payload)))
        fields[1] = _with_names(fields[1], targets)
        fields[2] = {targets[alias]: targets.get(own, own) for alias, own in fields[2].items()}
        fields[3] = [
            [size, [[targets.get(view[0], view[0]), *view[1:]] for view in views], *rest]
            for size, views, *rest in fields[3]
            if self._reshaped.isdisjoint(view[0] for view in views)
        ]
        skeleton = bytes(msgpack.packb(fields))
        drafts = [
            draft._replace(offset=0, length=len(skeleton), digest=TO_BE_HASHED)
            for draft in record.named_drafts()
        ]
        return replace(
            record, drafts=drafts, payload=(skeleton,), payload_length=len(skeleton), checks=None
        )


def _stores_whole(parts: list[LeftEntry]) -> bool:
    """Whether any of the entries is a tensor that is no patch."""
    return any(
        draft.key[:1] == keys.TENSORS and draft.encoding != fmt.ENCODING_PATCH for draft, _ in parts
    )


def _joined(prepared: Prepared) -> memoryview:
    buffers = prepared.buffers
    return memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))


def _like(prepared: Prepared, before: Descriptor) -> Prepared:
    """A tensor that torch gave stays torch's, where torch has its dtype."""
    what = prepared.descriptor
    if before.framework != "torch" or what.framework != "numpy" or what.layout != "dense":
        return prepared
    try:
        torch_dtype(what.dtype)
    except MldbError:
        return prepared
    what = replace(what, framework="torch")
    return prepared._replace(descriptor=what, attr=pack_descriptor(what))


def _with_names(root: Any, targets: Mapping[str, str]) -> Any:
    """A node of a skeleton with other names of tensors; its arrays are changed in place."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, list) or not node:
            continue
        if node[0] == TENSOR:
            node[1] = targets.get(node[1], node[1])
        else:
            waiting.extend(node[1:])
    return root
