"""Every setting does something, or is refused by name: none is passed over in silence.

For each setting and each mode: another value changes what a stream hands out, or raises an error
that names the setting. The tables hold every field, so that a new one must take its place here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, TypeAlias

import numpy as np
import pytest

import mldb
from mldb.lake.stream.settings import StreamOptions, make_options

torch = pytest.importorskip("torch")

DIM, ROWS, BATCH = 40, 2400, 24

Settings: TypeAlias = dict[str, Any]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Clusters that a gate tells apart, heavy rows, and a column to prefer rows by."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((8, DIM))
    group = rng.integers(0, 8, ROWS)
    with mldb.open(tmp_path_factory.mktemp("settings"), durability="os") as db:
        made = db.lake(dim=DIM)
        made.add_splats(
            centres[group] + 3.0 * rng.standard_normal((ROWS, DIM)),
            alpha=rng.integers(1, 9, ROWS),
            labels=group % 3,
            columns={"loss": rng.pareto(1.5, ROWS) + 0.1},
        )
        yield made


def outcome(lake: Any, options: Mapping[str, Any]) -> str | tuple[Any, ...]:
    """The words of a refusal, or what three batches hold and what the stream tells of itself."""
    try:
        chosen: Settings = {"device": "numpy", "batch_size": BATCH, **options}
        loader = lake.export_to_dataloader(**chosen)
        batches: list[Any] = []
        for number, batch in enumerate(loader):
            parts = batch if isinstance(batch, tuple) else (batch,)
            batches.append([part.numpy().tobytes() for part in parts])
            if number == 2:
                break
        stats = loader.stats()
        tiers = [stats[tier] is None for tier in ("warm", "hot")]
        return (len(loader), batches, tiers, stats["importance"])
    except mldb.MldbError as error:
        return str(error)


def check_heard(lake: Any, base: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Refuse a setting that changes nothing and is not refused by its name."""
    before, after = outcome(lake, base), outcome(lake, other)
    assert not isinstance(before, str), before  # the base is a stream
    if isinstance(after, str):
        assert name in after
    else:
        assert after != before


# --- augmentation ---------------------------------------------------------------------------------

MODES: Final = ("isotropic", "walk", "langevin")

OF_AUGMENTATION: Final[Settings] = {
    "strength": 0.5,
    "copies": 2,
    "keep": True,
    "gate": False,
    "hops": 3,
    "k": 4,
    "steps": 7,
    "h": 0.1,
    "method": "mala",
    "form": "subspace",
}

HEARD: Final[Mapping[str, set[str]]] = {
    "isotropic": {"strength", "copies", "keep"},
    "walk": {"copies", "keep", "gate", "hops", "k"},
    "langevin": set(OF_AUGMENTATION) - {"hops"},
}


def test_the_table_of_augmentation_is_whole() -> None:
    assert {field.name for field in fields(mldb.Augmentation)} == {*OF_AUGMENTATION, "mode"}


@pytest.mark.parametrize("name", OF_AUGMENTATION)
@pytest.mark.parametrize("mode", MODES)
def test_a_setting_of_augmentation_is_heard_or_refused(lake: Any, mode: Any, name: str) -> None:
    """The strength of walks, steps and method of isotropic noise, k above 30: all did nothing."""
    far: Settings = (
        {"strength": 0.3} if (mode, name) == ("langevin", "gate") else {}
    )  # where it takes back
    base = {"generate_samples": mldb.Augmentation(mode=mode, **far)}
    value = OF_AUGMENTATION[name]
    if name not in HEARD[mode]:
        with pytest.raises(mldb.InvalidValueError, match=f"^{name}=.* does nothing for mode="):
            mldb.Augmentation(mode=mode, **{name: value})
        with pytest.raises(mldb.InvalidValueError, match=f"^{name}="):
            lake.augment(np.ones((1, DIM)), mode=mode, **{name: value})
        return
    chosen = mldb.Augmentation(mode=mode, **{name: value}, **far)
    check_heard(lake, base, {"generate_samples": chosen}, name)
    assert not isinstance(outcome(lake, {"generate_samples": chosen}), str)


def test_the_modes_differ(lake: Any) -> None:
    seen = [outcome(lake, {"generate_samples": mldb.Augmentation(mode=m)}) for m in MODES]
    assert seen[0] != seen[1] != seen[2] != seen[0]


@pytest.mark.parametrize("mode", ["walk", "langevin"])
def test_every_k_that_is_taken_has_an_effect(lake: Any, mode: Any) -> None:
    """The graph has 30 neighbours a row; a k above that was cut down to them in silence."""
    most, fewer = (
        outcome(lake, {"generate_samples": mldb.Augmentation(mode=mode, k=k, gate=False)})
        for k in (30, 29)
    )
    assert most != fewer
    with pytest.raises(mldb.InvalidValueError, match=r"k=31 is outside 1 \.\. 30"):
        mldb.Augmentation(mode=mode, k=31)


def test_copies_have_numbers_of_their_own() -> None:
    """65,536 copies had the number 0 among them, which is the row itself."""
    assert mldb.Augmentation(copies=65_535).group == 65_535
    with pytest.raises(mldb.InvalidValueError, match="copies=65536"):
        mldb.Augmentation(copies=65_536)


# --- importance -----------------------------------------------------------------------------------

REPLACEMENTS: Final = ("with", "systematic", "bottom_k")

OF_IMPORTANCE: Final[Settings] = {
    "beta": 0.25,
    "gamma": 1.0,
    "floor": 0.3,
    "target": "rows",
    "anneal": 0.5,
    "replacement": "?",  # another one than that of the base
    "least_ess": 0.9999,
    "low_ess": "raise_floor",
}

BASES: Final[Mapping[str, Settings]] = {
    "plain": {},
    "preferring": {"beta": 1.0},
    "weighted": {"beta": 0.5, "target": "distinct"},
    "flat": {"target": "rows", "least_ess": 0.0},
}


def drawing(settings: Settings) -> Settings:
    names = ("mu", "id", "weight") if settings.get("target") else ("mu", "id")
    return {
        "importance_sampling": mldb.Importance(**settings),
        "draws": 300,
        "fields": names,
        "salience": "loss" if settings.get("gamma") else None,
    }


def test_the_table_of_importance_is_whole() -> None:
    assert {field.name for field in fields(mldb.Importance)} == set(OF_IMPORTANCE)


@pytest.mark.parametrize("name", OF_IMPORTANCE)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("of_base", BASES)
def test_a_setting_of_importance_is_heard_or_refused(
    lake: Any, of_base: str, replacement: str, name: str
) -> None:
    base = BASES[of_base] | {"replacement": replacement}
    value = OF_IMPORTANCE[name]
    if name == "replacement":
        value = REPLACEMENTS[REPLACEMENTS.index(replacement) - 1]
    if name == "target" and base.get(name) == value:
        value = "distinct"
    if name == "low_ess" and of_base == "weighted":  # heard where the size is below the least
        base |= {"least_ess": 0.98, "low_ess": "raise_floor"}
        raised = outcome(lake, drawing(base))
        assert not isinstance(raised, str)
        assert raised[-1]["floor"] > 0.1
        assert "low_ess='raise_floor'" in refusal(lake, base | {"low_ess": "refuse"})
        return
    try:
        other = drawing(base | {name: value})
    except mldb.InvalidValueError as error:
        assert name in str(error)
        return
    check_heard(lake, drawing(base), other, name if name != "least_ess" else "effective sample")


def refusal(lake: Any, settings: Settings) -> str:
    told = outcome(lake, drawing(settings))
    assert isinstance(told, str)
    return told


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"floor": 0.5}, "floor=0.5 does nothing with beta=0 and gamma=0"),
        ({"floor": 1.0, "beta": 1.0}, "with floor=1 .* beta does nothing"),
        ({"anneal": 0.5, "beta": 1.0}, "anneal are about weights, and target=None"),
        ({"least_ess": 0.5}, "least_ess are about weights"),
        ({"low_ess": "raise_floor", "least_ess": 0.5}, "least_ess and low_ess are about weights"),
        (
            {"low_ess": "raise_floor", "least_ess": 0.0, "target": "rows"},
            "low_ess='raise_floor' does nothing with least_ess=0",
        ),
    ],
)
def test_settings_of_importance_that_say_nothing(settings: Settings, named: str) -> None:
    with pytest.raises(mldb.InvalidValueError, match=named):
        mldb.Importance(**settings)


# --- streams --------------------------------------------------------------------------------------

KINDS: Final[Mapping[str, Settings]] = {
    "sequential": {"order": "sequential"},
    "permutation": {"order": "permutation"},
    "windowed": {"order": "windowed", "window_rows": 2048},
    "with": {"importance_sampling": mldb.Importance(beta=1.0), "draws": 310},
    "systematic": {
        "importance_sampling": mldb.Importance(beta=1.0, replacement="systematic"),
        "draws": 310,
    },
    "bottom_k": {
        "importance_sampling": mldb.Importance(beta=1.0, replacement="bottom_k"),
        "draws": 310,
    },
}

OF_STREAMS: Final[Settings] = {
    "batch_size": 48,
    "seed": 1,
    "order": "windowed",
    "drop_last": True,
    "even_ranks": True,
    "importance": mldb.Importance(beta=0.5),
    "draws": 200,
    "salience": "loss",
    "augmentation": mldb.Augmentation(strength=0.5),
    "fields": ("mu", "label"),
    "device": "numpy",
    "prefetch": 2,
    "warm_bytes": 1 << 20,
    "hot_bytes": 1 << 20,
    "window_rows": 1024,
}

NOT_IN_BATCHES: Final = {
    "device": "where work is done; results agree but for the last bits of floats",
    "prefetch": "how far ahead, not what",
    "seed": "of a stream in row order without augmentation nothing is random; scripts pass it",
}

ARGUMENTS: Final = {"importance": "importance_sampling", "augmentation": "generate_samples"}


def test_the_table_of_streams_is_whole() -> None:
    assert {field.name for field in fields(StreamOptions)} == set(OF_STREAMS)
    assert set(NOT_IN_BATCHES) < set(OF_STREAMS)


@pytest.mark.parametrize("name", [n for n in OF_STREAMS if n not in ("device", "prefetch")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_a_stream_is_heard_or_refused(lake: Any, kind: str, name: str) -> None:
    base = dict(KINDS[kind])
    value, argument = OF_STREAMS[name], ARGUMENTS.get(name, name)
    if name == "seed" and kind == "sequential":
        base["generate_samples"] = True
    if name == "order" and kind == "windowed":
        value = "permutation"
    if name == "drop_last":
        base["batch_size"] = 7 * BATCH  # which neither 2,400 nor 310 is a multiple of
    if name == "even_ranks":  # of one rank all are even
        base |= {"rank": 0, "world": 7}
    check_heard(lake, base, base | {argument: value}, name)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"importance_sampling": mldb.Importance(beta=1.0, replacement="systematic")},
            "replacement='systematic' takes a row once, so without draws",
        ),
        (
            {"importance_sampling": mldb.Importance(replacement="bottom_k")},
            "replacement='bottom_k' takes a row once, so without draws",
        ),
        (
            {
                "importance_sampling": mldb.Importance(beta=1.0, replacement="bottom_k"),
                "draws": ROWS,
            },
            "draws=2400 without replacement is every row",
        ),
        (
            {"importance_sampling": mldb.Importance(beta=1.0, target="rows")},
            "target='rows' makes weights and nobody gets them",
        ),
        (
            {
                "importance_sampling": mldb.Importance(beta=1.0, target="rows"),
                "fields": ("mu", "label"),
            },
            "target='rows' makes weights",
        ),
        ({"order": "windowed", "window_rows": 1023}, r"window_rows=1023 is outside 1024 \.\."),
        ({"order": "permutation", "window_rows": 4096}, "window_rows=4096 does nothing under ord"),
        ({"shuffle": False, "window_rows": 4096}, "window_rows=4096 does nothing under order="),
        (
            {"importance_sampling": True, "window_rows": 4096},
            "window_rows=4096 does nothing under importance_sampling",
        ),
        ({"device": "numpy", "hot_bytes": 1}, "hot_bytes=1 does nothing on device='numpy'"),
        ({"device": "vulkan", "hot_bytes": 1}, "hot_bytes=1 does nothing on device='vulkan'"),
        ({"device": "vulkan:any", "hot_bytes": 1}, "hot_bytes=1 does nothing on device='vulkan:"),
    ],
)
def test_options_of_a_stream_that_say_nothing(lake: Any, options: Settings, named: str) -> None:
    with pytest.raises(mldb.InvalidValueError, match=named):
        lake.export_to_dataloader(BATCH, **options)


def test_a_sample_of_every_row_without_preference_is_one(lake: Any) -> None:
    """Nothing in these settings is ignored: it is a shuffled pass with the weights of a target."""
    importance = mldb.Importance(replacement="systematic", target="rows", least_ess=0.0)
    loader = lake.export_to_dataloader(
        BATCH, importance_sampling=importance, draws=ROWS, fields=("id", "weight"), device="numpy"
    )
    ids = torch.cat([batch.id for batch in loader])
    assert sorted(ids.tolist()) == list(range(ROWS))


def test_a_window_may_be_named_where_the_order_is_left_open(lake: Any) -> None:
    """The machine decides, and what was decided is not refused for what it was decided from."""
    loader = lake.export_to_dataloader(BATCH, window_rows=2048, device="numpy")
    assert loader.dataset.options.order == "permutation"
    other = lake.export_to_dataloader(BATCH, window_rows=2048, device="numpy")
    other.load_state_dict(loader.state_dict())
    assert make_options(window_rows=2048).order == "auto"


def test_a_hot_tier_is_for_devices_that_have_one() -> None:
    for device in ("cuda", "torch", "cpu", "auto"):
        assert make_options(device=device, hot_bytes=5).hot_bytes == 5
