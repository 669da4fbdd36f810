"""Kinds of events by number, and times of commits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mldb.history import kinds
from mldb.log import format as fmt
from mldb.log.index.address import to_time

NUMBERS = {
    name: value
    for name, value in vars(kinds).items()
    if name.isupper() and isinstance(value, int) and not name.startswith("_")
}


def test_every_kind_has_a_number_of_its_own_that_readers_must_understand() -> None:
    assert len(set(NUMBERS.values())) == len(NUMBERS) == 18
    for number in NUMBERS.values():
        assert number & fmt.MUST_UNDERSTAND
        assert number & ~fmt.MUST_UNDERSTAND >= fmt.KIND_FIRST_EVENT


def test_known_are_all_kinds_but_the_reserved_ones() -> None:
    """A reserved kind stops this version, as any other kind from a newer one does."""
    unknown = {
        name
        for name, number in NUMBERS.items()
        if number & ~fmt.MUST_UNDERSTAND not in kinds.KNOWN_KINDS
    }
    assert unknown == {
        *("TENSOR_PATCHED", "RETENTION_SET"),
        *("SPLATS_CONSOLIDATED", "CONSOLIDATION_UNDONE"),
    }
    assert len(kinds.KNOWN_KINDS) == len(NUMBERS) - 4


@given(st.integers(0, 2**63 - 1))
def test_times_are_exact_to_the_microsecond_and_cut_below(nanoseconds: int) -> None:
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
    assert to_time(nanoseconds) == expected
    assert to_time(nanoseconds).tzinfo is UTC
