"""The section of the benchmark about consolidation runs, and measures what it says."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.bench_compaction import soc


@pytest.mark.slow
def test_the_section_runs_at_a_small_size() -> None:
    rows = soc.scale(600)
    figures = {row.figure.partition(": ")[2]: row for row in rows}
    over_one = figures["time over that of one k-NN"]
    assert over_one.must == "<= 3"
    assert over_one.met == (over_one.value <= 3)
    assert figures["all"].value > figures["one k-NN of all rows"].value > 0
    assert 0 < figures["kept"].value < 0.5
