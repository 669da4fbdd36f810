"""What the compiled twin does with a whole state: its names, its small tensors, and the packs."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.log import native
from mldb.log.fs.memory import MemoryFileSystem
from mldb.names import check_name
from mldb.state.tree import FlatState, flatten
from mldb.tensors.codec import Prepared, prepare
from mldb.tensors.together import COPIED_MAX, prepare_small
from mldb.write.packs import PACK_BELOW

pytestmark = pytest.mark.skipif(native.twin is None, reason=f"native is {native.status}")

KEYS = st.one_of(
    st.sampled_from(["a", "b.c", "d/e", "", ".", "%", "é", "x" * 90, "_extra_state"]),
    st.integers(-2, 3),
    st.sampled_from([1 << 63, -(1 << 63), (1 << 64) - 1, True, None, (1, "a")]),
)
SHARED = torch.arange(12.0)
LEAVES = st.sampled_from(
    [
        *(None, True, 3, -1, 1 << 63, 1 << 70, 2.5, "text", "ünicode", b"bytes", 1j),
        *(np.ones(2), np.float32(3), torch.Size([2])),
        *(torch.ones(2), torch.ones(0), torch.tensor(1.5), torch.nn.Parameter(torch.ones(3))),
        *(SHARED, SHARED[:5], SHARED[5:], SHARED.view(3, 4), SHARED.view(3, 4).T, SHARED[5:]),
        *(torch.ones(2, dtype=torch.bfloat16), torch.eye(2).to_sparse(), torch.ones(2) * 1j),
        *((torch.ones(2) * 1j).conj(), torch._neg_view(torch.ones(2)), torch.ones(3000)),
    ]
)
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)


def taken_apart(state: Any, prefix: str) -> tuple[FlatState, dict[str, Prepared]] | str:
    ready: dict[str, Prepared] = {}
    try:
        return flatten(state, prefix=prefix, ready=ready), ready
    except mldb.MldbError as error:
        return f"{type(error).__name__}: {error}"


@given(STATES, st.sampled_from(["", "p", "p/q"]))
def test_a_state_is_taken_apart_as_python_does(state: Any, prefix: str) -> None:
    mine = taken_apart(state, prefix)
    with native.switched_off():
        python = taken_apart(state, prefix)
    if isinstance(mine, str) or isinstance(python, str):
        assert mine == python
        return
    (flat, ready), (same, none) = mine, python
    assert none == {}
    assert (flat.skeleton, flat.aliases) == (same.skeleton, same.aliases)
    assert list(flat.tensors) == list(same.tensors)
    for name, item in ready.items():
        expected = prepare(flat.tensors[name])
        assert item[:2] == expected[:2]
        assert item.nbytes == expected.nbytes <= COPIED_MAX
        assert b"".join(item.buffers) == b"".join(expected.buffers)
        assert item.owned


def test_what_is_ready_is_a_copy_and_keeps_nothing_of_the_tensor() -> None:
    tensor = torch.arange(20.0)[3:9]
    prepare(tensor.clone())  # an array over a tensor would fix the size of its storage
    ready = prepare_small({"a": tensor})[1]["a"]
    before = b"".join(ready.buffers)
    tensor.zero_()
    tensor.untyped_storage().resize_(0)
    assert b"".join(ready.buffers) == before == np.arange(3, 9, dtype=np.float32).tobytes()
    assert prepare_small({"a": tensor}) == ([None], {})


def test_a_tensor_that_ends_behind_its_storage_is_left_to_python() -> None:
    tensor = torch.ones(64)
    prepare(tensor.clone())
    tensor.untyped_storage().resize_(40)
    assert prepare_small({"a": tensor})[1] == {}


def test_only_plain_tensors_of_known_shape_are_ready() -> None:
    class Own(torch.Tensor):
        pass

    mkldnn: Any = torch.backends.mkldnn
    known = torch.ones(7)
    prepare(known)
    odd = {
        "own": torch.ones(7).as_subclass(Own),
        "meta": torch.ones(7, device="meta"),
        "sparse": torch.eye(7).to_sparse(),
        "dense elsewhere": torch.ones(7, 7).to_mkldnn() if mkldnn.is_available() else 7,
        "negative": torch._neg_view(torch.ones(7)),
        "none": None,
        "array": np.ones(7, np.float32),
    }
    assert prepare_small(odd) == ([None] * len(odd), {})
    steps = {"strided": torch.ones(14)[::2], "new": torch.ones(7, 1, 7, 1, 7), "known": known}
    places, ready = prepare_small(steps)
    assert places == [tensor.untyped_storage().data_ptr() for tensor in steps.values()]
    assert list(ready) == ["known"]


@pytest.mark.parametrize("names", [["a", "b.c/d"], [], ["a", "b."], ["é"], ["x" * 256]])
def test_keys_of_names(names: list[str]) -> None:
    made = native.twin.tensor_keys(names)
    plain = all(name.isascii() and len(name) < 256 and name[-1] != "." for name in names)
    assert made == ([keys.TENSORS + check_name(name) for name in names] if plain else None)


# --- into the packs -------------------------------------------------------------------------------


def named(count: int, size: int, seed: int) -> tuple[list[bytes], list[Prepared]]:
    draws = np.random.default_rng(seed)
    values = [prepare(draws.standard_normal(size, np.float32)) for _ in range(count)]
    return [keys.TENSORS + b"t%d" % number for number in range(count)], values


@pytest.mark.parametrize("size", [1, 50, 200, 5000, PACK_BELOW // 4])
def test_a_run_is_packed_as_one_by_one(size: int) -> None:
    """Also where a pack is full, a key comes twice, and bytes are there already."""
    found, prepared = named(120, size, 1)
    found[40], prepared[50], prepared[60] = found[39], prepared[49], prepared[59]
    db = mldb.MLDatabase.on(MemoryFileSystem())
    drafts = []
    for runs in (True, False):
        staging = db.new_staging(fix=False, checkpoint=True)
        number = 0
        while number < len(found):
            stop = min(number + 33, len(found))
            if runs:
                number = staging.put_run(found, prepared, number, stop)
            if number < stop or not runs:
                staging.put_tensor(found[number][1:], prepared[number])
                number += 1
        drafts.append(
            (
                [record.drafts for record in staging.records()],
                staging.looked_up(),
                list(staging.keys(b"")),
            )
        )
        staging.discard()
    assert drafts[0] == drafts[1]
    db.close()


def test_numbers_that_are_none_are_refused() -> None:
    found, prepared = named(2, 4, 1)
    for first, stop in ((-1, 2), (0, 3), (2, 1)):
        with pytest.raises(ValueError):
            native.twin.pack_tensors(found, prepared, first, stop, set(), {}, [], 9, 9, 9, None, {})


def test_checkpoints_are_the_same_bytes(tmp_path: Path) -> None:
    """Of a state that changes in part, with tied weights, with the twin and without."""
    torch.manual_seed(0)
    model = torch.nn.ParameterDict({f"p{i}": torch.randn(16, 16) for i in range(20)})
    model["tied"] = model["p3"]
    optimizer = torch.optim.Adam(model.parameters())
    listed: list[list[Any]] = []
    for epoch in range(4):
        for number, parameter in enumerate(model.values()):
            parameter.grad = torch.ones_like(parameter) if number % 3 else None
        optimizer.step()
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        for place in ("mine", "python"):
            with mldb.open(tmp_path / place) as db:
                if place == "mine":
                    db.checkpoint(parts, epoch=epoch)
                else:
                    with native.switched_off():
                        db.checkpoint(parts, epoch=epoch)
    for place in ("mine", "python"):
        with mldb.open(tmp_path / place, mode="r") as db:
            view = db._log.head()
            entries = view.live(keys.TENSORS, view.intervals)
            listed.append(
                [
                    (key, e.commit_lsn, e.length, e.attr, e.encoding, e.base, e.digest, e.owner)
                    for key, e in entries
                ]
            )
            for name in ("p5", "p3", "tied"):
                assert np.array_equal(db[f"model/{name}"], model[name].detach().numpy())
    assert listed[0] == listed[1]
