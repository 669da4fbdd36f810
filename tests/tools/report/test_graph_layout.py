"""Graphs stand in columns; cycles end; size costs what it must."""

from __future__ import annotations

import numpy as np
import pytest

from mldb.tools.report.gather_graph import EDGES_SHOWN, NODES_SHOWN, bounded_edges
from mldb.tools.report.graph_layout import placed_nodes


def assert_runs_right(edges: list[tuple[str, str]], found: object) -> None:
    layout = placed_nodes(edges) if found is None else found
    places = layout.places  # type: ignore[attr-defined]
    for source, target in edges:
        if source != target and (source, target) not in layout.backward:  # type: ignore[attr-defined]
            assert places[source][0] < places[target][0]
    assert len(set(places.values())) == len(places)


def test_a_chain_is_one_row() -> None:
    found = placed_nodes([("a", "b"), ("b", "c"), ("c", "d")])
    assert found.places == {"a": (0, 0), "b": (1, 0), "c": (2, 0), "d": (3, 0)}
    assert (found.columns, found.rows, found.backward) == (4, 1, frozenset())


def test_a_node_stands_behind_the_last_that_leads_to_it() -> None:
    found = placed_nodes([("a", "c"), ("a", "b"), ("b", "c")])
    assert [found.places[name][0] for name in "abc"] == [0, 1, 2]


def test_a_cycle_is_broken_where_data_does_not_flow() -> None:
    """The feedback of a network, sorted before it, once turned the whole graph around."""
    flow = [("conv", "relu"), ("input", "conv"), ("relu", "loss")]
    found = placed_nodes([*flow, ("loss", "input")], len(flow))
    assert [found.places[name][0] for name in ("input", "conv", "relu", "loss")] == [0, 1, 2, 3]
    assert found.backward == {("loss", "input")}


def test_loops_and_cycles_alone_have_places() -> None:
    edges = [("a", "a"), ("b", "c"), ("c", "b")]
    found = placed_nodes(edges)
    assert set(found.places) == {"a", "b", "c"}
    assert found.backward == {("c", "b")}
    assert placed_nodes([]).places == {}


@pytest.mark.parametrize("count", (10, 100, 3000))
def test_all_other_edges_lead_to_the_right(count: int, rng: np.random.Generator) -> None:
    ends = rng.integers(0, count, (3 * count, 2))
    edges = [(f"n{a}", f"n{b}") for a, b in ends.tolist()]
    assert_runs_right(edges, placed_nodes(edges))


def test_a_chain_of_thousands_needs_no_recursion() -> None:
    edges = [(f"n{i}", f"n{i + 1}") for i in range(20_000)]
    assert placed_nodes(edges).columns == 20_001


def test_what_is_drawn_is_bounded_and_leaves_tensors_out_first() -> None:
    layers = [(f"l{i:04}", f"l{i + 1:04}", "feeds_into") for i in range(100)]
    tensors = [(f"l{i:04}", f"l{i:04}/w{j}", "layer_params") for i in range(100) for j in range(3)]
    names = frozenset(target for _, target, _ in tensors)
    assert bounded_edges([*tensors, *layers], names) == layers
    star = [("hub", f"n{i}", "k") for i in range(5000)]
    kept = bounded_edges(star, frozenset())
    assert len(kept) == NODES_SHOWN - 1
    dense = [(f"n{a}", f"n{b}", "k") for a in range(50) for b in range(50)]
    assert len(bounded_edges(dense, frozenset())) == EDGES_SHOWN


def test_what_is_drawn_of_a_long_chain_hangs_together() -> None:
    """Edges come sorted by name: block.0, block.10, block.100 ... once made a heap of fragments."""
    chain = sorted((f"block.{i}", f"block.{i + 1}", "feeds_into") for i in range(5000))
    kept = bounded_edges(chain, frozenset())
    assert len(kept) == NODES_SHOWN - 1
    assert {source for source, _, _ in kept} == {f"block.{i}" for i in range(NODES_SHOWN - 1)}
