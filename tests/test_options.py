"""Options: each is checked once, before anything is opened or made."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

import mldb
from mldb.log import format as fmt
from mldb.options import Options

SIZES = (
    *("segment_bytes", "segment_entries", "spill_bytes", "max_mapped", "pending_checkpoints"),
    "compaction_rate",
)
BYTES = ("map_bytes", "cache_bytes", "lake_cache_bytes", "compaction_gain_bytes")
SECONDS = ("lock_timeout", "exit_timeout")
WRONG: list[tuple[str, Any, type[mldb.MldbError]]] = [
    ("mode", "w", mldb.InvalidValueError),
    ("mode", None, mldb.InvalidValueError),
    ("durability", "sometimes", mldb.InvalidValueError),
    ("verify", True, mldb.InvalidValueError),
    ("compression", "gzip", mldb.InvalidValueError),
    *((name, 0, mldb.InvalidValueError) for name in SIZES),
    *((name, -1, mldb.InvalidValueError) for name in (*SIZES, *BYTES)),
    *((name, 1.5, mldb.InvalidTypeError) for name in (*SIZES, *BYTES)),
    *((name, True, mldb.InvalidTypeError) for name in (*SIZES, *BYTES)),
    *((name, "1", mldb.InvalidTypeError) for name in (*SIZES, *BYTES)),
    ("cache_bytes", None, mldb.InvalidTypeError),
    ("compaction_gain_bytes", None, mldb.InvalidTypeError),
    *(
        ("compaction_gain_share", value, mldb.InvalidValueError)
        for value in (-0.1, 1.1, float("nan"), float("inf"))
    ),
    *(("compaction_gain_share", value, mldb.InvalidTypeError) for value in (None, "0.3", True)),
    *(("background_compaction", value, mldb.InvalidValueError) for value in (None, "on", 2)),
    *(("compaction_drops", value, mldb.InvalidValueError) for value in (None, "auto", 2)),
    *(
        (name, value, mldb.InvalidValueError)
        for name in SECONDS
        for value in (-0.1, float("nan"), float("inf"), "1")
    ),
    ("lock_timeout", None, mldb.InvalidValueError),
    ("exit_timeout", -0.1, mldb.InvalidValueError),
    ("exit_timeout", float("nan"), mldb.InvalidValueError),
    ("exit_timeout", "1", mldb.InvalidValueError),
]


@pytest.mark.parametrize("name, value, kind", WRONG)
def test_a_value_that_cannot_be_meant_is_refused_before_anything_is_made(
    store_path: Path, name: str, value: Any, kind: type[mldb.MldbError]
) -> None:
    with pytest.raises(kind, match=name) as caught:
        mldb.open(store_path, **{name: value})
    assert isinstance(caught.value, ValueError | TypeError)
    assert not store_path.exists()
    with pytest.raises(kind, match=name):
        mldb.Options(**{name: value})


@pytest.mark.parametrize("name", [*SIZES, *BYTES, *SECONDS])
def test_the_least_value_is_taken(name: str) -> None:
    least = 1 if name in SIZES else 0
    options: dict[str, Any] = {name: least}
    assert getattr(mldb.Options(**options), name) == least


def test_an_unknown_option_names_where_the_known_ones_are(store_path: Path) -> None:
    with pytest.raises(mldb.InvalidTypeError, match=r"'cache'.*mldb\.Options"):
        mldb.open(store_path, cache=5)
    assert not store_path.exists()


def test_the_defaults_are_those_of_open(store_path: Path) -> None:
    with mldb.open(store_path) as db:
        assert db.options == mldb.Options()
        assert (db.options.mode, db.options.durability) == ("rw", "commit")
        assert (db.options.lock_timeout, db.options.exit_timeout) == (30, None)


def test_options_are_plain_frozen_values() -> None:
    options = mldb.Options(mode="r", cache_bytes=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.mode = "rw"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(options)) == options  # noqa: S301
    assert dataclasses.replace(options, cache_bytes=6) != options
    with pytest.raises(mldb.InvalidValueError):
        dataclasses.replace(options, cache_bytes=-6)


def test_the_sizes_of_a_segment_are_those_that_the_format_tells_of() -> None:
    """FORMAT.md lists them as defaults; they stand in two places, of which one was changed."""
    assert Options().segment_entries == fmt.SEGMENT_ENTRIES
    assert Options().segment_bytes == fmt.SEGMENT_BYTES
