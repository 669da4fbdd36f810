"""LSNs are a type of their own; entries and rows made the quick way are entries and rows."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from mldb.log.index.address import CommitRow, Entry, Lsn, make_entry, make_row


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_an_lsn_counts_as_an_int_and_shows_what_it_is(one: int, two: int) -> None:
    lsn = Lsn(one)
    assert (lsn == one, lsn < Lsn(two), hash(lsn)) == (True, one < two, hash(one))
    assert {one: "found"}[lsn] == "found"
    assert (repr(lsn), str(lsn), f"{lsn}") == (f"Lsn({one})", str(one), str(one))
    assert type(copy.copy(lsn)) is Lsn


def test_an_lsn_is_told_from_an_epoch_by_its_type() -> None:
    assert isinstance(Lsn(3), int)
    assert not isinstance(3, Lsn)
    assert type(Lsn(3) + 1) is int  # a number computed from one need not be a commit
    assert not hasattr(Lsn(3), "__dict__")


def test_an_entry_made_quickly_is_the_one_that_its_class_makes() -> None:
    fields = (1, b"segment", 3, 4, 5, b"attr", 0, 1, 6, b"digest", b"owner")
    made = make_entry(fields)
    assert type(made) is Entry
    assert made == Entry(*fields)
    assert made._asdict() == Entry(*fields)._asdict()
    assert (made.commit_lsn, made.segment, made.attr) == (1, b"segment", b"attr")
    assert (made.digest, made.owner) == (b"digest", b"owner")


def test_a_row_made_quickly_is_the_one_that_its_class_makes() -> None:
    fields = (1, 2, 3, 4, 5, 6, 7, b"id")
    made = make_row(fields)
    assert type(made) is CommitRow
    assert made._asdict() == CommitRow(*fields)._asdict()
    assert (made.lsn, made.end, made.id) == (1, 7, b"id")
