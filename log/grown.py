"""Lists that only grow, shared by everything that knows a beginning of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

_T = TypeVar("_T")


class Grown(Sequence[_T]):
    """The first items of a list that others may have extended. Immutable; any thread.

    One that follows another shares its items: it costs what was added, whatever came before, also
    in memory that is touched (to copy 10,000 references is to write to 10,000 objects). Two that
    follow the same one differently share nothing.
    """

    __slots__ = ("_count", "_items")

    def __init__(self, items: Iterable[_T] = ()) -> None:
        self._items = list(items)  # shared: it only grows, behind what anyone reads
        self._count = len(self._items)

    @classmethod
    def of(cls, items: Iterable[_T]) -> Grown[_T]:
        """Return a sequence as one of these: itself when it is."""
        return items if isinstance(items, cls) else cls(items)

    @classmethod
    def _shared(cls, items: list[_T], count: int) -> Grown[_T]:
        made: Grown[_T] = cls.__new__(cls)
        made._items, made._count = items, count
        return made

    def then(self, added: Sequence[_T]) -> Grown[_T]:
        """Return these items with *added* behind them."""
        items, count = self._items, self._count
        stop = count + len(added)
        if not added:
            return self
        there = items[count:stop]  # somebody went on from here before
        if there != list(added[: len(there)]):
            return Grown([*items[:count], *added])
        new = added[len(there) :]
        items.extend(new)
        stored = items[count + len(there) : stop]
        if any(one is not two for one, two in zip(stored, new, strict=True)):
            return Grown([*items[:count], *added])  # another thread was first
        return self._shared(items, stop)

    def starts_with(self, other: Grown[_T]) -> bool:
        """Whether *other* is the beginning of these; at once when they share it."""
        count = other._count
        if count > self._count:
            return False
        return self._items is other._items or self._items[:count] == other._items[:count]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[_T, ...]: ...
    def __getitem__(self, index: int | slice) -> _T | tuple[_T, ...]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            if step > 0:
                return tuple(self._items[start : max(start, stop) : step])
            return tuple(self._items[: self._count][index])
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError(f"item {index} of {self._count}")
        return self._items[index]

    def __iter__(self) -> Iterator[_T]:
        return islice(self._items, self._count)

    def __reversed__(self) -> Iterator[_T]:
        return map(self._items.__getitem__, range(self._count - 1, -1, -1))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Grown):
            return self._count == other._count and self.starts_with(other)
        return self[:] == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._count, self[-1] if self._count else None))

    def __repr__(self) -> str:
        return f"Grown({self[:]!r})"
