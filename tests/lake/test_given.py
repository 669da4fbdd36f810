"""What add_splats is given: taken as it is meant, or refused by name before anything is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import mldb

ROWS = np.eye(3, 4, dtype=np.float32) + 0.5
MASK = [False, True, False]


@pytest.fixture
def lake(store_path: Path) -> Iterator[Any]:
    with mldb.open(store_path, durability="os") as db:
        made = db.lake("a", dim=4)
        made.add_splats(ROWS, labels=[1, 2, 3], ids=[10, 11, 12])
        yield made


def masked(values: Any) -> Any:
    return np.ma.array(values, mask=MASK)


@pytest.mark.parametrize("wrap", [lambda values: values, list, lambda values: (*values,)])
@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("labels", {"labels": masked([1, 2, 3])}),
        ("ids", {"ids": masked([21, 22, 23])}),
        ("alpha", {"alpha": masked([1.0, 2.0, 3.0])}),
        ("kappa", {"kappa": masked([1.0, 2.0, 3.0])}),
        ("column 'c'", {"columns": {"c": masked([1, 2, 3])}}),
    ],
)
def test_no_column_loses_its_mask(lake: Any, what: str, given: dict[str, Any], wrap: Any) -> None:
    """NumPy drops the mask without a word: what was marked as missing became data."""
    if what == "column 'c'":
        given = {"columns": {"c": wrap(given["columns"]["c"])}}
    else:
        given = {name: wrap(values) for name, values in given.items()}
    with pytest.raises(mldb.InvalidTypeError, match=rf"{what} of a masked array would lose its"):
        lake.add_splats(ROWS, **given)
    assert len(lake) == 3


def test_no_rows_lose_their_mask(lake: Any) -> None:
    rows = np.ma.array(ROWS, mask=ROWS > 1)
    with pytest.raises(mldb.InvalidTypeError, match=r"Give array\.filled\(value\)") as caught:
        lake.add_splats(rows)
    assert "two names" not in str(caught.value)  # a lake has none for them, as a store has
    for given in (rows, list(rows), [np.ma.array(ROWS[0], mask=True), *ROWS[1:]]):
        with pytest.raises(mldb.InvalidTypeError, match="mu of a masked array would lose its mask"):
            lake.add_splats(given)
    with pytest.raises(mldb.InvalidTypeError, match="x of a masked array"):
        lake.augment(rows, mode="isotropic", strength=0.1)
    with pytest.raises(mldb.InvalidTypeError, match="ids of a masked array"):
        lake.remove(masked([10, 11, 12]))
    assert len(lake) == 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:The PyTorch API of Masked")
@pytest.mark.filterwarnings("ignore:.*quant")
def test_tensors_whose_memory_is_not_their_values_are_refused_with_a_typed_error(
    lake: Any,
) -> None:
    """A nested tensor of torch even has no shape: RuntimeError came out."""
    nested = torch.nested.nested_tensor([torch.ones(4), torch.ones(4)])
    jagged = torch.nested.nested_tensor([torch.ones(2, 4)], layout=torch.jagged)
    quantised = torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)
    with_mask = torch.masked.masked_tensor(torch.ones(3, 4), torch.ones(3, 4) > 0)
    for rows in (nested, jagged, quantised, with_mask, torch.ones(3, 4).to_sparse()):
        with pytest.raises(mldb.InvalidTypeError, match="rows are dense real numbers"):
            lake.add_splats(rows)
        with pytest.raises(mldb.InvalidTypeError, match="labels"):
            lake.add_splats(ROWS, labels=rows)
    assert len(lake) == 3


@pytest.mark.parametrize("name", ["kappa", "alpha"])
def test_concentrations_and_weights_are_real_numbers(lake: Any, name: str) -> None:
    """A complex kappa lost its imaginary part, "3" was read as 3, a date as its days."""
    wrong: list[Any] = [
        "3",
        np.array([1 + 2j, 1, 1]),
        [1.0, None, 2.0],
        np.array([1, 2, 3], "M8[s]"),
    ]
    for values in wrong:
        with pytest.raises(mldb.InvalidTypeError, match=f"{name} has dtype"):
            lake.add_splats(ROWS, **{name: values})
    assert len(lake) == 3


def test_narrow_floats_of_ml_dtypes_are_taken_as_those_of_torch(lake: Any) -> None:
    bfloat16 = ROWS.astype(ml_dtypes.bfloat16)
    ids = lake.add_splats(
        bfloat16, kappa=np.array([20, 30, 40], ml_dtypes.bfloat16), columns={"c": bfloat16[:, 0]}
    )
    want = lake.add_splats(
        torch.from_numpy(ROWS).bfloat16(),
        kappa=torch.tensor([20.0, 30.0, 40.0]).bfloat16(),
        columns={"c": torch.from_numpy(ROWS[:, 0]).bfloat16()},
    )
    rows = [lake.get(found, fields=("mu", "kappa")) for found in (ids, want)]
    for name in ("mu", "kappa"):
        np.testing.assert_array_equal(rows[0][name], rows[1][name])
