"""Keys of the index: no two things share one, and their order is the order of names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mldb import keys
from mldb.names import check_name

SPACES = [
    *(keys.TENSORS, keys.METADATA, keys.RELATIONS, keys.REVERSE),
    *(keys.CHECKPOINTS, keys.TAGS, keys.PINS, keys.RETENTION),
    *(keys.LAKES, keys.SPLATS, keys.METRICS, keys.BRANCHES, keys.PATCHES),
]


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except ValueError:
        return False
    return True


names = st.text("ab/.é\U0001f600~", min_size=1, max_size=6).filter(is_name)
edges = st.tuples(names, names, names)


def test_spaces_are_single_different_bytes() -> None:
    assert len(set(SPACES)) == len(SPACES)
    assert {len(space) for space in SPACES} == {1}
    assert all(space != keys.NUL for space in SPACES)


@given(edges)
def test_a_relationship_comes_back_from_both_of_its_keys(edge: tuple[str, str, str]) -> None:
    parts = [part.encode() for part in edge]
    one, other = keys.relation_key(*parts), keys.reverse_key(*parts)
    assert keys.split_relation(one) == keys.split_relation(other) == edge
    assert one != other
    source, kind, target = edge
    assert one.startswith(keys.RELATIONS + source.encode() + keys.NUL + kind.encode() + keys.NUL)
    assert other.startswith(keys.REVERSE + target.encode() + keys.NUL)
    assert keys.shown(one) == keys.shown(other) == f"{source} -> {kind} -> {target}"


@given(edges, edges)
def test_two_relationships_never_share_a_key(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    for make in (keys.relation_key, keys.reverse_key):
        same = make(*(part.encode() for part in one)) == make(*(part.encode() for part in other))
        assert same == (one == other)


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_pins_are_in_the_order_of_their_commits(lsns: list[int]) -> None:
    assert sorted(map(keys.pin_key, lsns)) == [keys.pin_key(lsn) for lsn in sorted(lsns)]
    assert all(keys.pinned_by(keys.pin_key(lsn)) == lsn for lsn in lsns)


@given(st.sampled_from(SPACES[:2] + SPACES[4:6]), names)
def test_a_name_comes_back_from_its_key(space: bytes, name: str) -> None:
    assert keys.name_of(space + check_name(name)) == name
    assert keys.shown(space + check_name(name)) == name


def test_what_is_no_text_is_shown_all_the_same() -> None:
    assert keys.shown(keys.pin_key(255)) == "\0" * 7 + "\\xff"


@given(st.lists(st.text(st.characters(blacklist_characters="\0", codec="utf-8"), max_size=4)))
def test_many_names_at_once_are_those_of_each_key(names: list[str]) -> None:
    found = [keys.TENSORS + name.encode() for name in names]
    assert keys.plain_names(found) == [keys.name_of(key) for key in found] == names
