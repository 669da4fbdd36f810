"""What the golden store of version 1 holds. Nothing writes it any more; it stays as it is.

It came from this history, over nine segments::

    first handle    epoch 0 "single"; epoch 1 PACKED and SPARSE, a layer, two relationships, a tag
                    and a pin; epoch 2 "single" again, metadata; epoch 3 a deletion, a checkpoint;
                    epoch 4 "large", in a segment of its own
    second handle   epoch 5 "smooth", compressed; tags moved and removed, a pin cleared
    third handle    rewind to epoch 2, "single" + 1, epoch 4 "spilled" and "beside"
                    then 44 torn bytes behind it
    fourth handle   repairs, and epoch 5 "after/tear"
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import ml_dtypes
import numpy as np
import scipy.sparse as sp

import mldb
from tests.golden.stores import same

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
OPTIONS: dict[str, Any] = {"segment_bytes": 12_000, "spill_bytes": 65_600}

# --- what was stored ------------------------------------------------------------------------------

ZONE = timezone(timedelta(hours=5, minutes=30))
PLAIN_METADATA = {
    "type": "weights",
    "position": 3,
    "scale": 0.5,
    "frozen": False,
    "note": None,
    "blob": b"\x00\xff",
    "axes": ["in", "out"],
    "nested": {"a": [1, {"b": "ü"}]},
    "made": datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=ZONE),
}
SINGLE = np.arange(3000, dtype="<f4").reshape(30, 100) / 4
LARGE = (np.arange(2000, dtype="<i8") * 7919) % 1009
SPILLED = np.arange(16_400, dtype="<u4")
SMOOTH = np.repeat(np.arange(40, dtype="<f4"), 500)
PACKED: dict[str, Any] = {
    "packed/big": np.array([[1, -2, 3], [300, -400, 32767]], dtype=">i2"),
    "packed/bf16": np.array([1.5, -2.0, float("inf"), 3.140625], dtype=ml_dtypes.bfloat16),
    "packed/fp8": np.array([0.5, 448.0, -1.0], dtype=ml_dtypes.float8_e4m3fn),
    "packed/bool": np.array([True, False, True]),
    "packed/complex": np.array([1 + 2j, -0.5j], dtype="<c16"),
    "packed/scalar": np.array(42, dtype="<u2"),
    "packed/empty": np.zeros((0, 7), dtype="<f8"),
    "packed/text": np.array(["abc", "ü"], dtype="<U3"),
    "packed/time": np.array(["2024-02-29T00:00"], dtype="<M8[s]"),
    "packed/nan": np.array([0x7FC00001, 0xFF800000], dtype="<u4").view("<f4"),
}
SPARSE = sp.csr_array(np.array([[0, 1.5, 0], [0, 0, -2.0], [4.0, 0, 0]]))
STATE = {
    "model": {
        "w": np.array([[1.0, 2.0], [3.0, 4.0]], dtype="<f4"),
        "b": np.array([0.5], dtype="<f8"),
    },
    "step": 1234,
    "big": 1 << 80,
    "rate": 0.001,
    "names": ["a", ("b", 2), None],
    "flags": {1: True, (2, "x"): b"raw"},
}

# --- what must come back --------------------------------------------------------------------------

LSNS = {
    "early": 13,
    "pinned": 15,
    "checkpoint": 28,
    "large": 30,
    "smooth": 32,
    "spilled": 55,
    "end": 1048633,
}
EVENTS = {
    "TensorStored": 24,
    "MetadataSet": 13,
    "TagSet": 5,
    "RelationshipCreated": 3,
    "PinSet": 2,
    "TensorDeleted": 1,
    "RelationshipDeleted": 1,
    "CheckpointTaken": 1,
    "TagDeleted": 1,
    "PinCleared": 1,
    "Rewound": 1,
}


def check_all(db: mldb.MLDatabase) -> None:
    """Everything below, and the checksums."""
    check_head(db)
    check_past(db)
    check_checkpoint(db)
    check_graph(db)
    check_events(db)
    assert db.verify().ok


def check_head(db: mldb.MLDatabase) -> None:
    """The state at the head: epoch 2 of the first lineage, and what came after the rewind."""
    expected = {
        "single": SINGLE + 1,
        "after/rewind": np.array([7, 8, 9], dtype="<i4"),
        "after/tear": np.array([-1], dtype="|i1"),
        "spilled": SPILLED,
        "beside": np.array([1.0]),
        "layer1_weights": np.eye(3, dtype="<f4"),
        "layer1_biases": np.zeros(3, dtype="<f4"),
        "sparse": SPARSE,
        **PACKED,
    }
    assert set(db) == set(expected)
    for name, array in expected.items():
        same(db[name], array)
    assert (db.epoch, db.lsn, len(db)) == (5, LSNS["end"], len(expected))
    assert db.metadata("single") == {"type": "weights", "position": 4}
    assert db.metadata("layer1_biases") == {"type": "biases", "layer": "layer1", "position": 0}
    assert db.checkpoints() == []


def check_past(db: mldb.MLDatabase) -> None:
    """Every epoch of the lineage, and commits that the rewind left behind."""
    same(db.query_tensor("single", as_of=0), SINGLE[:10])
    assert db.metadata("single", as_of=0) == PLAIN_METADATA
    made = db.metadata("single", as_of=0)["made"]
    assert made.utcoffset() == timedelta(hours=5, minutes=30)
    same(db.query_tensor("single", as_of=1), SINGLE[:10])
    assert "spilled" not in db.at(3)
    same(db.query_tensor("spilled", as_of=4), SPILLED)
    abandoned = mldb.Lsn(LSNS["checkpoint"])
    assert "packed/bool" not in db.at(abandoned)
    same(db.query_tensor("large", as_of=mldb.Lsn(LSNS["large"])), LARGE)
    same(db.query_tensor("smooth", as_of=mldb.Lsn(LSNS["smooth"])), SMOOTH)
    same(db.query_tensor("single", as_of="late"), SINGLE)
    assert [version.epoch for version in db.history("single")] == [0, 2, 2]
    assert len(db.history("single", as_of="late")) == 2


def check_checkpoint(db: mldb.MLDatabase) -> None:
    """The one checkpoint, which the rewind left behind."""
    at = mldb.Lsn(LSNS["checkpoint"])
    (checkpoint,) = db.checkpoints(as_of=at)
    assert (checkpoint.name, checkpoint.epoch, checkpoint.step) == ("epoch-3-step-30", 3, 30)
    assert (checkpoint.metrics, checkpoint.tensors, checkpoint.nbytes) == ({"loss": 0.25}, 2, 24)
    state = db.load(None, as_of=at)
    for name in ("w", "b"):
        same(state["model"].pop(name), STATE["model"][name])  # type: ignore[index]
    assert state == {**STATE, "model": {}}
    same(db.query_tensor("model/w", as_of=at), STATE["model"]["w"])  # type: ignore[index]


def check_graph(db: mldb.MLDatabase) -> None:
    """Tags, pins and relationships."""
    assert db.tags() == {"early": LSNS["early"], "late": LSNS["smooth"], "moved": LSNS["large"]}
    assert db.pins() == [LSNS["pinned"]]
    edges = [(edge.source, edge.target, edge.kind, edge.metadata) for edge in db.relationships()]
    assert edges == [
        ("a name", "no tensor", "mentions", {}),
        ("layer1", "layer2", "feeds", {"weight": 2}),
        ("layer1_weights", "layer1_biases", "layer_params", {}),
    ]
    late = db.relationships(as_of="late")
    assert [edge.kind for edge in late] == ["feeds", "layer_params"]
    assert db.relationships(target="layer2")[0].source == "layer1"


def check_events(db: mldb.MLDatabase) -> None:
    """Every event in order."""
    found = list(db.events())
    assert Counter(type(event).__name__ for event in found) == EVENTS
    assert [event.lsn for event in found] == sorted(event.lsn for event in found)
    assert found[0].time == datetime.fromtimestamp(START // SECOND, UTC) + timedelta(seconds=2)
