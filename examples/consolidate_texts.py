"""What consolidation is worth on embeddings of your own: accuracy, against dropping and drawing.

python examples/consolidate_texts.py embeddings.npz [--seeds 5] [--quick]

The file has ``X``, float [N, d], one embedding a row, and ``y`` [N], what a small network is to
tell apart: numbers or names. Any encoder of texts makes such a file; 5,000 rows and more say
something.

"natural" trains on the rows as they are, "injected" on near-copies of 2,000 of them, Zipf(2.1) many
of each, as a crawl would have: about 30 % of its rows are distinct. What is lost below the number
of distinct rows depends on that draw, so it is printed. A sixth of the rows is held back for the
test. Figures are points of accuracy less those of the full stream, means over seeds ± standard
errors, after 2,000 and after 32,000 rows seen. At the end stands what must hold of what is claimed:
on redundant rows consolidation reaches the accuracy of the full stream with several times fewer
samples, as dropping duplicates does; without redundancy it changes nothing; and below the number of
distinct rows every form of compression costs accuracy, merging least.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

import mldb
from mldb import Augmentation, Importance
from mldb.sphere.graph import build_graph, knn_kappa

BATCH = 32
SEEN = (2_000, 32_000)
COPY_NOISE = 0.1  # a copy has cosine .995 to its text
ZIPF, MOST_COPIES = 2.1, 200
DISTINCT = 2_000  # rows that are copied, but at most three of ten
LABELLED = (50, 100, 200)
POOL = 1_500

Array = np.ndarray[Any, Any]


class Rows(NamedTuple):
    """Unit rows float32 [n, d] and their labels int64 [n]."""

    x: Array
    y: Array

    def take(self, picked: Any) -> Rows:
        """Return some of the rows."""
        return Rows(self.x[picked], self.y[picked])


class Protocol(NamedTuple):
    """How much is run."""

    seeds: int = 5
    seen: tuple[int, int] = SEEN
    steps: int = 500  # of a training with augmentation
    labelled: tuple[int, ...] = LABELLED
    most_rows: int | None = None


QUICK = Protocol(2, (320, 640), 20, (50,), 1_200)

Score = tuple[float, float]
Table = dict[str, list[Score]]


def main(path: str, protocol: Protocol = Protocol()) -> list[tuple[str, bool]]:  # noqa: B008
    """Run everything, print the tables, return what must hold and whether it does."""
    data = read(path)
    if protocol.most_rows is not None:
        data = data.take(np.random.default_rng(0).permutation(len(data.y))[: protocol.most_rows])
    print(f"{len(data.y):,} rows of {data.x.shape[1]} dimensions, {len(np.unique(data.y))} classes")
    tables: dict[str, Table] = {"natural": {}, "injected": {}, "augmentation": {}, "rows": {}}
    with tempfile.TemporaryDirectory() as folder, mldb.open(folder, durability="os") as db:
        kept = kept_shares(db, data)
        for seed in range(protocol.seeds):
            for table, line, score in run_seed(db, data, seed, protocol):
                tables[table].setdefault(line, []).append(score)
    print_shares(kept)
    for name in ("natural", "injected"):
        print_table(name, tables[name], protocol.seen)
        print_rows(name, tables["rows"][name])
    print_augmentation(tables["augmentation"])
    return print_claims(tables, protocol)


def read(path: str) -> Rows:
    """Read the file; rows are divided by their lengths."""
    with np.load(path) as file:
        x = np.asarray(file["X"], np.float32)
        labels = np.unique(file["y"], return_inverse=True)[1].astype(np.int64)
    return Rows(unit(x), labels)


def kept_shares(db: mldb.MLDatabase, data: Rows) -> dict[float, mldb.ConsolidationReport]:
    """What caps keep of the rows as they are. Nothing is stored of it: these are plans."""
    lake = filled(db, "all", data)
    return {cap: lake.consolidate(min_cos=cap, plan_only=True) for cap in (0.99, 0.97, 0.95, 0.9)}


def run_seed(
    db: mldb.MLDatabase, data: Rows, seed: int, protocol: Protocol
) -> Iterator[tuple[str, str, Score]]:
    """Yield (table, line, accuracies) of everything for one seed; "rows": distinct ones and all."""
    rng = np.random.default_rng(seed)
    data = data.take(rng.permutation(len(data.y)))
    test, rest = data.take(slice(len(data.y) // 6)), data.take(slice(len(data.y) // 6, None))
    distinct = rest.take(slice(min(len(rest.y) * 3 // 10, DISTINCT)))
    copies = np.minimum(rng.zipf(ZIPF, len(distinct.y)), MOST_COPIES)
    corpora = {"natural": (rest, rest), "injected": (distinct, noisy_copies(distinct, copies, rng))}
    for table, (originals, train) in corpora.items():
        yield "rows", table, (len(originals.y), len(train.y))
        lake = filled(db, f"{table}-{seed}", train)
        lines = lines_of(lake, train, seed, injected=table == "injected")
        for line, batches in lines:
            yield table, line, fit(batches, train, test, seed, protocol.seen)
    for count in protocol.labelled:
        for line, score in augmented(db, rest, test, count, seed, protocol.steps):
            yield "augmentation", line, (score, score)


# --- what is trained on ---------------------------------------------------------------------------

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Batches of (x, y) without an end; each call begins anew."""


def lines_of(
    lake: mldb.Lake, train: Rows, seed: int, *, injected: bool
) -> Iterator[tuple[str, Batches]]:
    """Yield what each line trains on. A consolidation is taken back before the next one."""
    yield "full, uniform", passes(train, seed)
    before = lake.get(fields=("id",))["id"]
    reports: dict[str, Rows] = {}
    settings: dict[str, dict[str, Any]] = {
        "SOC min_cos .97": {"min_cos": 0.97},
        "SOC min_cos .95": {"min_cos": 0.95},
        "SOC keep 50 %": {"target_keep": 0.5},
        "SOC keep 10 %": {"target_keep": 0.1},
    }
    for line, options in settings.items():
        reports[line] = consolidated(lake, seed, options)
        yield line, passes(reports[line], seed)
    assert np.array_equal(lake.get(fields=("id",))["id"], before)  # all was taken back
    rng = np.random.default_rng(seed)
    for line, like in (("95", "SOC min_cos .95"), ("10 %", "SOC keep 10 %")):
        count = len(reports[like].y)
        yield f"SemDeDup, as many as {line}", passes(train.take(sem_dedup(train, count)), seed)
        if line == "95":
            drawn = rng.choice(len(train.y), count, replace=False)
            yield f"random, as many as {line}", passes(train.take(drawn), seed)
        else:
            yield f"k-means, as many as {line}", passes(centroids(train, count, seed), seed)
    if injected:
        yield from sampled(lake, seed)


def filled(db: mldb.MLDatabase, name: str, rows: Rows) -> mldb.Lake:
    """Store rows with the two saliences as columns."""
    lake = db.lake(name, dim=rows.x.shape[1])
    kappa = knn_kappa(build_graph(rows.x, 10), rows.x.shape[1])
    near = [(block @ rows.x.T >= 0.97).sum(axis=1) for block in np.array_split(rows.x, 16)]
    columns = {"rarity": 1 / np.concatenate(near), "knn_kappa": kappa}
    lake.add_splats(rows.x, labels=rows.y, columns=columns)
    return lake


def consolidated(lake: mldb.Lake, seed: int, options: dict[str, Any]) -> Rows:
    """Return the rows after a consolidation, and take it back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mldb.PastCapWarning)  # that it costs is what is shown
        report = lake.consolidate(seed=seed, **options)
    got = lake.get(fields=("mu", "label"))
    if report.lsn is not None:
        lake.undo(report)
    return Rows(got["mu"], got["label"])


def passes(rows: Rows, seed: int) -> Batches:
    """Every row once a pass, in an order of its own each time."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(seed)
        x, y = torch.from_numpy(rows.x), torch.from_numpy(rows.y)
        for _ in repeat(None):
            order = torch.from_numpy(rng.permutation(len(rows.y)))
            for part in order.split(BATCH):
                yield x[part], y[part]

    return batches


def sampled(lake: mldb.Lake, seed: int) -> Iterator[tuple[str, Batches]]:
    """Yield streams that draw by a salience, through the loader."""
    kinds: dict[str, dict[str, Any]] = {
        "p ~ 1/duplicates, systematic": {
            "importance_sampling": Importance(gamma=1, floor=0, replacement="systematic"),
            "salience": "rarity",
            "draws": len(lake) // 3,
        },
        "p ~ kappa": {
            "importance_sampling": Importance(gamma=1),
            "salience": "knn_kappa",
        },
    }
    for line, options in kinds.items():
        loader = lake.export_to_dataloader(
            BATCH, fields=("mu", "label"), seed=seed, device="numpy", **options
        )
        yield line, lambda loader=loader: chain.from_iterable(repeat(loader))  # type: ignore[misc]


def sem_dedup(rows: Rows, count: int) -> Array:
    """Return the *count* rows that SemDeDup keeps (Abbas et al. 2023).

    In lists around centroids the row furthest from its centroid stays; what is most like one that
    is further goes first.
    """
    lists = KMeans(int(len(rows.y) ** 0.5), n_init=1, max_iter=20, random_state=0).fit(rows.x)
    likeness = np.zeros(len(rows.y))
    for number in range(lists.n_clusters):
        members = np.flatnonzero(lists.labels_ == number)
        distance = np.linalg.norm(rows.x[members] - lists.cluster_centers_[number], axis=1)
        members = members[np.argsort(-distance)]
        cosines = np.tril(rows.x[members] @ rows.x[members].T, -1)
        likeness[members] = cosines.max(axis=1, initial=-1)
    return np.argsort(likeness, kind="stable")[:count]


def centroids(rows: Rows, count: int, seed: int) -> Rows:
    """Return the centroids of k-means, each with the label that most of its rows have."""
    found = KMeans(count, n_init=1, max_iter=20, random_state=seed).fit(rows.x)
    votes = np.zeros((count, rows.y.max() + 1), np.int64)
    np.add.at(votes, (found.labels_, rows.y), 1)
    return Rows(unit(found.cluster_centers_), votes.argmax(axis=1))


def noisy_copies(rows: Rows, copies: Array, rng: np.random.Generator) -> Rows:
    """Return every row as often as *copies* says, each with noise of its own."""
    many = rows.take(np.repeat(np.arange(len(rows.y)), copies))
    noise = rng.standard_normal(many.x.shape) * COPY_NOISE / np.sqrt(many.x.shape[1])
    return Rows(unit(many.x + noise), many.y)


# --- augmentation ---------------------------------------------------------------------------------


def augmented(
    db: mldb.MLDatabase, rest: Rows, test: Rows, count: int, seed: int, steps: int
) -> Iterator[tuple[str, float]]:
    """Yield accuracies with *count* labelled rows beside a pool of rows without a label."""
    known, pool = rest.take(slice(count)), rest.take(slice(count, count + POOL))
    x = np.concatenate([known.x, pool.x])
    y = np.concatenate([known.y, np.full(len(pool.y), -1)])  # below 0: no label
    lake = db.lake(f"few-{seed}-{count}", dim=x.shape[1])
    lake.add_splats(x, labels=y, columns={"labelled": (y >= 0).astype(np.float32)})
    kinds = {
        "none": None,
        "walk, gate": Augmentation(mode="walk", hops=2, keep=True),
        "walk, no gate": Augmentation(mode="walk", hops=2, keep=True, gate=False),
    }
    for line, kind in kinds.items():
        loader = lake.export_to_dataloader(
            BATCH,
            fields=("mu", "label"),
            importance_sampling=Importance(gamma=1, floor=0),  # labelled rows and no others
            salience="labelled",
            draws=steps * BATCH,
            generate_samples=kind or False,
            device="numpy",
            seed=seed,
        )
        model = Training(known, rest, seed).take(islice(loader, steps))
        yield f"{count} labels: {line}", accuracy(model, test)


# --- training -------------------------------------------------------------------------------------


class Network(nn.Module):
    """64 hidden units, on features centred and scaled by one number."""

    def __init__(self, rows: Rows, classes: int) -> None:
        super().__init__()
        self.centre = torch.from_numpy(rows.x.mean(axis=0))
        self.scale = float((rows.x - rows.x.mean(axis=0)).std())
        width = rows.x.shape[1]
        self.layers = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes]."""
        logits: Tensor = self.layers((x - self.centre) / self.scale)
        return logits


class Training:
    """A network and its Adam; *labelled* has all classes, *scaled_by* the scale of features."""

    def __init__(self, scaled_by: Rows, labelled: Rows, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Network(scaled_by, int(labelled.y.max()) + 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-3)

    def take(self, batches: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
        """Take one step for every batch."""
        for x, y in batches:
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self.model


def fit(batches: Batches, train: Rows, test: Rows, seed: int, seen: tuple[int, int]) -> Score:
    """Train on a stream; return the accuracies after so many rows seen."""
    training, stream = Training(train, train, seed), batches()
    early = accuracy(training.take(islice(stream, seen[0] // BATCH)), test)
    return early, accuracy(training.take(islice(stream, (seen[1] - seen[0]) // BATCH)), test)


@torch.no_grad()
def accuracy(model: nn.Module, test: Rows) -> float:
    """Return the share of *test* that is classified right, in percent."""
    hits = model(torch.from_numpy(test.x)).argmax(1).numpy() == test.y
    return 100 * float(hits.mean())


def unit(rows: Array) -> Array:
    """Divide every row by its length."""
    lengths: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / lengths).astype(np.float32)


# --- what is printed ------------------------------------------------------------------------------


def mean_and_error(values: Any) -> tuple[float, float]:
    """Return the mean of *values* and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def print_shares(kept: dict[float, mldb.ConsolidationReport]) -> None:
    """Print what each cap keeps, and what is certified of it."""
    print("\nkept of the rows as they are")
    for cap, report in kept.items():
        print(
            f"  min_cos {cap:4.2f}  kept {100 * report.kept:5.1f} %   least cosine, true "
            f"{report.min_cos_true:.4f}, certified {report.min_cos_certified:.4f}   energy moves "
            f"by at most {report.energy_bound():.3f} kappa, density by {report.density_bound:.3f}"
        )


def print_table(name: str, table: Table, seen: tuple[int, int]) -> None:
    """Print one line for every strategy: accuracy of the first, differences of the others."""
    base = np.array(table["full, uniform"])
    print(f"\n{name}, {len(base)} seeds: after {seen[0]:,} / {seen[1]:,} rows seen")
    for line, scores in table.items():
        values = np.array(scores)
        shown = values if line == "full, uniform" else values - base
        parts = [mean_and_error(shown[:, column]) for column in (0, 1)]
        sign = "" if line == "full, uniform" else "+"
        print(f"  {line:30}", " / ".join(f"{m:{sign}6.1f} ± {e:3.1f}" for m, e in parts))


def print_rows(name: str, sizes: list[Score]) -> None:
    """Print what the rows of a table are: how many, and how its copies were drawn."""
    distinct, rows = np.mean(sizes, axis=0)
    drawn = f"{rows:,.0f} rows a seed"
    if name == "injected":
        cosine = 1 / np.sqrt(1 + COPY_NOISE**2)
        drawn += (
            f": Zipf({ZIPF}) copies, at most {MOST_COPIES}, of {distinct:,.0f} rows, at cosine "
            f"{cosine:.3f} to them; {100 * distinct / rows:.0f} % distinct"
        )
    print(f"  ({drawn})")


def print_augmentation(table: Table) -> None:
    """Print the accuracy without augmentation, and what the walks gain."""
    print("\naugmentation: accuracy in %, and points gained")
    for line, scores in table.items():
        count, _, kind = line.partition(": ")
        values = np.array(scores)[:, 0]
        if kind != "none":
            values = values - np.array(table[f"{count}: none"])[:, 0]
        mean, error = mean_and_error(values)
        print(f"  {line:30} {mean:{'' if kind == 'none' else '+'}6.1f} ± {error:3.1f}")


def print_claims(tables: dict[str, Table], protocol: Protocol) -> list[tuple[str, bool]]:
    """Print what must hold, about three standard errors off what was measured, and if it does."""
    most = max(protocol.labelled)
    claims: list[tuple[str, str, int, str, str, float]] = [
        ("injected", "SOC min_cos .95", 0, "full, uniform", ">=", 2.0),
        ("injected", "SOC min_cos .95", 1, "full, uniform", ">=", -0.5),
        ("injected", "SOC min_cos .95", 0, "random, as many as 95", ">=", 2.0),
        ("injected", "SOC min_cos .95", 1, "random, as many as 95", ">=", 2.0),
        ("injected", "SOC min_cos .95", 0, "SemDeDup, as many as 95", ">=", -1.3),
        ("injected", "SOC min_cos .95", 1, "SemDeDup, as many as 95", ">=", -1.3),
        ("natural", "SOC min_cos .97", 1, "full, uniform", ">=", -1.5),
        ("natural", "SOC keep 50 %", 1, "full, uniform", "<=", -1.0),
        ("injected", "SOC keep 10 %", 1, "SemDeDup, as many as 10 %", ">=", 2.3),
        ("injected", "SOC keep 10 %", 1, "k-means, as many as 10 %", ">=", 0.0),
        ("injected", "p ~ 1/duplicates, systematic", 0, "full, uniform", ">=", 2.5),
        ("injected", "p ~ kappa", 0, "full, uniform", "<=", -5.0),
        *(
            ("augmentation", f"{count} labels: walk, gate", 0, f"{count} labels: none", ">=", -1.5)
            for count in protocol.labelled
        ),
        ("augmentation", f"{most} labels: walk, no gate", 0, f"{most} labels: none", "<=", -1.5),
    ]  # fmt: skip
    print("\nwhat must hold")
    found = []
    for table, line, at, other, sign, bound in claims:
        one, two = (np.array(tables[table][name])[:, at] for name in (line, other))
        mean, error = mean_and_error(one - two)
        holds = mean >= bound if sign == ">=" else mean <= bound
        when = "" if table == "augmentation" else f", {protocol.seen[at]:,} seen"
        text = f"{table}{when}: {line} less {other}"
        shown = f"{mean:+6.1f} ± {error:3.1f} {sign} {bound:g}"
        print(f"  {'yes' if holds else 'NO ':3} {text:86} {shown}")
        found.append((text, holds))
    return found


def parsed() -> tuple[str, Protocol]:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="What consolidation is worth on embeddings.")
    parser.add_argument("path", type=Path, help="an .npz with X [N, d] and y [N]")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    given = parser.parse_args()
    protocol = QUICK if given.quick else Protocol(seeds=given.seeds)
    return str(given.path), protocol


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small lose by more
    main(*parsed())
