"""Ranks and workers share the batches of a pass: each once, and any others can go on."""

from __future__ import annotations

import copy
from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.order.pass_order import Shuffled, plain_order
from mldb.lake.order.plan import Plan, Shard

COUNTS = st.integers(1, 5)


def shards(world: int, workers: int) -> list[list[Shard]]:
    """All consumers, by rank and worker."""
    return [
        [Shard(rank=rank, world=world, worker=worker, workers=workers) for worker in range(workers)]
        for rank in range(world)
    ]


def stream_of_rank(plan: Plan, cursor: int, workers: list[Shard]) -> list[int]:
    """What a rank sees: its workers are asked in turn, as a DataLoader does."""
    streams = [[batch.number for batch in plan.read(cursor, shard)] for shard in workers]
    return [number for turn in zip_longest(*streams) for number in turn if number is not None]


@given(st.integers(0, 300), st.integers(1, 20), COUNTS, COUNTS, st.booleans(), st.data())
def test_every_row_is_covered_once_under_any_split(
    rows: int, batch_size: int, world: int, workers: int, drop_last: bool, data: st.DataObject
) -> None:
    plan = Plan(order=Shuffled(rows, 1, 2), batch_size=batch_size, drop_last=drop_last)
    cursor = data.draw(st.integers(0, len(plan)))
    found = [
        batch
        for rank in shards(world, workers)
        for shard in rank
        for batch in plan.read(cursor, shard)
    ]
    assert sorted(batch.number for batch in found) == list(range(cursor, len(plan)))
    for batch in found:
        assert np.array_equal(batch.rows, plan.rows(batch.number))


@given(st.integers(0, 200), COUNTS, COUNTS)
def test_a_rank_sees_its_batches_in_order_whatever_its_workers(
    rows: int, world: int, workers: int
) -> None:
    plan = Plan(order=Shuffled(rows, 0, 0), batch_size=3)
    for rank, its_shards in enumerate(shards(world, workers)):
        seen = stream_of_rank(plan, 0, its_shards)
        assert seen == list(range(rank, len(plan), world))


@given(st.integers(0, 400), st.lists(st.tuples(COUNTS, COUNTS, st.integers(0, 9)), min_size=1))
def test_a_cursor_goes_on_under_other_ranks_and_workers(
    rows: int, legs: list[tuple[int, int, int]]
) -> None:
    """Stop after some steps of all ranks, go on with another split, until the pass is over."""
    plan = Plan(order=Shuffled(rows, 0, 0), batch_size=4)
    cursor, seen = 0, []
    for world, workers, steps in legs:
        streams = [stream_of_rank(plan, cursor, its)[:steps] for its in shards(world, workers)]
        seen += [number for stream in streams for number in stream]
        cursor = Shard(world=world).cursor_after(cursor, steps, len(plan))
        assert sorted(seen) == list(range(cursor))
    seen += stream_of_rank(plan, cursor, [Shard()])
    assert sorted(seen) == list(range(len(plan)))


@given(st.integers(0, 100), COUNTS, COUNTS, st.data())
def test_even_shares_let_all_ranks_make_as_many_steps(
    batches: int, world: int, workers: int, data: st.DataObject
) -> None:
    cursor = data.draw(st.integers(0, batches))
    dealt = [
        sum(len(shard.deal(cursor, batches, even=True)) for shard in its)
        for its in shards(world, workers)
    ]
    assert set(dealt) == {(batches - cursor) // world}


def test_a_plan_travels_to_workers() -> None:
    plan = Plan(order=plain_order("windowed", 5000, seed=3, stratum_rows=64), batch_size=100)
    travelled = copy.deepcopy(plan)  # by the same protocol as pickling
    assert travelled == plan
    assert np.array_equal(travelled.rows(31), plan.rows(31))


@pytest.mark.parametrize("place", [{"rank": 1}, {"rank": -1}, {"worker": 3, "workers": 3}])
def test_places_that_do_not_exist(place: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(place))):
        Shard(**place)


def test_places_of_another_type() -> None:
    with pytest.raises(InvalidTypeError, match="world is a float"):
        Shard(world=2.0)  # type: ignore[arg-type]
