"""The tests that docs/guarantees.md names are there, and each promise names some."""

from __future__ import annotations

import ast
import re

from tests.support.pages import DOCS, ROOT

PAGE = DOCS / "guarantees.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
WITHOUT_TESTS = {"Limits, and what is not there yet"}


def sections() -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def functions(path: str) -> set[str]:
    """The names of the functions at the top of a module; none where there is no such file."""
    file = ROOT / path
    if not file.is_file():
        return set()
    body = ast.parse(file.read_bytes()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_is_there() -> None:
    named = _NAMED.findall(PAGE.read_text(encoding="utf-8"))
    assert [f"{path}::{name}" for path, name in named if name not in functions(path)] == []
    assert len(set(named)) == len(named)


def test_every_promise_names_tests() -> None:
    bare = {title for title, text in sections().items() if not _NAMED.search(text)}
    assert bare == WITHOUT_TESTS
    assert len(sections()) >= 10


def test_a_name_that_is_not_there_is_found() -> None:
    assert functions("tests/docs/test_nowhere.py") == set()
    assert "functions" in functions("tests/docs/test_guarantees.py")
