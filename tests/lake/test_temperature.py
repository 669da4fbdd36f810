"""Chains end at the mean cosine asked for, or no temperature makes them and that is said."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.lake.augment.landscape import Landscape
from mldb.lake.augment.temperature import Trial, find_temperature
from mldb.lake.stream.settings import Augmentation


@pytest.fixture
def db(store_path: Path) -> Iterator[mldb.MLDatabase]:
    with mldb.open(store_path, durability="os") as database:
        yield database


def cloud(rng: np.random.Generator, kind: str, dim: int, count: int = 700) -> Any:
    if kind == "uniform":
        return rng.standard_normal((count, dim))
    centres = rng.standard_normal((12, dim))
    return centres[rng.integers(0, 12, count)] + 0.6 * rng.standard_normal((count, dim))


def mean_cosine(lake: Any, **settings: Any) -> float:
    x = lake.get()["mu"]
    made = lake.augment(x, mode="langevin", gate=False, device="cpu", **settings)
    return float((made * x).sum(axis=1).mean())


@pytest.mark.parametrize("strength", [0.15, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize(("kind", "dim"), [("uniform", 16), ("clusters", 16), ("clusters", 96)])
def test_chains_end_at_the_strength_asked_for(
    db: mldb.MLDatabase, rng: np.random.Generator, kind: str, dim: int, strength: float
) -> None:
    """Asked for .3 they ended at .12 to .26: the law of one splat is not that of neighbours.

    Over 700 rows; the temperature is found on 256 of them, so the mean has an error of .01.
    """
    lake = db.lake(dim=dim)
    lake.add_splats(cloud(rng, kind, dim))
    assert mean_cosine(lake, strength=strength, seed=3) == pytest.approx(strength, abs=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 4},
        {"h": 0.05},
        {"method": "mala"},
        {"form": "subspace"},
        {"k": 30},
        {"k": 1},
        {"steps": 2, "h": 1.0},
    ],
)
def test_strength_means_the_same_whatever_the_chain(
    db: mldb.MLDatabase, rng: np.random.Generator, settings: dict[str, Any]
) -> None:
    """A short chain is warmer; it used to stay nearer to its row than was asked for."""
    lake = db.lake(dim=40)
    lake.add_splats(cloud(rng, "clusters", 40))
    assert mean_cosine(lake, strength=0.7, **settings) == pytest.approx(0.7, abs=0.03)


def test_what_no_temperature_reaches_is_refused(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    lake = db.lake(dim=16)
    lake.add_splats(cloud(rng, "clusters", 16))
    x = lake.get()["mu"][:3]

    def call(**settings: Any) -> Any:
        return lake.augment(x, mode="langevin", device="numpy", **settings)

    with pytest.raises(mldb.InvalidValueError, match=r"strength=0\.1: .*steps=1 .* too short"):
        call(strength=0.1, steps=1)
    with pytest.raises(mldb.InvalidValueError, match=r"strength=0\.9999.* at most.*lower strength"):
        call(strength=0.999999)
    short = Augmentation(mode="langevin", strength=0.1, steps=1)
    loader = lake.export_to_dataloader(8, generate_samples=short)
    with pytest.raises(mldb.InvalidValueError, match="too short"):
        next(iter(loader))


def test_the_search_is_made_once_for_a_state_and_a_setting(
    db: mldb.MLDatabase, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[float] = []
    plain = Trial.mean_cosine

    def noted(self: Trial, temperature: float) -> float:
        runs.append(temperature)
        return plain(self, temperature)

    monkeypatch.setattr(Trial, "mean_cosine", noted)
    lake = db.lake(dim=16)
    lake.add_splats(cloud(rng, "clusters", 16))
    chosen = Augmentation(mode="langevin", strength=0.4)
    first = Landscape(lake.rows(), chosen).dynamics()
    once = len(runs)
    assert 2 <= once <= 12
    assert Landscape(lake.rows(), chosen).dynamics() == first
    assert len(runs) == once
    Landscape(lake.rows(), chosen).prepare()  # as before workers start
    assert len(runs) == once
    other = Landscape(lake.rows(), Augmentation(mode="langevin", strength=0.5)).dynamics()
    assert other.temperature < first.temperature
    assert len(runs) > once


@pytest.mark.parametrize("wanted", [0.05, 0.4, 0.93])
@pytest.mark.parametrize("start", [1e-2, 1.0, 1e3])
def test_a_root_is_found_from_anywhere(wanted: float, start: float) -> None:
    """Of a curve like those of chains, whose root is known."""
    asked: list[float] = []

    def curve(temperature: float) -> float:
        asked.append(temperature)
        return 1 / (1 + temperature / 3)

    chosen = Augmentation(mode="langevin", strength=wanted)
    found = find_temperature(curve, chosen, start)
    assert curve(found) == pytest.approx(wanted, abs=1e-3)
    assert found == float(f"{found:.3e}")
    assert len(asked) <= 20


def test_steps_of_acceptance_do_not_keep_it_from_ending() -> None:
    """Under MALA the mean jumps where a proposal is accepted: there is no exact root."""
    chosen = Augmentation(mode="langevin", strength=0.5)
    asked: list[float] = []

    def stairs(temperature: float) -> float:
        asked.append(temperature)
        return float(np.floor(64 / (1 + temperature)) / 64)

    found = find_temperature(stairs, chosen, 20.0)
    assert stairs(found) == pytest.approx(0.5, abs=1 / 32)
    assert len(asked) < 40
    assert exp(-3) < found < exp(3)
