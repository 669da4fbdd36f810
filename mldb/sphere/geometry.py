"""Where the rows of a lake lie."""

from __future__ import annotations

from typing import Literal, TypeAlias

Geometry: TypeAlias = Literal["sphere", "euclid"]
"""On the unit sphere, compared by cosine; or anywhere, compared by distance."""
