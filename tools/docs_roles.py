"""An extension of griffe for the site: roles of docstrings become plain code.

``:meth:`~mldb.x.load``` is how a docstring names another thing; Markdown does not know it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|exc):`~?([^`]+)`")


def without_roles(text: str) -> str:
    """Replace each role by the name that it holds, as code."""
    return _ROLE.sub(lambda found: f"`{found[1]}`", text)


class Roles(griffe.Extension):
    """Takes the roles out of every docstring that has some."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Called by griffe with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)
