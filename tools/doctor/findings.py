"""Findings: what was seen of a store, how bad it is, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: ``subject`` is what it is about, ``next`` a command or what to do, or empty.

    A note costs nothing or mends itself; a problem is damage, a danger, or something that failed.
    """

    level: Level
    subject: str
    text: str
    next: str = ""
