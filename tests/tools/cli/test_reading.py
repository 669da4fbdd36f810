"""Commands that read: histories, differences, graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.history.relationships import Relationship
from mldb.log import native
from mldb.tools.cli.commands.graph_command import dot_lines, tree_lines
from mldb.tools.cli.main import PROBLEM, USAGE

Run = Callable[..., Any]


def edge(source: str, target: str, kind: str = "feeds_into") -> Relationship:
    return Relationship(source, target, kind, mldb.Lsn(1))


def test_history_lists_versions_oldest_first(ran: Run, store: str) -> None:
    found = ran("history", store, "conv1_weights", "--json").json
    assert [item["epoch"] for item in found["versions"]] == [1, 2, 3, 4]
    assert found["versions"][0]["shape"] == [4, 8]
    lines = ran("history", store, "conv1_weights", "-n", 2).out.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["epoch", "3", "4"]
    assert len(ran("history", store, "conv1_weights", "--as-of", "2").out.splitlines()) == 3


def test_history_of_a_name_that_is_none_says_which_is_near(ran: Run, store: str) -> None:
    found = ran("history", store, "conv1_weight")
    assert found.status == USAGE
    assert "conv1_weights" in found.err


def test_diff_prints_what_changed(ran: Run, store: str) -> None:
    found = ran("diff", store, 1, 3)
    assert found.status == 0
    assert found.out.splitlines()[1:] == [
        "conv1_biases\tchanged\t8\t5.657\t2\t1\t2",
        "conv1_weights\tchanged\t4x8\t11.31\t2\t1\t2",
    ]
    assert ran("diff", store, 1, "best", "--json").json["changed"] == 2
    assert ran("diff", store, 1, 3, "--exit-code").status == PROBLEM
    same = ran("diff", store, "best", 3, "--exit-code")
    assert (same.status, same.out, same.err) == (0, "", "no tensor changed\n")
    assert ran("diff", store, "lsn:x", 3).status == USAGE


def test_a_graph_is_a_tree_below_what_nothing_leads_to(ran: Run, store: str) -> None:
    assert ran("graph", store).out == (
        "conv1\n└─ conv2  (feeds_into)\nconv1_weights\n└─ conv1_biases  (layer_params)\n"
    )
    assert '"conv1" -> "conv2" [label="feeds_into"];' in ran("graph", store, "--dot").out
    edges = ran("graph", store, "--kind", "feeds_into", "--json").json["relationships"]
    assert [(item["source"], item["target"]) for item in edges] == [("conv1", "conv2")]
    assert ran("graph", store, "--root", "conv2").out == ""


def test_cycles_and_diamonds_are_shown_once() -> None:
    edges = [edge("a", "b"), edge("a", "c"), edge("b", "d"), edge("c", "d"), edge("d", "e")]
    assert list(tree_lines(edges)) == [
        *("a", "├─ b  (feeds_into)", "│  └─ d  (feeds_into)", "│     └─ e  (feeds_into)"),
        *("└─ c  (feeds_into)", "   └─ d  (feeds_into) ..."),
    ]
    assert list(tree_lines([edge("a", "b"), edge("b", "a")])) == [
        *("a", "└─ b  (feeds_into)", "   └─ a  (feeds_into) ..."),
    ]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), unique=True))
def test_every_edge_of_any_graph_is_one_line(pairs: list[tuple[int, int]]) -> None:
    edges = [edge(str(one), str(two)) for one, two in pairs]
    lines = [line for line in tree_lines(edges) if "(feeds_into)" in line]
    assert len(lines) == len(edges)


def test_a_long_chain_needs_no_stack() -> None:
    assert len(list(tree_lines([edge(str(n), str(n + 1)) for n in range(3000)]))) == 3001


def test_hostile_names_end_no_identifier(ran: Run, tmp_path: Path) -> None:
    assert next(line for line in dot_lines([edge('a"; b', "c")]) if "->" in line) == (
        '  "a\\"; b" -> "c" [label="feeds_into"];'
    )
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("safe\u202etxt", np.zeros(2))
    assert "safe\\u202etxt" in ran("ls", tmp_path / "run").out


def test_stats_are_short_and_whole_as_json(ran: Run, store: str) -> None:
    lines = dict(line.split(None, 1) for line in ran("stats", store).out.splitlines())
    assert (lines["epoch"], lines["tensors"]) == ("4", "2")
    assert lines["native"] == native.status
    every = ran("stats", store, "--all").out
    assert "map_border.origin" in every
    with mldb.open(store, mode="r") as db:
        assert ran("stats", store, "--json").json.keys() == db.stats().keys()
