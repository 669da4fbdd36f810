"""Names and escaped keys: every rule, and that no key is lost."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mldb import names
from mldb.errors import InvalidNameError, InvalidTypeError, UsageError
from mldb.names import check_name, escape_key

ANY_TEXT = st.text(st.characters(), max_size=40) | st.text("./%\\a\x00\ud800é2F", max_size=12)


def is_allowed(name: str) -> bool:
    """The rules of a name once more, in other words than the code's."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return False
    first_and_last = name[:1] != "/" and name[-1:] != "."
    parts = {part for part in name.split("/") if set(part) == {"."} and len(part) < 3}
    return 0 < size < 256 and first_and_last and not parts and "\\" not in name


@given(ANY_TEXT)
@example("a" * 255)
@example("é" * 128)
@example("...")
@example("a/.../b")
def test_a_name_is_taken_exactly_when_no_rule_is_broken(name: str) -> None:
    if is_allowed(name):
        assert check_name(name) == name.encode("utf-8")
        assert check_name(name) is check_name(name)
    else:
        with pytest.raises(InvalidNameError):
            check_name(name)


@given(ANY_TEXT)
@example("")
@example("%")
@example("..")
@example("a/b%2Fc")
def test_an_escaped_key_comes_back_and_is_one_component(key: str) -> None:
    component = escape_key(key)
    # URLs are escaped alike, but for the empty key.
    assert ("" if component == "%" else unquote(component, errors="surrogatepass")) == key
    assert "/" not in component
    if len(component) <= 255 and component.isascii():
        assert check_name(component)
    assert check_name(f"a/{component}"[:255])


@given(ANY_TEXT, ANY_TEXT)
def test_two_keys_never_share_a_component(first: str, second: str) -> None:
    assert (escape_key(first) == escape_key(second)) == (first == second)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "is empty"),
        ("a" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\x85b", "control"),
        ("a\\b", "backslash"),
        ("/a", "starts with"),
        ("../a", "component"),
        ("a/./b", "component"),
        ("a/..", "component"),
        (".", "component"),
        ("a.", "ends with"),
        ("a\ud800", "surrogate"),
    ],
)
def test_the_message_names_the_rule_and_the_allowed_form(name: str, rule: str) -> None:
    with pytest.raises(InvalidNameError, match=rule) as caught:
        check_name(name)
    assert "1 to 255 bytes of UTF-8" in str(caught.value)
    assert repr(name)[:70] in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, UsageError)


def test_the_message_cuts_a_huge_name() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_name("\x00" * 1_000_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 3, b"name", ["name"], float("nan"), {}, ("a",)])
def test_what_is_no_text_is_a_type_error(value: object) -> None:
    with pytest.raises(InvalidTypeError, match=type(value).__name__) as caught:
        check_name(value)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("key", ["layer.0.weight", "exp_avg", "0", "a..b", "ключ", "a b"])
def test_ordinary_keys_are_their_own_component(key: str) -> None:
    assert escape_key(key) == key


def test_the_memory_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_known", {})
    monkeypatch.setattr(names, "_CACHE_LIMIT", 8)
    for number in range(100):
        assert check_name(f"tensor{number}") == f"tensor{number}".encode()
        assert len(names._known) <= 8
    with pytest.raises(InvalidNameError):
        check_name("..")
    assert ".." not in names._known


@given(st.text("aZ09_-./ %\\\u00e9\u00b2\u0660", max_size=6))
@example("")
@example("a.b/c-d_e")
def test_a_plain_name_is_words_with_dots_and_slashes_between(name: str) -> None:
    pattern = r"(?a)[\w-]+(?:[./][\w-]+)*"
    assert names._is_plain(name) == (re.fullmatch(pattern, name) is not None)
