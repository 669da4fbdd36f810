"""Rows for tests of consolidation, and a plain form of its rules to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mldb.arrays import Float32s, Float64s, Numbers
from mldb.compaction.soc.active import largest_angle
from mldb.compaction.soc.rows import SplatRows
from mldb.compaction.soc.seeded import seeded_order
from mldb.sphere import vmf


def unit(rows: Float64s) -> Float32s:
    """Rows of length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths, np.float32)


def planted(
    rng: np.random.Generator, originals: int = 1000, dim: int = 64, noise: float = 0.1
) -> tuple[Float32s, Numbers]:
    """Gaussian originals with Zipf(1.6) copies, at most 200, at cosine .995; and whose each is."""
    source = rng.standard_normal((originals, dim))
    source /= np.linalg.norm(source, axis=1, keepdims=True)
    of = np.repeat(np.arange(originals), np.minimum(rng.zipf(1.6, originals), 200))
    of = rng.permutation(of)
    return unit(source[of] + noise * rng.standard_normal((len(of), dim)) / np.sqrt(dim)), of


def partition(sources: Numbers, starts: Numbers, count: int) -> list[int]:
    """The first row of the group of each of *count* rows."""
    first = list(range(count))
    for low, high in pairwise(starts.tolist()):
        for row in sources[low:high].tolist():
            first[row] = int(sources[low])
    return first


@dataclass
class PlainSweep:
    """The batch with all pairs as neighbours, by vectors alone and one pair at a time."""

    rows: SplatRows
    min_cos: float
    seed: int = 0
    members: dict[int, list[int]] = field(default_factory=dict)
    rad: dict[int, float] = field(default_factory=dict)

    def run(self) -> list[int]:
        """Merge until a pass merges nothing; return the first row of the group of each row."""
        self.members = {i: [i] for i in range(len(self.rows))}
        self.rad = {i: float(np.arccos(self.rows.min_cos[i])) for i in self.members}
        self.weights = self.rows.alpha * vmf.mean_cosine(self.rows.kappa, self.rows.mu.shape[1])
        turn, merged = 0, True
        while merged:
            clean = {i for i in self.members if self._partner(i) is None}
            merged = False
            while todo := [i for i in sorted(self.members) if i not in clean]:
                for i in [todo[p] for p in seeded_order(self.seed, turn, self.rows.ids[todo])]:
                    if i in self.members and i not in clean:
                        merged |= self._look_at(i, clean)
                turn += 1
            for i, members in self.members.items():
                self.rad[i] = max(
                    float(np.arccos(self.rows.min_cos[m])) + self._angle(self._mean(i), m)
                    for m in members
                )
        first = [0] * len(self.rows)
        for members in self.members.values():
            for m in members:
                first[m] = min(members)
        return first

    def _look_at(self, i: int, clean: set[int]) -> bool:
        found = self._partner(i)
        if found is None:
            clean.add(i)
            return False
        j, radius = found
        kept, gone = min(i, j), max(i, j)
        self.members[kept] += self.members.pop(gone)
        self.rad[kept] = radius
        clean.discard(kept)
        return True

    def _partner(self, i: int) -> tuple[int, float] | None:
        best: tuple[float, int, float] | None = None
        for j in sorted(self.members):
            if j == i or self.rows.labels[i] != self.rows.labels[j]:
                continue
            moment = self._moment(i) + self._moment(j)
            mean = moment / np.linalg.norm(moment)
            radius = max(self.rad[s] + _angle_of(mean, self._mean(s)) for s in (i, j))
            mass = sum(self.rows.alpha[m] for m in (*self.members[i], *self.members[j]))
            resultant = float(np.linalg.norm(moment)) / mass
            if radius <= largest_angle(self.min_cos) and (best is None or resultant > best[0]):
                best = (resultant, j, radius)
        return None if best is None else best[1:]

    def _moment(self, i: int) -> Float64s:
        parts = [self.weights[m] * self.rows.mu[m].astype(np.float64) for m in self.members[i]]
        total: Float64s = np.sum(parts, axis=0)
        return total

    def _mean(self, i: int) -> Float64s:
        moment = self._moment(i)
        mean: Float64s = moment / np.linalg.norm(moment)
        return mean

    def _angle(self, mean: Float64s, row: int) -> float:
        return _angle_of(mean, self.rows.mu[row].astype(np.float64))


def _angle_of(one: Float64s, two: Float64s) -> float:
    cosine = one @ two / np.sqrt((one @ one) * (two @ two))
    return float(np.arccos(np.clip(cosine, -1, 1)))
