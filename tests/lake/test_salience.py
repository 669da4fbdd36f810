"""A salience that changes while a pass runs: the pass keeps the plan that it began with.

The story behind this file: ``provenance()`` and ``batch()`` of the running pass asked the salience
anew, so what they told were other rows than those that had been handed out, 9 of 9 times; and it
was asked three times where the docs say once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from tests.support.lakes import DIM, ROWS, data, fill, raw, stream

__all__ = ["data"]

torch = pytest.importorskip("torch")


class Losses:
    """A salience that a training changes: the rows from ``low`` on have some. Counts its calls."""

    def __init__(self, low: int = 0) -> None:
        self.low = low
        self.asked = 0

    def __call__(self, ids: Any) -> Any:
        self.asked += 1
        return (ids >= self.low) + 0.5 * (ids % 3 == self.low % 3)


@pytest.fixture
def lake(store_path: Path, data: dict[str, Any]) -> Iterator[Any]:
    with mldb.open(store_path, durability="os") as db:
        yield fill(db, data)


DESIGNS = ("with", "systematic", "bottom_k")


def drawn(lake: Any, losses: Any, design: Any = "with", **options: Any) -> Any:
    chosen = mldb.Importance(
        gamma=1.0, floor=0.01, least_ess=0.0, target="rows", replacement=design
    )
    draws = None if design == "with" else 300
    fields = ("mu", "id", "weight")
    options = {"fields": fields, "salience": losses, "draws": draws, **options}
    return stream(lake, "drawn", importance_sampling=chosen, **options)


def ids_of(loader: Any) -> list[list[int]]:
    return [batch.id.tolist() for batch in loader]


@pytest.mark.parametrize("design", DESIGNS)
def test_what_is_told_of_a_running_pass_is_what_was_handed_out(lake: Any, design: str) -> None:
    losses = Losses()
    loader = drawn(lake, losses, design)
    dataset = loader.dataset
    handed: list[Any] = []
    for number, batch in enumerate(loader):
        losses.low += 10
        handed.append(batch)
        for at, was in enumerate(handed):
            assert dataset.provenance(at)["id"].tolist() == was.id.tolist()
            assert dataset.provenance(at, pass_number=0)["id"].tolist() == was.id.tolist()
        again = dataset.batch(number)
        assert raw([again.mu, again.id, again.weight]) == raw([batch.mu, batch.id, batch.weight])
        assert len(loader) == -(-(ROWS if design == "with" else 300) // 32)
        loader.stats()
        loader.state_dict()
    assert losses.asked == 1
    # When the pass is over, it is still known, until the next one begins.
    assert dataset.provenance(3, pass_number=0)["id"].tolist() == handed[3].id.tolist()
    assert losses.asked == 1


@pytest.mark.parametrize("design", DESIGNS)
def test_it_is_asked_once_a_pass_when_that_begins(lake: Any, design: str) -> None:
    losses = Losses()
    loader = drawn(lake, losses, design)
    seen = []
    for low in (0, 200, 400):
        losses.low = low
        seen.append(ids_of(loader))
    assert losses.asked == 3
    for low, ids in zip((0, 200, 400), seen, strict=True):
        alone = drawn(lake, Losses(low), design)
        alone.dataset.set_pass(low // 200)
        assert ids_of(alone) == ids
    loader.dataset.set_pass(2)  # the same number, and a pass of its own
    losses.low = 0
    assert ids_of(loader) != seen[2]
    assert losses.asked == 4


def test_the_length_of_a_pass_asks_nothing(lake: Any) -> None:
    losses = Losses()
    loader = drawn(lake, losses)
    assert len(loader) == 16
    assert losses.asked == 0
    losses.low = 300
    assert ids_of(loader) == ids_of(drawn(lake, Losses(300)))


def test_a_look_before_the_pass_is_what_it_begins_with(lake: Any) -> None:
    losses = Losses(100)
    loader = drawn(lake, losses, "bottom_k")
    told = loader.dataset.provenance(0)["id"].tolist()
    assert len(loader) == 10
    assert ids_of(loader)[0] == told
    assert losses.asked == 1


def test_a_past_pass_is_told_while_the_salience_is_the_same_and_else_refused(lake: Any) -> None:
    losses = Losses()
    loader = drawn(lake, losses)
    first = ids_of(loader)
    next(iter(loader))
    assert loader.dataset.provenance(2, pass_number=0)["id"].tolist() == first[2]
    losses.low = 77
    next(iter(loader))
    for ask in (loader.dataset.provenance, loader.dataset.batch):
        with pytest.raises(mldb.InvalidValueError, match="pass 0 was drawn by a salience"):
            ask(2, pass_number=0)


def test_iterations_side_by_side_keep_their_plans(lake: Any) -> None:
    losses = Losses()
    loader = drawn(lake, losses)
    first = iter(loader)
    ids = [next(first).id.tolist()]
    losses.low = 250
    second = ids_of(loader)
    assert loader.dataset.provenance(0, pass_number=0)["id"].tolist() == ids[0]
    ids += ids_of(first)
    assert ids == ids_of(drawn(lake, Losses(0)))
    alone = drawn(lake, Losses(250))
    alone.dataset.set_pass(1)
    assert second == ids_of(alone)
    assert losses.asked == 2


@pytest.mark.parametrize("design", DESIGNS)
def test_a_resume_under_another_salience_is_refused(lake: Any, design: str) -> None:
    """It went on with other rows, some twice and others never, and said nothing."""
    losses = Losses()
    loader = drawn(lake, losses, design)
    batches = [(batch.id.tolist(), loader.state_dict()) for batch in loader]
    ids, state = [ids for ids, _ in batches], batches[4][1]
    assert state["drawn_by"] == batches[0][1]["drawn_by"]
    resumed = drawn(lake, Losses(), design)
    resumed.load_state_dict(state)
    assert ids_of(resumed) == ids[5:]
    other = Losses(33)
    refused = drawn(lake, other, design)
    refused.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(mldb.InvalidValueError, match="the rest of the pass would have other"):
            iter(refused)
        assert refused.state_dict() == state | {"cursor": 5, "done": 0}
    other.low = 0  # as it was
    assert ids_of(refused) == ids[5:]
    # A stream that has the plan goes on by it, whatever the salience says by now.
    losses.low = 400
    loader.dataset.set_pass(0)
    running = iter(loader)
    next(running)
    own = loader.state_dict()
    losses.low = 10
    loader.load_state_dict(own)
    assert ids_of(loader) == ids_of(running)


def test_a_state_between_two_passes_takes_the_salience_as_it_is_then(lake: Any) -> None:
    loader = drawn(lake, Losses())
    for _ in loader:
        last = loader.state_dict()
    for state in (last, loader.state_dict(), drawn(lake, Losses()).state_dict() | {"pass": 1}):
        assert "drawn_by" not in state
        resumed = drawn(lake, Losses(20))
        resumed.load_state_dict(state)
        alone = drawn(lake, Losses(20))
        alone.dataset.set_pass(1)
        assert ids_of(resumed) == ids_of(alone)


def test_ranks_name_what_their_plans_were_made_of(lake: Any) -> None:
    states = []
    for rank, low in enumerate((0, 0, 9)):
        loader = drawn(lake, Losses(low), rank=rank, world=3)
        next(iter(loader))
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert states[2] == states[0] | {"drawn_by": states[2]["drawn_by"]} != states[0]
    resumed = drawn(lake, Losses(0), rank=2, world=3)
    resumed.load_state_dict(states[2])
    with pytest.raises(mldb.InvalidValueError, match="would have other rows"):
        iter(resumed)


def test_a_column_is_part_of_the_commit_and_names_nothing(
    store_path: Path, data: dict[str, Any]
) -> None:
    """A column changes with the head; a stream stays at its commit, and so does its plan."""
    with mldb.open(store_path, durability="os") as db:
        lake = db.lake(dim=DIM)
        lake.add_splats(data["mu"], columns={"loss": np.arange(ROWS) >= 490})
        loader = drawn(lake, "loss")
        got = []
        for number, batch in enumerate(loader):
            if number == 3:
                lake.remove(np.arange(490, ROWS))
                lake.add_splats(data["mu"][:50], columns={"loss": np.ones(50, np.bool_)})
            got.append(batch.id.tolist())
            assert loader.dataset.provenance(number)["id"].tolist() == got[-1]
        assert "drawn_by" not in loader.state_dict()
        again = drawn(lake, "loss", as_of=mldb.Lsn(loader.dataset.lsn))
        assert ids_of(again) == got


def test_a_salience_that_fails_begins_no_pass(lake: Any) -> None:
    losses = Losses()
    want = ids_of(drawn(lake, losses))
    broken = [True]

    def sometimes(ids: Any) -> Any:
        if broken:
            raise KeyError("loss")
        return losses(ids)

    loader = drawn(lake, sometimes)
    for _ in range(3):
        with pytest.raises(KeyError):
            iter(loader)
    broken.clear()
    assert loader.dataset.pass_number == 0
    assert ids_of(loader) == want


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_go_by_the_plan_of_the_process_that_started_them(
    lake: Any, persistent: bool
) -> None:
    """Each asked for itself, at its own moment, and they could share no pass then."""
    losses = Losses()
    options = {"multiprocessing_context": "fork", "persistent_workers": persistent}
    loader = drawn(lake, losses, num_workers=2, loader=options, generate_samples=True)
    for number, low in enumerate((0, 120, 240)):
        losses.low = low
        ids = []
        for batch in loader:
            losses.low += 7
            ids.append(batch.id.tolist())
        alone = drawn(lake, Losses(low), generate_samples=True)
        alone.dataset.set_pass(number)
        assert ids == ids_of(alone)
    assert losses.asked == 3


SALIENCE = Losses(40)


@pytest.mark.slow
def test_the_plan_travels_to_spawned_workers(lake: Any) -> None:
    options = {"multiprocessing_context": "spawn"}
    loader = drawn(lake, SALIENCE, num_workers=1, loader=options, generate_samples=True)
    assert ids_of(loader) == ids_of(drawn(lake, Losses(40)))


def test_workers_that_ask_for_themselves_and_differ_are_refused(lake: Any) -> None:
    """Those of a plain DataLoader: rows came twice and others never."""

    def own(ids: Any) -> Any:
        return ids % 7 == torch.utils.data.get_worker_info().id

    options = {"num_workers": 2, "multiprocessing_context": "fork"}
    for losses, is_refused in ((Losses(), False), (own, True)):
        dataset = drawn(lake, losses).dataset
        plain = torch.utils.data.DataLoader(dataset, batch_size=None, **options)
        if is_refused:
            with pytest.raises(mldb.InvalidValueError, match="in another worker"):
                list(plain)
        else:
            assert ids_of(plain) == ids_of(drawn(lake, losses))
