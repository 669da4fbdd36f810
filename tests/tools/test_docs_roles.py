"""Roles of docstrings become code in the pages of the site."""

from __future__ import annotations

import pytest

griffe = pytest.importorskip("griffe", reason="griffe is not installed: pip install -e '.[docs]'")

from mldb.tools.docs_roles import Roles, without_roles  # noqa: E402


def test_roles_become_code() -> None:
    assert without_roles("see :meth:`load`, :class:`~mldb.x.Y` and ``a``") == (
        "see `load`, `mldb.x.Y` and ``a``"
    )


def test_every_docstring_that_has_some_loses_them() -> None:
    with_one = griffe.Function("f", docstring=griffe.Docstring("As :func:`g`."))
    without = griffe.Function("g")
    for thing in (with_one, without):
        Roles().on_instance(obj=thing)
    assert with_one.docstring.value == "As `g`."
    assert without.docstring is None
