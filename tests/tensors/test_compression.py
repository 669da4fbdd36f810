"""compression="zstd": what is stored smaller comes back the same, through every door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.tensors.encoding import decode_bytes, encode_bytes
from mldb.write.packs import PACK_BELOW
from tests.support.parts import examples


@given(data=st.binary(max_size=5000), itemsize=st.integers(1, 16), repeats=st.integers(1, 50))
@examples(200)
def test_encoded_bytes_come_back(data: bytes, itemsize: int, repeats: int) -> None:
    plain = data * repeats
    packed = encode_bytes([memoryview(data)] * repeats, itemsize)
    if packed is None:
        return
    assert len(packed) <= 0.95 * len(plain)
    assert decode_bytes(memoryview(packed), 1, len(plain), "f", 0, "k") == plain
    with pytest.raises(mldb.CorruptError):
        decode_bytes(memoryview(packed), 1, len(plain) + 1, "f", 0, "k")


def test_large_compressible_tensors_are_stored_smaller(
    store_path: Path, rng: np.random.Generator
) -> None:
    smooth = np.linspace(0, 1, PACK_BELOW).reshape(256, -1)
    noise = rng.integers(0, 256, PACK_BELOW, np.uint8)
    with mldb.open(store_path, compression="zstd") as db:
        db["smooth"], db["noise"], db["small"] = smooth, noise, np.zeros(10)
        sizes = {name: db.history(name)[0] for name in db}
        assert sizes["smooth"].stored_bytes < 0.95 * sizes["smooth"].nbytes
        assert sizes["noise"].stored_bytes == noise.nbytes
        assert sizes["small"].stored_bytes == 80
    with mldb.open(store_path, deduplicate=False) as db:
        np.testing.assert_array_equal(db["smooth"], smooth)
        np.testing.assert_array_equal(db.tensor("smooth")[3:7, 5], smooth[3:7, 5])
        db["smooth"] = smooth
        raw, packed = db.history("smooth")[1], db.history("smooth")[0]
        assert (raw.digest, raw.stored_bytes) == (packed.digest, smooth.nbytes)
        assert db.verify().ok


@pytest.mark.parametrize("spill_bytes", [1, 1 << 30])
def test_a_transaction_reads_back_what_it_compressed(store_path: Path, spill_bytes: int) -> None:
    values = np.arange(PACK_BELOW, dtype=np.int32)
    with mldb.open(store_path, compression="zstd", spill_bytes=spill_bytes) as db:
        with db.transaction() as txn:
            txn.store_tensor("x", values)
            np.testing.assert_array_equal(txn.query_tensor("x"), np.arange(PACK_BELOW))
            values[:] = 0
            np.testing.assert_array_equal(txn.query_tensor("x"), np.arange(PACK_BELOW))
        np.testing.assert_array_equal(db["x"], np.arange(PACK_BELOW))
        assert db.history("x")[0].stored_bytes < values.nbytes // 2


def test_a_compressed_checkpoint_comes_back(store_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(300, 200)
    torch.nn.init.constant_(layer.weight, 0.5)
    with mldb.open(store_path, compression="zstd") as db:
        db.checkpoint({"model": layer, "tied": layer.weight}, epoch=1)
        db.checkpoint({"model": layer, "tied": layer.weight}, epoch=2, wait=False)
    with mldb.open(store_path) as db:
        tree = db.load(None)
        assert torch.equal(tree["model"]["weight"], layer.weight)
        assert tree["tied"] is tree["model"]["weight"]
        assert db.history("model/weight")[0].stored_bytes < 1000
