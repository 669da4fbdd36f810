"""Sweeps in two parts: a usual run takes some of it, ``-m large`` much more or all.

Both assert the same of each step; a test prints how much of its sweep it took.
"""

from __future__ import annotations

from typing import Any

import pytest


def some_and_many(name: str, some: Any, many: Any) -> pytest.MarkDecorator:
    """Give a test the parameter *name*: *some* in a usual run, *many* in a large one."""
    large = pytest.param(many, marks=pytest.mark.large)
    return pytest.mark.parametrize(name, [some, large], ids=["some", "many"])


def one_of(step: int) -> str:
    """Say which part of a sweep a stride takes."""
    return "all of them" if step == 1 else f"one of {step}"
