"""db.ops against NumPy: any shape and type, budgets below the operands, one commit, bounded memory.

A budget of 64 KiB holds blocks of about 50 x 50 float64, so shapes up to 150 are cut along every
axis. What is compared is exact for integers and bool, and within the error of one summation order
for floats.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import mldb
from mldb.tensors.blocked import blocking
from mldb.write.ops import MEMORY_BYTES_MIN
from tests.support.parts import examples

TINY = MEMORY_BYTES_MIN
TYPES = ["?", "i1", "u1", "<i4", ">i4", "i8", "u8", "f2", "<f4", ">f4", "f8", "c8", "c16"]

# Lengths around the sides of a block, and the ones that break loops.
axes = st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 150))


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mldb.MLDatabase]:
    with mldb.open(tmp_path_factory.mktemp("ops") / "store", durability="os") as opened:
        yield opened


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Numbers of *dtype* that use its range (integers wrap) or lie around one (floats)."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.02
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        native = dtype.newbyteorder("=")
        return rng.integers(info.min, info.max, shape, native, endpoint=True).astype(dtype)
    values = rng.standard_normal(shape)
    if dtype.kind == "c":
        return (values + 1j * rng.standard_normal(shape)).astype(dtype)
    return values.astype(dtype)


def expect_product(
    actual: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]
) -> None:
    """Compare with numpy.matmul; floats within what summing in another order can change."""
    with np.errstate(over="ignore"):
        wanted = np.asarray(np.matmul(a, b))
    assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
    if wanted.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, wanted)
        return
    wide = np.result_type(wanted.dtype, np.float64)
    sizes = np.matmul(np.abs(a).astype(np.float64), np.abs(b).astype(np.float64))
    work = np.float32 if wanted.dtype == np.float16 else wanted.dtype
    bound = sizes * a.shape[-1] * np.finfo(work).eps + np.abs(wanted) * np.finfo(wanted.dtype).eps
    error = np.abs(actual.astype(wide) - np.matmul(a.astype(wide), b.astype(wide)))
    assert np.all(error <= bound + 1e-30)


@given(m=axes, k=axes, n=axes, types=st.tuples(*[st.sampled_from(TYPES)] * 2), seed=st.integers(0))
@examples(60)
def test_matrices_are_multiplied_as_numpy_does(
    db: mldb.MLDatabase, m: int, k: int, n: int, types: tuple[str, str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = numbers(rng, (m, k), types[0]), numbers(rng, (k, n), types[1])
    db["a"], db["b"] = a, b
    expect_product(db.ops.matrix_multiply("a", "b", memory_bytes=TINY), a, b)


@given(k=axes, n=axes, dtype=st.sampled_from(TYPES), left=st.booleans(), stored=st.booleans())
@examples(40)
def test_vectors_lose_their_axis(
    db: mldb.MLDatabase, k: int, n: int, dtype: str, left: bool, stored: bool
) -> None:
    rng = np.random.default_rng(k * 1000 + n)
    vector, matrix = numbers(rng, (k,), dtype), numbers(rng, (k, n) if left else (n, k), dtype)
    db["v"], db["m"] = vector, matrix
    names = ("v", "m") if left else ("m", "v")
    factors = (vector, matrix) if left else (matrix, vector)
    result = db.ops.matrix_multiply(*names, out="r" if stored else None, memory_bytes=TINY)
    expect_product(result.numpy() if isinstance(result, mldb.TensorHandle) else result, *factors)


@given(m=axes, k=axes, n=axes, dtype=st.sampled_from(["?", "i2", "f2", "f4", "f8"]))
@examples(40)
def test_a_stored_result_is_the_returned_one(
    db: mldb.MLDatabase, m: int, k: int, n: int, dtype: str
) -> None:
    rng = np.random.default_rng([m, k, n])
    db["a"], db["b"] = numbers(rng, (m, k), dtype), numbers(rng, (k, n), dtype)
    returned = db.ops.matrix_multiply("a", "b", memory_bytes=TINY)
    handle = db.ops.matrix_multiply("a", "b", out="c", memory_bytes=TINY)
    np.testing.assert_array_equal(db["c"], returned)
    assert (handle.lsn, handle.name, handle.dtype) == (db.lsn, "c", returned.dtype)


@given(
    m=st.integers(1, 10**7),
    k=st.integers(1, 10**7),
    n=st.integers(1, 10**7),
    elements=st.integers(4, 10**9),
)
@examples(500)
def test_blocks_fit_the_budget_and_use_it(m: int, k: int, n: int, elements: int) -> None:
    rows, columns, depth = blocking(m, k, n, elements)
    held = 2 * rows * columns + depth * (rows + columns)
    assert 1 <= rows <= m
    assert 1 <= columns <= n
    assert 1 <= depth <= k
    assert held <= elements
    # Unless everything fits, at least a third of the budget is in use.
    assert (rows, columns, depth) == (m, n, k) or 3 * held >= elements or elements < 100


@pytest.mark.parametrize(
    "shape", [(1, 900, 300), (300, 900, 1), (700, 3, 700), (2, 40_000, 2), (1, 5, 30_000)]
)
def test_long_shapes(
    db: mldb.MLDatabase, rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    a, b = numbers(rng, (m, k), "f8"), numbers(rng, (k, n), "f8")
    db["a"], db["b"] = a, b
    expect_product(db.ops.matrix_multiply("a", "b", memory_bytes=TINY), a, b)
    handle = db.ops.matrix_multiply("a", "b", out="c", memory_bytes=TINY)
    expect_product(handle.numpy(), a, b)


def test_a_budget_below_every_operand_changes_nothing(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    """Small integers in float64 are exact in any order, so blocks must give the very same bytes."""
    a = rng.integers(-50, 50, (400, 500)).astype(np.float64)
    b = rng.integers(-50, 50, (500, 300)).astype(np.float64)
    db["a"], db["b"] = a, b
    for budget in (TINY, 200_000, 1_000_000):
        assert budget < min(a.nbytes, b.nbytes)
        result = db.ops.matrix_multiply("a", "b", memory_bytes=budget)
        assert result.tobytes() == (a @ b).tobytes()


@pytest.mark.parametrize("code", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_narrow_floats_count_as_float32(
    db: mldb.MLDatabase, rng: np.random.Generator, code: str
) -> None:
    a = rng.standard_normal((90, 110)).astype(getattr(ml_dtypes, code))
    b = rng.standard_normal((110, 70)).astype(getattr(ml_dtypes, code))
    db["a"], db["b"] = a, b
    result = db.ops.matrix_multiply("a", "b", memory_bytes=TINY)
    expect_product(result, a.astype(np.float32), b.astype(np.float32))


def test_bfloat16_is_summed_in_float32_and_rounded_once(
    db: mldb.MLDatabase, rng: np.random.Generator
) -> None:
    a = rng.integers(-8, 8, (80, 300)).astype(ml_dtypes.bfloat16)
    b = rng.integers(-8, 8, (300, 90)).astype(ml_dtypes.bfloat16)
    db["a"], db["b"] = a, b
    exact = a.astype(np.float32) @ b.astype(np.float32)
    for result in (
        db.ops.matrix_multiply("a", "b", memory_bytes=TINY),
        db.ops.matrix_multiply("a", "b", out="c", memory_bytes=TINY).numpy(),
    ):
        assert result.dtype == ml_dtypes.bfloat16
        assert result.tobytes() == exact.astype(ml_dtypes.bfloat16).tobytes()
    db["f"] = exact.T.copy()
    assert db.ops.matrix_multiply("a", "b").dtype == ml_dtypes.bfloat16
    assert db.ops.matrix_multiply("f", "a").dtype == np.float32


def test_operands_are_read_at_one_commit(db: mldb.MLDatabase) -> None:
    old, new = np.full((3, 3), 2.0), np.full((3, 3), 5.0)
    with db.transaction() as txn:
        txn.store_tensor("x", old)
        txn.store_tensor("y", old)
    assert txn.lsn is not None
    db.tag("before", txn.lsn)
    db["x"], db["y"] = new, new
    np.testing.assert_array_equal(db.ops.matrix_multiply("x", "y", as_of="before"), old @ old)
    # The result may take the name of an operand: what is read stays what it was.
    handle = db.ops.matrix_multiply("x", "y", out="x")
    np.testing.assert_array_equal(handle.numpy(), new @ new)
    np.testing.assert_array_equal(db.tensor("x", as_of="before").numpy(), old)


def test_compressed_operands(tmp_path: Path, rng: np.random.Generator) -> None:
    a = rng.integers(0, 3, (200, 200)).astype(np.float64)
    with mldb.open(tmp_path / "packed", compression="zstd", durability="os") as packed:
        packed["a"] = a
        np.testing.assert_array_equal(
            packed.ops.matrix_multiply("a", "a", memory_bytes=4 * a.nbytes), a @ a
        )
        with pytest.raises(mldb.LimitError, match=f"memory_bytes={4 * a.nbytes}"):
            packed.ops.matrix_multiply("a", "a", memory_bytes=4 * a.nbytes - 8)


def test_what_has_no_product_is_refused_and_nothing_is_stored(db: mldb.MLDatabase) -> None:
    torch = pytest.importorskip("torch")
    db["m"], db["cube"], db["scalar"] = np.ones((2, 3)), np.ones((2, 2, 2)), np.float64(1)
    db["sparse"] = sparse.csr_array(np.eye(3))
    db["dates"] = np.zeros((3, 3), "M8[s]")
    db["nibbles"] = np.zeros((3, 3), ml_dtypes.int4)
    two_per_byte = getattr(torch, "float4_e2m1fn_x2", torch.bits8)  # torch < 2.8 lacks it
    db["packed"] = torch.zeros((3, 3), dtype=torch.uint8).view(two_per_byte)
    db["half"], db["brain"] = np.ones((3, 3), "f2"), np.ones((3, 3), ml_dtypes.bfloat16)
    head = db.lsn
    for a, b, error, text in [
        ("m", "m", mldb.InvalidValueError, r"\(2, 3\).*\(2, 3\)"),
        ("cube", "m", mldb.InvalidValueError, "stacked"),
        ("scalar", "m", mldb.InvalidValueError, r"shape \(\)"),
        ("m", "sparse", mldb.InvalidTypeError, "sparse"),
        ("m", "dates", mldb.InvalidTypeError, "astype"),
        ("m", "nibbles", mldb.InvalidTypeError, "int4"),
        ("m", "packed", mldb.InvalidTypeError, "float4_e2m1fn_x2"),
        ("half", "brain", mldb.InvalidTypeError, "no common type"),
        ("m", "absent", mldb.TensorNotFoundError, "absent"),
    ]:
        with pytest.raises(error, match=text):
            db.ops.matrix_multiply(a, b, out="never")
    with pytest.raises(mldb.InvalidValueError, match="64 KiB"):
        db.ops.matrix_multiply("m", "m", memory_bytes=TINY - 1)
    with pytest.raises(mldb.InvalidTypeError, match="not an int"):
        db.ops.matrix_multiply("m", "m", memory_bytes=1e9)  # type: ignore[call-overload]
    with pytest.raises(mldb.InvalidNameError):
        db.ops.matrix_multiply("half", "half", out="../x")
    assert db.lsn == head
    assert "never" not in db


def test_a_read_only_handle_multiplies_and_does_not_store(store_path: Path) -> None:
    with mldb.open(store_path) as writing:
        writing["a"] = np.eye(3)
    with mldb.open(store_path, mode="r") as reading:
        np.testing.assert_array_equal(reading.ops.matrix_multiply("a", "a"), np.eye(3))
        with pytest.raises(mldb.ReadOnlyError):
            reading.ops.matrix_multiply("a", "a", out="b")


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "bfloat16", "?"])
@pytest.mark.parametrize("shape", [(300, 500, 400), (1, 3000, 300), (3000, 300, 1)])
def test_working_memory_stays_within_the_budget(
    store_path: Path, rng: np.random.Generator, dtype: str, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    budget = 150_000
    # A store of its own: the commit of the result takes memory by the number of segments.
    with mldb.open(store_path, durability="os") as db:
        db["a"] = rng.integers(0, 2, (m, k)).astype(kind)
        db["b"] = rng.integers(0, 2, (k, n)).astype(kind)
        # The second run is measured: the first one verifies the operands and imports modules.
        db.ops.matrix_multiply("a", "b", out="c", memory_bytes=budget)
        tracemalloc.start()
        try:
            db.ops.matrix_multiply("a", "b", out="c", memory_bytes=budget)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= budget, f"{peak} bytes at the peak"


_LIMITED = """
import resource, sys
import numpy as np
import mldb
store, mebibytes = sys.argv[1], int(sys.argv[2])
with mldb.open(store, durability="os") as db:
    np.ones((300, 300)) @ np.ones((300, 300))  # lets BLAS take its buffers first
    used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
    limit = (used << 10) + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.ones(mebibytes << 21, np.uint8)
        raise SystemExit("the limit does not hold")
    except MemoryError:
        pass
    db.ops.matrix_multiply("a", "b", out="c", memory_bytes=8 << 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers mmap on Linux only")
def test_a_process_limited_below_the_operands_multiplies(
    store_path: Path, rng: np.random.Generator
) -> None:
    """a, b and c are 32 MiB each; the process may take 24 MiB of private memory."""
    a = rng.integers(-9, 9, (4096, 1024)).astype(np.float64)
    b = rng.integers(-9, 9, (1024, 4096)).astype(np.float64)[:, :1024].copy()
    with mldb.open(store_path, durability="os") as writing:
        writing["a"], writing["b"] = a, b
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(store_path), "24"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with mldb.open(store_path, mode="r") as reading:
        np.testing.assert_array_equal(reading["c"], a @ b)
