"""Sweeps in two parts: a usual run takes some of it, ``-m large`` much more or all.

Both assert the same of each step; a test prints how much of its sweep it took. Of the examples of
hypothesis, which are the same in every run, a usual run takes a third; a run whose ``-m`` names
"large" takes all (``make test-large`` runs ``-m "large or hypothesis"``).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

_USUAL_SHARE = 3
_LEAST = 10
_whole = [False]


def take_all(whole: bool) -> None:
    """Let every test that is imported from now on take all of its examples, or a share."""
    _whole[0] = whole


def count_of(many: int) -> int:
    """Return how many of so many examples this run takes."""
    return many if _whole[0] else max(many // _USUAL_SHARE, min(many, _LEAST))


def examples(many: int, **options: Any) -> settings:
    """Return settings of hypothesis with *many* examples in a large run."""
    return settings(max_examples=count_of(many), **options)


def some_and_many(name: str, some: Any, many: Any) -> pytest.MarkDecorator:
    """Give a test the parameter *name*: *some* in a usual run, *many* in a large one."""
    large = pytest.param(many, marks=pytest.mark.large)
    return pytest.mark.parametrize(name, [some, large], ids=["some", "many"])


def one_of(step: int) -> str:
    """Say which part of a sweep a stride takes."""
    return "all of them" if step == 1 else f"one of {step}"
