"""The harness itself, at a size that says nothing about speed: does it check and report?"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.bench import runner
from tests.bench.children import run_child
from tests.bench.limit_log import LOG
from tests.bench.limits import RAW_WRITERS
from tests.bench.registry import PEERS, is_limit, select
from tests.bench.report import Outcome, Table, render_table, render_targets, write_json
from tests.bench.setting import Setting, check_equal, check_total
from tests.bench.targets import TARGETS
from tests.bench.timing import Workspace, interleave, percentile
from tests.bench.workloads import TINY, History, state_dict, state_shapes, touch


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    peers = select(["sqlite"], with_mldb=True)
    # The other limits of the log prepare 256 MiB of blocks for every round.
    few = [peer for peer in peers if peer.name == LOG or not is_limit(peer.name)]
    return Setting(TINY, few, Workspace(tmp_path, 0.0))


def test_interleave_shuffles_and_drops_the_warm_up() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    contenders = {name: partial(contender, name) for name in "abc"}
    samples = interleave("t", contenders, 20)
    rounds = ["".join(calls[start : start + 3]) for start in range(0, 63, 3)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) == 6  # nobody always follows the same one
    for name in "abc":
        places = [number + 1.0 for number, called in enumerate(calls) if called == name]
        assert samples[name] == places[1:]
    calls.clear()
    assert interleave("t", contenders, 20) == samples


def test_state_has_the_promised_size_and_count() -> None:
    state = state_dict(TINY)
    assert len(state_shapes(TINY)) == 275
    assert sum(array.nbytes for array in state.values()) == TINY.state_bytes


def test_touch_depends_on_every_byte(rng: np.random.Generator) -> None:
    for size in (8, 80, 81):
        array = rng.integers(0, 256, size, dtype=np.uint8)
        for place in range(size):
            other = array.copy()
            other[place] ^= 1
            assert touch(other) != touch(array)


def test_history_answers_with_the_last_change() -> None:
    past = History(TINY)
    for epoch, _changed, full in past.states():
        for name in past.names:
            assert past.at(name, epoch) is full[name]


@pytest.mark.parametrize("name", RAW_WRITERS)
def test_raw_writers_write_the_state(name: str, tmp_path: Path) -> None:
    state = state_dict(TINY)
    try:
        assert RAW_WRITERS[name](state, tmp_path) > 0
    except OSError as error:
        pytest.skip(f"this file system refuses it: {error}")
    expected = b"".join(array.tobytes() for array in state.values())
    assert (tmp_path / "raw").read_bytes()[: len(expected)] == expected


def test_a_peer_that_returns_other_bytes_gets_no_figures(tmp_path: Path) -> None:
    state = state_dict(TINY)
    store = PEERS["sqlite"].open(tmp_path, "bulk")
    store.put_all(state)
    store.close()
    check_equal(PEERS["sqlite"], tmp_path, state)
    state["ln_f.bias"][0] += 1
    with pytest.raises(RuntimeError, match=r"sqlite returned other bytes for ln_f\.bias"):
        check_equal(PEERS["sqlite"], tmp_path, state)
    with pytest.raises(RuntimeError, match="no figures"):
        check_total(PEERS["sqlite"], 1, 2)


def test_a_failing_child_says_why(tmp_path: Path) -> None:
    task = {"task": "as_of", "peer": "sqlite", "folder": str(tmp_path), "reads": [["a", 0]]}
    with pytest.raises(RuntimeError, match="no such table"):
        run_child(task)


def test_report_compares_medians_in_both_directions(tmp_path: Path) -> None:
    rates = Table(
        workload="W9", title="t", unit="u", samples={"a": [1, 9, 4], "b": [2, 2, 2]}, limit="b"
    )
    assert rates.speed("a", "b") == 2.0
    times = Table(workload="W9", title="t", unit="u", samples=rates.samples, higher_is_better=False)
    assert times.speed("a", "b") == 0.5
    assert render_table(rates).splitlines()[2].split() == ["a", "4", "9", "1", "2.00"]
    outcome = Outcome([rates])
    outcome.compare("w3.lazy / lmdb, commit per put", rates, "a", "b")
    outcome.compare("absent", rates, "a", "nobody")
    assert outcome.measures == {"w3.lazy / lmdb, commit per put": 2.0}
    row = next(
        line
        for line in render_targets(outcome.measures, ["W3"]).splitlines()
        if "single puts" in line
    )
    assert row.endswith("yes / yes")
    path = tmp_path / "figures.json"
    write_json(path, {}, outcome)
    assert json.loads(path.read_text())["tables"][0]["samples"]["a"] == [1, 9, 4]


def test_percentile_is_a_sample() -> None:
    values = [float(value) for value in range(100)]
    assert percentile(values, 0.99) == 99.0
    assert percentile([3.0], 0.99) == 3.0


def test_harness_runs_end_to_end(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = runner.run(TINY, setting, ["W3", "W4", "DISK"])
    printed = capsys.readouterr().out
    measured = {table.workload for table in outcome.tables}
    assert measured == {"W3", "W4", "DISK"}
    for table in outcome.tables:
        assert all(value > 0 for values in table.samples.values() for value in values)
        assert {"mldb", "sqlite"} <= set(table.samples)
        assert (LOG in table.samples) == (table.workload != "DISK")
    for target in TARGETS:
        if target.workload in measured:
            assert f"{target.workload} {target.figure}" in printed
    assert not any(setting.workspace.root.iterdir())
