"""A row that a pass draws many times gets noise of its own each time, and lakes share nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.gpu.select import open_device
from mldb.lake.augment.landscape import Landscape
from mldb.noise.keys import Keys
from mldb.noise.streams import Counted, stream_seed
from tests.support.lakes import BATCH, DIM, ROWS, data, db, fill, raw, stream

__all__ = ["data", "db"]

torch = pytest.importorskip("torch")

MODES: dict[str, mldb.Augmentation] = {
    "isotropic": mldb.Augmentation(),
    "copies": mldb.Augmentation(copies=3, keep=True),
    "walk": mldb.Augmentation(mode="walk", hops=3),
    "langevin": mldb.Augmentation(mode="langevin", steps=3),
    "mala": mldb.Augmentation(mode="langevin", steps=3, method="mala"),
    "subspace": mldb.Augmentation(mode="langevin", k=6, steps=3, form="subspace"),
}


def drawn(lake: Any, mode: str, **options: Any) -> Any:
    chosen: dict[str, Any] = {
        "importance_sampling": mldb.Importance(beta=4.0),
        "generate_samples": MODES[mode],
        "draws": 640,
        "fields": ("mu", "id", "augmentation"),
        "batch_size": BATCH,
        "device": "numpy",
        "seed": 5,
    }
    return lake.export_to_dataloader(**chosen | options)


@pytest.fixture
def heavy(data: dict[str, Any]) -> dict[str, Any]:
    """One row is most of what is drawn."""
    data["alpha"] = np.ones(ROWS, np.int64)
    data["alpha"][17] = 60
    return data


@pytest.mark.parametrize("mode", ["isotropic", "copies", "langevin", "subspace"])
@pytest.mark.parametrize("device", ["numpy", "cpu", "torch", "vulkan"])
def test_a_row_drawn_hundreds_of_times_gives_as_many_rows(
    db: mldb.MLDatabase, heavy: dict[str, Any], mode: str, device: str
) -> None:
    """It gave one: the noise was a function of the row, and of no draw."""
    if (device, mode) == ("vulkan", "subspace"):
        pytest.skip("the Vulkan device has no subspace form, and says so")
    heavy.pop("labels")  # a gate would take rows back
    lake = fill(db, heavy)
    try:
        batches = list(drawn(lake, mode, device=device))
    except mldb.GpuUnavailableError as error:
        pytest.skip(str(error))
    mine = np.concatenate([b.mu[(b.id == 17) & (b.augmentation > 0)].numpy() for b in batches])
    assert len(mine) > 400
    assert len(np.unique(mine, axis=0)) == len(mine)


def test_walks_of_a_row_drawn_often_end_where_chance_takes_them(
    db: mldb.MLDatabase, heavy: dict[str, Any]
) -> None:
    heavy.pop("labels")
    lake = fill(db, heavy)
    batches = list(drawn(lake, "walk"))
    ends = np.concatenate([b.mu[b.id == 17].numpy() for b in batches])
    assert len(np.unique(ends, axis=0)) > 30  # of three hops among ten neighbours each


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["drawn", "systematic", "permutation"])
def test_provenance_makes_the_same_rows_again(
    db: mldb.MLDatabase, data: dict[str, Any], mode: str, kind: str
) -> None:
    """Occurrence, id, augmentation, pass, seed and lake are the whole key of the noise."""
    data.pop("labels")
    lake = fill(db, data)
    chosen = MODES[mode]
    loader = stream(lake, kind, generate_samples=chosen, fields=("mu", "id"))
    dataset = loader.dataset
    dataset.set_pass(2)
    number, batch = 3, list(loader)[3]
    told = dataset.provenance(number, pass_number=2)
    assert told["id"].tolist() == batch.id.tolist()
    counted, rows = Counted.ROW, told["id"]
    if kind == "drawn":
        counted, rows = Counted.DRAW, told["occurrence"]
        first = number * (BATCH // chosen.group)
        positions = np.arange(first, first + BATCH // chosen.group)
        assert rows.tolist() == np.repeat(positions, chosen.group).tolist()
    else:
        assert told["occurrence"] is None
    seed = stream_seed(told["seed"], bytes.fromhex(told["lake"]), counted)
    made = told["augmentation"] > 0
    numbers = told["augmentation"][made].astype(np.uint16)
    keys = Keys(seed, told["pass"], rows[made].astype(np.uint64), numbers)
    assert keys_unique(keys)
    x = lake.get(told["id"][made])["mu"]
    again = moved(lake, chosen, x, told["id"][made], keys)
    assert again.tobytes() == batch.mu.numpy()[made].tobytes()
    assert raw([dataset.batch(number, pass_number=2).mu]) == raw([batch.mu])


def keys_unique(keys: Keys) -> bool:
    pairs = set(zip(keys.rows.tolist(), keys.augmentations.tolist(), strict=True))
    return len(pairs) == len(keys)


def moved(lake: Any, chosen: mldb.Augmentation, x: Any, rows: Any, keys: Keys) -> Any:
    """Ids are row numbers here."""
    device = open_device("numpy")
    if chosen.mode == "isotropic":
        return device.isotropic(x, keys, chosen.strength).result().x
    landscape = Landscape(lake.rows(), chosen)
    if chosen.mode == "walk":
        return landscape.walk(x, rows, keys).rows
    return landscape.chains(device, device.load(landscape.mu), x, rows, keys).rows


@pytest.mark.parametrize("mode", MODES)
def test_repeated_draws_resume_and_are_dealt_to_ranks(
    db: mldb.MLDatabase, heavy: dict[str, Any], mode: str
) -> None:
    lake = fill(db, heavy)
    loader = drawn(lake, mode, fields=None)
    states, whole = [loader.state_dict()], []
    for batch in loader:
        whole += raw([batch])
        states.append(loader.state_dict())
    for at in (1, 7, len(whole) - 1):
        other = drawn(lake, mode, fields=None)
        other.load_state_dict(states[at])
        assert raw(other) == whole[at:]
    ranks = [raw(drawn(lake, mode, fields=None, rank=rank, world=3)) for rank in range(3)]
    assert [ranks[at % 3][at // 3] for at in range(len(whole))] == whole
    assert raw(loader)[0] != whole[0]  # the next pass has other draws and other noise


def test_where_rows_come_once_their_noise_is_theirs(
    db: mldb.MLDatabase, data: dict[str, Any]
) -> None:
    """In another order, or as part of a sample, a row becomes what it becomes."""
    lake = fill(db, data)

    def made(kind: str) -> dict[int, bytes]:
        loader = stream(lake, kind, generate_samples=True, fields=("mu", "id"))
        return {
            number: row.tobytes()
            for batch in loader
            for number, row in zip(batch.id.tolist(), batch.mu.numpy(), strict=True)
        }

    whole = made("permutation")
    assert len(whole) == ROWS
    for kind in ("sequential", "windowed", "systematic", "bottom_k"):
        part = made(kind)
        assert part.items() <= whole.items()
        assert len(part) >= 300


@pytest.mark.parametrize(
    "kind", ["permutation", "windowed", "drawn", "systematic", "bottom_k", "isotropic", "langevin"]
)
def test_two_lakes_of_one_seed_share_neither_order_nor_noise(
    db: mldb.MLDatabase, tmp_path: Path, data: dict[str, Any], kind: str
) -> None:
    """Two lakes under the default seed were drawn and augmented alike, row for row."""
    with mldb.open(tmp_path / "third") as other:
        lakes = [fill(db, data, name="one"), fill(db, data, name="two"), fill(other, data)]
        seen = [list(stream(lake, kind, seed=0, fields=("mu", "id"))) for lake in lakes]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            ids = [torch.cat([b.id for b in seen[at]]) for at in (first, second)]
            assert (ids[0] == ids[1]).float().mean() < 0.1
            made = [
                {row.tobytes() for b in seen[at] for row in b.mu.numpy()} for at in (first, second)
            ]
            if kind in ("isotropic", "langevin"):
                assert not made[0] & made[1]


def test_a_state_of_the_layout_before_is_refused(db: mldb.MLDatabase, data: dict[str, Any]) -> None:
    """Going on from it would give other rows than the stream it was taken of."""
    loader = stream(fill(db, data), "isotropic")
    want = loader.state_dict()
    with pytest.raises(mldb.InvalidValueError, match=r"counter layout 1, this stream 2"):
        loader.load_state_dict(want | {"layout": 1})
    assert loader.state_dict() == want


@pytest.mark.parametrize("mode", ["isotropic", "walk", "langevin"])
def test_augment_repeats_its_noise_under_one_seed_and_the_caller_moves_it(
    db: mldb.MLDatabase, data: dict[str, Any], rng: np.random.Generator, mode: Any
) -> None:
    """A pure function: what a loop has to do is said, and this is that it is so."""
    data.pop("labels")
    lake = fill(db, data)
    x = rng.standard_normal((40, DIM))
    settings: dict[str, Any] = {"mode": mode, "device": "numpy"}
    first = lake.augment(x, seed=1, **settings)
    assert lake.augment(x, seed=1, **settings).tobytes() == first.tobytes()
    assert lake.augment(x[:7], seed=1, **settings).tobytes() == first[:7].tobytes()
    other = lake.augment(x, seed=2, **settings)
    assert (other != first).any(axis=1).mean() > 0.5
    twice = lake.augment(np.repeat(x[:1], 40, axis=0), seed=1, **settings)
    assert len(np.unique(twice, axis=0)) > 10  # equal rows of one call have noise of their own
    assert "seed=step" in (lake.augment.__doc__ or "")
