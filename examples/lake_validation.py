"""Validate a lake on 10,000 real embeddings: speed, norms, noise, labels, resuming, the past.

python examples/lake_validation.py [rows] [device]

The embeddings are the 1,797 digits of scikit-learn, 8 x 8 pixels, each moved by at most one pixel
to one of nine places (what leaves the frame is lost): 16,173 images, of which *rows* are drawn. One
fixed map with orthonormal columns takes the 64 pixels to 640 numbers, so cosines are those of the
images. They are real, but they are not 10,000 independent ones. They fill 64 of the 640 dimensions,
so most isotropic noise points to where no row is, and costs fewer labels than it would otherwise.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

import mldb

DIM = 640
LABELLED_SHARE = 0.1
STRENGTHS = (0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "isotropic .95": {"mode": "isotropic", "strength": 0.95},
    "isotropic .65": {"mode": "isotropic", "strength": 0.65},
    "isotropic .30": {"mode": "isotropic", "strength": 0.3},
    "walk, no gate": {"mode": "walk", "gate": False},
    "walk, gate": {"mode": "walk"},
    "langevin, gate": {"mode": "langevin"},
}

Array = np.ndarray[Any, Any]


class Embeddings(NamedTuple):
    """Rows [n, 640], the digit each shows, and the number of the image it was made from."""

    x: Array
    digit: Array
    image: Array


def main(rows: int | str = 10_000, device: str = "auto") -> None:
    """Run every check; each prints what it found, and raises AssertionError when it is wrong."""
    data = shifted_digits(int(rows))
    with tempfile.TemporaryDirectory() as folder, mldb.open(folder) as db:
        lake = db.lake("digits", dim=DIM)
        check_past(lake, data, device)
        check_norms(lake)
        measure_streams(lake, device)
        check_strengths(lake, device)
        measure_labels(lake, data, device)
        check_resume(lake, device)
        assert db.verify().ok


def shifted_digits(rows: int) -> Embeddings:
    """Draw moved digits, and take them to 640 dimensions."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    padded = np.pad(digits.images, ((0, 0), (1, 1), (1, 1)))
    moved = [
        padded[:, down : down + 8, right : right + 8] for down in range(3) for right in range(3)
    ]
    pixels = np.concatenate(moved).reshape(-1, 64)
    image = np.tile(np.arange(len(digits.images)), len(moved))
    drawn = rng.permutation(len(pixels))[:rows]
    columns = np.linalg.qr(rng.standard_normal((DIM, 64)))[0]
    x = (pixels[drawn] @ columns.T).astype(np.float32)
    return Embeddings(x, digits.target[image[drawn]], image[drawn])


def check_past(lake: mldb.Lake, data: Embeddings, device: str) -> None:
    """Add rows in two epochs and remove some in a third; the first epoch stays what it was."""
    rng = np.random.default_rng(1)
    labelled = rng.random(data.image.max() + 1) < LABELLED_SHARE  # images, with all their places
    labels = np.where(labelled[data.image], data.digit, -1)  # below 0: no label
    first = len(data.x) * 4 // 5

    start = time.perf_counter()
    lake.add_splats(data.x[:first], labels=labels[:first], epoch=1)
    seconds = time.perf_counter() - start
    megabytes = first * DIM * 4 / 1e6
    print(f"ingest: {first} rows, {first / seconds:,.0f} rows/s, {megabytes / seconds:.0f} MB/s")
    before = list(lake.export_to_dataloader(generate_samples=True, device=device))

    ids = lake.add_splats(data.x[first:], labels=labels[first:], epoch=2)
    lake.remove(ids[:10], epoch=3)
    with lake.at(1) as old, lake.at(2) as full:
        print(f"past: {len(old)} rows at epoch 1, {len(full)} at epoch 2, {len(lake)} at epoch 3")
        assert (len(old), len(full), len(lake)) == (first, len(data.x), len(data.x) - 10)
        assert np.array_equal(old.get()["mu"], full.get(ids=np.arange(first))["mu"])
    after = lake.export_to_dataloader(generate_samples=True, device=device, as_of=1)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    print(f"past: the {len(before)} batches of epoch 1 come again, bit for bit")


def check_norms(lake: mldb.Lake) -> None:
    """Rows have length 1, and the lengths they came with are kept."""
    rows = lake.get(fields=("mu", "norm"))
    error = float(np.abs(np.linalg.norm(rows["mu"].astype(np.float64), axis=1) - 1).max())
    print(f"norms: 1 within {error:.1e}; given rows had {rows['norm'].min():.1f} and more")
    assert error < 1e-6


def measure_streams(lake: mldb.Lake, device: str) -> None:
    """Print how many rows a second come out, as they are and generated."""
    plain = lake.export_to_dataloader(batch_size=256)
    print(f"plain stream: {rows_per_second(plain):,.0f} rows/s")
    made = lake.export_to_dataloader(batch_size=256, generate_samples=True, device=device)
    print(f"generated: {rows_per_second(made):,.0f} rows/s by {made.stats()['device']}")


def rows_per_second(loader: mldb.LakeLoader, passes: int = 5) -> float:
    """Return the median rate of *passes* passes after a first one."""
    rates = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        rows = sum(len(batch) for batch in loader)
        rates.append(rows / (time.perf_counter() - start))
    return float(np.median(rates[1:]))


def check_strengths(lake: mldb.Lake, device: str) -> None:
    """The mean cosine between a row and its augmentation is the strength asked for."""
    x = lake.get()["mu"][:2000]
    for strength in STRENGTHS:
        made = lake.augment(x, strength=strength, device=device)
        cosine = float((made * x).sum(axis=1).mean())
        print(f"strength {strength:.2f}: mean cosine {cosine:.4f}")
        assert abs(cosine - strength) < 0.002


def measure_labels(lake: mldb.Lake, data: Embeddings, device: str) -> None:
    """Print how often an augmented row still looks like its digit to its five nearest neighbours.

    Neighbours made from the same image do not vote. The lake knows the labels of a tenth of the
    images, as the gate does; the judge knows all.
    """
    rows = lake.get(fields=("mu", "label", "id"))
    known = np.flatnonzero(rows["label"] >= 0)
    x, origin = rows["mu"][known], rows["id"][known]  # ids count from 0, in the order of data
    print(f"labels kept: {preserved(x, origin, data):.3f} by the {len(x)} labelled rows themselves")
    for name, settings in AUGMENTATIONS.items():
        made = lake.augment(x, device=device, **settings)
        cosine = float((made * x).sum(axis=1).mean())
        share = preserved(made, origin, data)
        print(f"labels kept: {share:.3f} by {name}, mean cosine {cosine:.2f}")


def preserved(x: Array, origin: Array, data: Embeddings) -> float:
    """Return the share of rows *x*, made from rows *origin*, whose neighbours show their digit."""
    unit = data.x / np.linalg.norm(data.x, axis=1, keepdims=True)
    cosines = x @ unit.T
    cosines[data.image[origin][:, None] == data.image] = -2
    voters = data.digit[np.argpartition(-cosines, 5, axis=1)[:, :5]]
    votes = (voters[:, :, None] == np.arange(10)).sum(axis=1)
    return float((votes.argmax(axis=1) == data.digit[origin]).mean())


def check_resume(lake: mldb.Lake, device: str) -> None:
    """A stream stopped in the middle goes on with the very next batch, in another loader."""
    settings: dict[str, Any] = {
        "importance_sampling": True,
        "generate_samples": True,
        "device": device,
        "seed": 7,
    }
    straight = list(lake.export_to_dataloader(**settings))
    stopped = lake.export_to_dataloader(**settings)
    half = len(straight) // 2
    for _ in islice(stopped, half):
        pass
    state = json.dumps(stopped.state_dict())
    resumed = lake.export_to_dataloader(**settings)
    resumed.load_state_dict(json.loads(state))
    rest = list(resumed)
    assert all(torch.equal(*pair) for pair in zip(straight[half:], rest, strict=True))
    print(f"resume: after batch {half} of {len(straight)}, bit for bit, from {len(state)} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:3])
