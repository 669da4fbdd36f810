"""Which pass the workers of a plain DataLoader read: each epoch the next one, without being told.

Workers are copies of the dataset that end with their epoch, so none can count epochs; and the
process that starts them is asked nothing. What they have is the base seed, which torch draws anew
for every epoch. So the dataset and all of its copies share a list: that of the process which made
the dataset, one for all of its datasets, since making one takes as long as reading a batch. A
worker whose base seed is not in it appends it, and reads its number off the list: all workers of an
epoch find the same one, at whatever moment they come, and two epochs never do. A worker that knows
its pass, because it goes on from a state or persists, says so in the list, and counting goes on
from there.
"""

from __future__ import annotations

from itertools import count
from typing import Final

from mldb.errors import InvalidValueError
from mldb.log.fs.process import CURRENT, Process
from mldb.log.fs.shared_list import SharedEntry, SharedList

_NEW: Final = 0  # the value of an entry that asks for a number; others are the number and 1
_PLANS: Final = 1 << 63  # in the owner of entries that say what a worker planned a pass by
_WORD: Final = (1 << 64) - 1
_DATASET: Final = 32
"""Where the number of the dataset is in the owner of its entries: above the process, 31 bits."""
_DATASETS: Final = (1 << 31) - 1

_numbers: Final = count()
_lists: Final[dict[Process, SharedList]] = {}


class Epochs:
    """The numbers of the epochs that workers began. Any thread and process.

    *owner* is the process whose DataLoader started the workers: those of another process, to which
    the dataset travelled, count for themselves.
    """

    def __init__(self) -> None:
        """Raises StorageIOError."""
        self._list = _list_of_process()
        self._dataset = next(_numbers) & _DATASETS

    def __len__(self) -> int:
        """How much was said so far, of other datasets as well; see *since* below."""
        return len(self._list)

    def number(self, owner: int, base_seed: int, *, first: int, since: int) -> int:
        """Return the pass of the epoch with *base_seed*; pass *first* was next at *since*."""
        known, _ = self._counted(owner, first, since)
        if base_seed not in known:
            self._list.append(SharedEntry(self._owner(owner), base_seed, _NEW))
            known, _ = self._counted(owner, first, since)
        return known[base_seed]

    def tell(self, owner: int, base_seed: int, number: int) -> None:
        """Say that the workers with *base_seed* are at pass *number*."""
        self._list.append(SharedEntry(self._owner(owner), base_seed, number + 1))

    def check_agreed(self, owner: int, base_seed: int, number: int, drawn_by: str) -> None:
        """Say what this worker drew its pass by. Raises InvalidValueError if another said else."""
        value = int(drawn_by, 16) & _WORD
        own = SharedEntry(self._owner(owner) | _PLANS, (base_seed + number) & _WORD, value)
        self._list.append(own)
        if any(e[:2] == own[:2] and e != own for e in self._list.read()):
            raise InvalidValueError(
                "the salience returned other values in another worker, so the workers would not "
                "share one pass. Use the lake's own loader, which asks once for all, or a column"
            )

    def upcoming(self, owner: int, *, first: int, since: int) -> int:
        """Return the pass of the next epoch that begins."""
        return self._counted(owner, first, since)[1]

    def _counted(self, owner: int, first: int, since: int) -> tuple[dict[int, int], int]:
        """The pass of every base seed, and the one that comes next."""
        known: dict[int, int] = {}
        ours = self._owner(owner)
        for entry in self._list.read(since):
            if entry.owner != ours:
                continue
            if entry.value != _NEW:
                known[entry.key], first = entry.value - 1, entry.value
            elif entry.key not in known:
                known[entry.key], first = first, first + 1
        return known, first

    def _owner(self, process: int) -> int:
        return process | self._dataset << _DATASET


def _list_of_process() -> SharedList:
    """The list of this process; a forked child has one of its own. Raises StorageIOError."""
    here = CURRENT[0]
    found = _lists.get(here)
    if found is None:
        found = _lists.setdefault(here, SharedList())
        for other in [process for process in list(_lists) if process is not here]:
            _lists.pop(other, None)  # the parent's, for what is made from now on
    return found
