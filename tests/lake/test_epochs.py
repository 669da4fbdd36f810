"""Epochs of plain DataLoaders over a lake: each the next pass, by itself, and exactly resumed.

The story behind this file: workers are copies that end with their epoch, so each epoch began with
the pass that the dataset had in the first process: the same one, a whole training long.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mldb
from mldb.lake.stream.epochs import Epochs
from mldb.log.fs.shared_list import SharedEntry, SharedList
from tests.support.lakes import data, fill, raw, stream
from tests.support.workers import METHODS

__all__ = ["data"]

torch = pytest.importorskip("torch")

WORKERS = 2
quiet = pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")  # torchdata 0.11, torch 2.13


@pytest.fixture
def lake(store_path: Path, data: dict[str, Any]) -> Iterator[Any]:
    with mldb.open(store_path, durability="os") as db:
        yield fill(db, data)


def plain(dataset: Any, method: str = "fork", **options: Any) -> Any:
    context = {"num_workers": WORKERS, "multiprocessing_context": method}
    return torch.utils.data.DataLoader(dataset, batch_size=None, **context, **options)


def stateful(dataset: Any, **options: Any) -> Any:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    context = {"num_workers": WORKERS, "multiprocessing_context": "fork", **options}
    return loaders.StatefulDataLoader(dataset, batch_size=None, **context)


def passes_of(lake: Any, count: int, **options: Any) -> list[list[bytes]]:
    alone = stream(lake, **options)
    return [raw(alone) for _ in range(count)]


# --- plain loaders --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_each_epoch_is_the_next_pass_without_being_told(
    lake: Any, method: str, persistent: bool
) -> None:
    want = passes_of(lake, 3)
    loader = plain(stream(lake).dataset, method, persistent_workers=persistent)
    assert [raw(loader) for _ in range(3)] == want


def test_the_numbers_are_those_of_epochs_not_of_torchs_random_numbers(lake: Any) -> None:
    """So ranks agree, whose generators do not; a pass is a function of the lake's seed alone."""
    want = passes_of(lake, 2)
    for seed in (1, 2):
        loader = plain(stream(lake).dataset, generator=torch.Generator().manual_seed(seed))
        assert [raw(loader), raw(loader)] == want
    ranks = []
    for rank in range(2):
        torch.manual_seed(rank)
        loader = plain(stream(lake, rank=rank, world=2).dataset)
        ranks.append([raw(loader), raw(loader)])
    for number in range(2):
        dealt = itertools.zip_longest(ranks[0][number], ranks[1][number])
        assert [batch for turn in dealt for batch in turn if batch] == want[number]


def test_an_epoch_that_was_left_is_over(lake: Any) -> None:
    want = passes_of(lake, 3)
    loader = plain(stream(lake).dataset)
    for number in range(2):
        assert raw([next(iter(loader))]) == want[number][:1]
    assert raw(loader) == want[2]


def test_two_epochs_at_a_time_are_two_passes(lake: Any) -> None:
    want = passes_of(lake, 3)
    loader = plain(stream(lake).dataset)
    pairs = list(zip(loader, loader, strict=True))
    got = [raw(pair[side] for pair in pairs) for side in range(2)]
    assert sorted(got) == sorted(want[:2])
    assert raw(loader) == want[2]


def test_the_process_that_starts_the_workers_counts_with_them(lake: Any) -> None:
    want = passes_of(lake, 5)
    dataset = stream(lake).dataset
    loader = plain(dataset)
    assert raw(loader) == want[0]
    assert (dataset.pass_number, dataset.state_dict()["pass"]) == (1, 1)
    assert raw(dataset) == want[1]
    assert raw(loader) == want[2]
    assert raw(plain(dataset)) == want[3]
    dataset.set_pass(1)
    assert raw(loader) == want[1]
    for epoch in (4, 0, 4):
        dataset.set_pass(epoch)
        assert raw(loader) == want[epoch]
    assert dataset.pass_number == 5


def test_a_loaded_state_is_where_the_next_epoch_begins(lake: Any) -> None:
    want = passes_of(lake, 3)
    alone = stream(lake)
    list(alone)
    for _ in zip(alone, range(5), strict=False):
        state = alone.state_dict()
    dataset = stream(lake).dataset
    loader = plain(dataset)
    list(loader)
    dataset.load_state_dict(state)
    assert raw(loader) == want[1][5:]
    assert raw(loader) == want[2]
    for batches in (14, 15, 16):
        dataset.load_state_dict(state | {"done": 0, "cursor": batches})
        assert raw(loader) == (want[1][batches:] or want[2])


def test_workers_that_persist_go_on_by_themselves_and_others_behind_them(lake: Any) -> None:
    want = passes_of(lake, 4)
    dataset = stream(lake).dataset
    loader = plain(dataset, persistent_workers=True)
    assert [raw(loader), raw(loader)] == want[:2]
    assert raw(plain(dataset)) == want[2]
    assert dataset.pass_number == 3


def _first_batches(dataset: Any, pipe: Any) -> None:
    """What another process makes of a dataset that travelled to it: two epochs of its own."""
    loader = plain(dataset)
    pipe.send([raw([next(iter(loader))]) for _ in range(2)])


def test_processes_that_a_dataset_travelled_to_count_for_themselves(lake: Any) -> None:
    """As ranks that are started by hand: each has every epoch once."""
    want = passes_of(lake, 2)
    dataset = stream(lake).dataset
    context = multiprocessing.get_context("fork")
    pipes, children = [], []
    for _ in range(2):
        here, there = context.Pipe()
        children.append(context.Process(target=_first_batches, args=(dataset, there)))
        children[-1].start()
        pipes.append(here)
    for pipe in pipes:
        assert pipe.poll(60)
        assert pipe.recv() == [want[0][:1], want[1][:1]]
    for child in children:
        child.join()
    assert raw(dataset) == want[0]


def test_a_copy_counts_for_itself(lake: Any) -> None:
    want = passes_of(lake, 2)
    dataset = stream(lake).dataset
    list(plain(dataset))
    copied = copy.deepcopy(dataset)
    assert raw(copied) == want[1]
    assert raw(plain(dataset)) == want[1]


# --- loaders with a state -------------------------------------------------------------------------


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_a_stateful_loader_resumes_exactly_and_goes_on_with_the_next_pass(
    lake: Any, persistent: bool
) -> None:
    want = passes_of(lake, 4)
    loader = stateful(stream(lake).dataset, persistent_workers=persistent)
    assert raw(loader) == want[0]
    steps = [(raw([batch])[0], loader.state_dict()) for batch in loader]
    assert [batch for batch, _ in steps] == want[1]
    after = loader.state_dict()
    assert raw(loader) == want[2]
    for at in (1, 2, 7, 14, 15):
        resumed = stateful(stream(lake).dataset, persistent_workers=persistent)
        resumed.load_state_dict(steps[at - 1][1])
        assert raw(resumed) == want[1][at:], at
        assert raw(resumed) == want[2], at
    resumed = stateful(stream(lake).dataset, persistent_workers=persistent)
    resumed.load_state_dict(steps[15][1])
    # As over every dataset; see the next test.
    assert [raw(resumed), raw(resumed)] == [[], want[2]]
    resumed = stateful(stream(lake).dataset, persistent_workers=persistent)
    resumed.load_state_dict(after)
    assert raw(resumed) == want[2]
    assert raw(resumed) == want[3]


@quiet
@pytest.mark.slow
def test_a_stateful_loader_ends_an_epoch_of_which_nothing_is_left_as_over_every_dataset(
    lake: Any,
) -> None:
    """Taken in the body of the last batch, its state is that of an epoch that is not over yet.

    That is the convention of torchdata, so the loop's count of epochs stays right; the states of
    the workers are the same before and after the end, so a dataset cannot know better.
    """
    want = passes_of(lake, 2)
    rest: list[list[Any]]
    for dataset, epochs in ((list(range(6)), [list(range(6))] * 2), (stream(lake).dataset, want)):
        loader = stateful(dataset)
        for _ in loader:
            in_body = loader.state_dict()
        after = loader.state_dict()
        assert in_body["_snapshot"] == after["_snapshot"]
        for state, rest in ((in_body, [[]]), (after, [])):
            loader = stateful(stream(lake).dataset if epochs is want else dataset)
            loader.load_state_dict(state)
            read = raw if epochs is want else list
            assert [read(loader) for _ in range(len(rest) + 1)] == [*rest, epochs[1]]


def test_a_state_loaded_at_the_end_of_a_pass_counts_on_from_the_next(lake: Any) -> None:
    """Workers of a plain loader began the next pass, and told the others the one before."""
    want = passes_of(lake, 4)
    state = stream(lake).state_dict()
    dataset = stream(lake).dataset
    dataset.load_state_dict(state | {"pass": 0, "cursor": 16})
    loader = plain(dataset)
    assert [raw(loader) for _ in range(3)] == want[1:]
    assert dataset.pass_number == 4


@quiet
def test_a_stateful_loader_without_workers_never_resumes_into_nothing(lake: Any) -> None:
    want = passes_of(lake, 3)
    loader = stateful(stream(lake).dataset, num_workers=0, multiprocessing_context=None)
    steps = [(raw([batch])[0], loader.state_dict()) for batch in loader]
    for at in (1, 8, 15, 16):
        resumed = stateful(stream(lake).dataset, num_workers=0, multiprocessing_context=None)
        resumed.load_state_dict(steps[at - 1][1])
        assert raw(resumed) == (want[0][at:] or want[1])
        assert raw(resumed) == want[1 if at < 16 else 2]


# --- the list that copies share -------------------------------------------------------------------


def test_workers_of_an_epoch_agree_whenever_they_come() -> None:
    epochs = Epochs()
    asked = [epochs.number(7, seed, first=3, since=0) for seed in (50, 60, 50, 70, 60)]
    assert asked == [3, 4, 3, 5, 4]
    assert epochs.number(8, 50, first=0, since=0) == 0  # another process
    epochs.tell(7, 80, 2)  # it resumed
    assert epochs.upcoming(7, first=3, since=0) == 3
    assert epochs.number(7, 90, first=3, since=0) == 3
    said = len(epochs)
    assert epochs.number(7, 91, first=30, since=said) == 30


def _append_many(shared: SharedList, owner: int) -> None:
    for number in range(2000):
        shared.append(SharedEntry(owner, number, owner))


def test_a_shared_list_loses_no_entry_and_has_one_order() -> None:
    shared = SharedList()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_append_many, args=(shared, k)) for k in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    found = shared.read()
    assert len(shared) == len(found) == 6000
    for owner in range(3):
        assert [e.key for e in found if e.owner == owner] == list(range(2000))
    assert shared.read(5990) == found[5990:]
    assert shared.read(6000) == []


def test_a_shared_list_goes_with_its_last_process() -> None:
    shared = SharedList()
    link = f"/proc/self/fd/{shared._descriptor}"
    name = os.readlink(link)
    assert "mldb-shared-list" in name
    del shared
    assert not os.path.lexists(link) or os.readlink(link) != name


@pytest.mark.slow
def test_a_copy_in_a_list_of_its_own_counts_from_its_beginning(lake: Any) -> None:
    """What was heard before it was pickled was said in another list."""
    want = passes_of(lake, 4)
    dataset = stream(lake).dataset
    assert [raw(plain(dataset)) for _ in range(2)] == want[:2]
    copied = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made here
    assert [raw(plain(copied)) for _ in range(2)] == want[2:]


def test_datasets_of_a_process_share_one_list_and_not_their_epochs() -> None:
    """Each had a descriptor, and closing it took longer than reading a batch."""
    before = len(os.listdir("/proc/self/fd"))
    first, second, *others = (Epochs() for _ in range(50))
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert [first.number(7, 50, first=0, since=0) for _ in range(2)] == [0, 0]
    assert first.number(7, 51, first=0, since=0) == 1
    assert second.number(7, 51, first=0, since=0) == 0
    assert second.upcoming(7, first=0, since=0) == 1
    assert others[0].upcoming(7, first=4, since=0) == 4
