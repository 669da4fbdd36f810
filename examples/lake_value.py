"""What sampling and augmentation are worth: accuracy on digits, through the public interface.

python examples/lake_value.py [--seeds 10] [--quick] [--scale-each]

Table "sampling": a lake of about 6,000 rows that are noisy copies of about 525 images, as a crawl
would be. Classes are unequal, and an image has 1 to 200 copies. The test is on other images
(clean), and on fresh copies of the same ones (stream).
Table "augmentation": a lake with 50 or 100 labelled rows and about 1,100 without a label. Half of a
batch is labelled rows, half is what they were made into.

Figures are means over seeds ± standard errors. The last column is the difference to the first line
on the same seeds. With --scale-each every feature is scaled by its own deviation, a weaker baseline
at few labels, from which noise gains more. --quick runs two seeds and a tenth of the steps, only to
see that it works. Merging duplicates (consolidation) is no part of this.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mldb
from mldb import Augmentation, Importance
from mldb.sphere.graph import build_graph, knn_kappa

FIELDS = ("mu", "label", "weight")
BATCH = 32
SAMPLING_STEPS = 63  # 2,016 rows seen
COPY_NOISE = 0.1  # a copy has cosine .995 to its image
MOST_COPIES = 200
DUPLICATE_COSINE = 0.97

Array = np.ndarray[Any, Any]
Scores = dict[str, list[float]]

# Rows stand in the lake by falling kappa, so that reading them in their order is that strategy.
SAMPLING: dict[str, dict[str, Any]] = {
    "uniform, every row once": {},
    "highest kappa first": {"shuffle": False},
    "p ~ kappa": {"importance_sampling": Importance(gamma=1), "salience": "knn_kappa"},
    "p ~ 1/duplicates": {"importance_sampling": Importance(gamma=1), "salience": "rarity"},
    "p ~ 1/sqrt(duplicates)": {"importance_sampling": Importance(gamma=0.5), "salience": "rarity"},
    "p ~ 1/duplicates, weighted": {
        "importance_sampling": Importance(gamma=1, target="rows", low_ess="raise_floor"),
        "salience": "rarity",
    },
}
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "0.01 randn": None,  # made in the loop, as it always was
    "isotropic .90": Augmentation(mode="isotropic", strength=0.9, keep=True),
    "langevin, gate": Augmentation(mode="langevin", strength=0.9, keep=True),
    "walk of 2 hops, gate": Augmentation(mode="walk", hops=2, keep=True),
}


class Protocol(NamedTuple):
    """What is run, and how."""

    seeds: int = 5
    labelled: tuple[int, ...] = (50, 100)
    steps: int = 500  # of a training with augmentation: 16,000 rows seen
    scale_each: bool = False
    device: str = "cpu"  # the same figures everywhere; batches of 32 rows keep no GPU busy


FULL = Protocol()
QUICK = Protocol(seeds=2, labelled=(50,), steps=50, device="numpy")


class Rows(NamedTuple):
    """Unit rows float32 [n, 64] and their labels int64 [n]."""

    x: Array
    y: Array

    def take(self, picked: Any) -> Rows:
        """Return some of the rows."""
        return Rows(self.x[picked], self.y[picked])


def main(protocol: Protocol = FULL) -> dict[str, Scores]:
    """Run both experiments, print the tables, return the scores of every line and seed."""
    tables: dict[str, Scores] = {}
    with tempfile.TemporaryDirectory() as folder, mldb.open(folder, durability="os") as db:
        for seed in range(protocol.seeds):
            for name, line, score in run_seed(db, seed, protocol):
                tables.setdefault(name, {}).setdefault(line, []).append(score)
    for name, scores in tables.items():
        print_table(name, scores)
    print(READING)
    return tables


def run_seed(
    db: mldb.MLDatabase, seed: int, protocol: Protocol
) -> Iterator[tuple[str, str, float]]:
    """Yield (table, line, accuracy in percent) of everything for one seed."""
    task = redundant_digits(seed)
    lake = lake_of_copies(db, f"copies-{seed}", task.train)
    for line in SAMPLING:
        model = train(sampled(lake, line, seed), lake, seed, protocol.scale_each)
        yield "sampling, clean test", line, accuracy(model, task.test)
        yield "sampling, stream test", line, accuracy(model, task.stream)
    for count in protocol.labelled:
        lake, test = lake_with_few_labels(db, f"few-{seed}-{count}", count, seed)
        for line in AUGMENTATIONS:
            batches = augmented(lake, line, seed, protocol)
            model = train(batches, lake, seed, protocol.scale_each)
            yield f"augmentation, {count} labels", line, accuracy(model, test)


# --- sampling -------------------------------------------------------------------------------------


class Task(NamedTuple):
    """Rows to train on, other images to test on, and fresh copies of the images trained on."""

    train: Rows
    test: Rows
    stream: Rows


def digits(rng: np.random.Generator) -> Rows:
    """The 1,797 digits of scikit-learn as unit rows, shuffled."""
    data = load_digits()
    order = rng.permutation(len(data.data))
    return Rows(unit(data.data[order]), data.target[order].astype(np.int64))


def redundant_digits(seed: int) -> Task:
    """Keep fewer images of every next class, and copy each a Zipf-distributed number of times."""
    rng = np.random.default_rng(seed)
    images = digits(rng)
    test, rest = images.take(slice(500)), images.take(slice(500, None))
    share = np.geomspace(1, 0.1, 10)[rng.permutation(10)]
    each = [np.flatnonzero(rest.y == label) for label in range(10)]
    most = min(map(len, each))
    parts = [of[: round(most * share[label])] for label, of in enumerate(each)]
    kept = rest.take(np.concatenate(parts))
    copies = np.minimum(rng.zipf(1.6, len(kept.y)), MOST_COPIES)
    train, stream = (noisy_copies(kept, copies, rng) for _ in range(2))
    return Task(train, test, stream)


def noisy_copies(rows: Rows, copies: Array, rng: np.random.Generator) -> Rows:
    """Return every row as often as *copies* says, each with noise of its own."""
    many = rows.take(np.repeat(np.arange(len(rows.y)), copies))
    noise = rng.standard_normal(many.x.shape) * COPY_NOISE / np.sqrt(many.x.shape[1])
    return Rows(unit(many.x + noise), many.y)


def lake_of_copies(db: mldb.MLDatabase, name: str, rows: Rows) -> mldb.Lake:
    """Store rows by falling kappa, with the two saliences as columns."""
    kappa = knn_kappa(build_graph(rows.x, 10), rows.x.shape[1])
    duplicates = (rows.x @ rows.x.T >= DUPLICATE_COSINE).sum(axis=1)  # itself is one
    order = np.argsort(-kappa, kind="stable")
    lake = db.lake(name, dim=rows.x.shape[1])
    columns = {"knn_kappa": kappa[order], "rarity": 1 / duplicates[order]}
    lake.add_splats(rows.x[order], labels=rows.y[order], columns=columns)
    return lake


def sampled(lake: mldb.Lake, line: str, seed: int) -> Iterator[Any]:
    """Yield the batches of one way of sampling."""
    loader = lake.export_to_dataloader(BATCH, fields=FIELDS, seed=seed, **SAMPLING[line])
    return islice(loader, SAMPLING_STEPS)


# --- augmentation ---------------------------------------------------------------------------------


def lake_with_few_labels(
    db: mldb.MLDatabase, name: str, count: int, seed: int
) -> tuple[mldb.Lake, Rows]:
    """Store *count* labelled rows and all rows for which no label is known; return the test too."""
    images = digits(np.random.default_rng(1000 + seed))
    known, pool = slice(500, 500 + count), slice(700, None)
    x = np.concatenate([images.x[known], images.x[pool]])
    y = np.concatenate([images.y[known], np.full(len(x) - count, -1)])  # below 0: no label
    lake = db.lake(name, dim=x.shape[1])
    lake.add_splats(x, labels=y, columns={"labelled": (y >= 0).astype(np.float32)})
    return lake, images.take(slice(500))


def augmented(lake: mldb.Lake, line: str, seed: int, protocol: Protocol) -> Iterator[Any]:
    """Yield batches of labelled rows, one half of each being what they were made into."""
    in_loop = line == "0.01 randn"
    loader = lake.export_to_dataloader(
        BATCH // 2 if in_loop else BATCH,
        fields=FIELDS,
        importance_sampling=Importance(gamma=1, floor=0),  # labelled rows and no others
        salience="labelled",
        draws=protocol.steps * BATCH,
        generate_samples=AUGMENTATIONS[line] or False,
        device=protocol.device,
        seed=seed,
    )
    batches = islice(loader, protocol.steps)
    return with_noise(batches, seed) if in_loop else batches


def with_noise(batches: Iterable[Any], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Add to every batch a copy of it with 0.01 randn added to every coordinate."""
    generator = torch.Generator().manual_seed(seed)
    for x, y, weight in batches:
        noisy = x + 0.01 * torch.randn(x.shape, generator=generator)
        both = torch.cat([x, nn.functional.normalize(noisy)])
        yield both, y.repeat(2), weight.repeat(2)


class Network(nn.Module):
    """64 hidden units, on features centred and scaled: all by one number, or each by its own."""

    def __init__(self, rows: Array, scale_each: bool) -> None:
        super().__init__()
        centred = rows - rows.mean(axis=0)
        scale = centred.std(axis=0) if scale_each else np.full(rows.shape[1], centred.std())
        scale[scale == 0] = 1
        self.centre, self.scale = map(torch.from_numpy, (rows.mean(axis=0), scale))
        self.layers = nn.Sequential(nn.Linear(rows.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, 10]."""
        logits: Tensor = self.layers((x - self.centre) / self.scale)
        return logits


def train(batches: Iterable[Any], lake: mldb.Lake, seed: int, scale_each: bool) -> nn.Module:
    """Take one step of Adam for every batch of (x, y, weight); the scale is of labelled rows."""
    rows = lake.get(fields=("mu", "label"))
    torch.manual_seed(seed)
    model = Network(rows["mu"][rows["label"] >= 0], scale_each)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for x, y, weight in batches:
        loss = (weight * nn.functional.cross_entropy(model(x), y, reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, test: Rows) -> float:
    """Return the share of *test* that is classified right, in percent."""
    hits = model(torch.from_numpy(test.x)).argmax(1).numpy() == test.y
    return 100 * float(hits.mean())


def unit(rows: Array) -> Array:
    """Divide every row by its length."""
    lengths: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / lengths).astype(np.float32)


def mean_and_error(values: Any) -> tuple[float, float]:
    """Return the mean of *values* and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def print_table(name: str, scores: Scores) -> None:
    """Print one line for every strategy."""
    base = np.array(next(iter(scores.values())))
    print(f"\n{name}, {len(base)} seeds: accuracy in %")
    for line, values in scores.items():
        mean, error = mean_and_error(values)
        gain, gain_error = mean_and_error(np.array(values) - base)
        print(f"  {line:28} {mean:5.1f} ± {error:3.1f}    {gain:+5.1f} ± {gain_error:3.1f}")


READING = """
Sampling: a salience that falls with redundancy helps, p ~ 1/duplicates most; its square root is the
safe choice when the test is as redundant as the rows. Preferring dense places (highest kappa first,
p ~ kappa) hurts. Weights give the gain back: they are for unbiased estimates, not for speed.
Augmentation: at few labels gated walks to real rows without a label help, and so do gated chains
among them. Noise that knows of no other row, 0.01 randn or isotropic, hardly does, unless the
features are scaled badly (--scale-each).
"""


def parsed() -> Protocol:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="What sampling and augmentation are worth.")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale-each", action="store_true")
    given = parser.parse_args()
    chosen = QUICK if given.quick else FULL._replace(seeds=given.seeds)
    return chosen._replace(scale_each=given.scale_each)


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small lose by more
    main(parsed())
