"""Nested training states: exact types, every bit, tied memory, and what hostile skeletons give."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mldb.errors import (
    CorruptError,
    FormatVersionError,
    InvalidNameError,
    InvalidTypeError,
    LimitError,
    TensorNotFoundError,
)
from mldb.names import check_name
from mldb.state import skeleton as skeletons
from mldb.state.skeleton import LIST, STATE_DEPTH_MAX, TENSOR, TUPLE, parse_skeleton
from mldb.state.tree import FlatState, flatten, unflatten
from mldb.tensors.codec import prepare, rebuild, unpack_descriptor


class Store(dict[str, tuple[bytes, bytes]]):
    """Tensors as bytes, as a checkpoint would hold them."""

    def __init__(self, flat: FlatState) -> None:
        super().__init__()
        for name, tensor in flat.tensors.items():
            prepared = prepare(tensor)
            self[name] = (prepared.attr, b"".join(prepared.buffers))

    def load(self, name: str) -> Any:
        if name not in self:
            raise TensorNotFoundError(name)
        attr, payload = self[name]
        return rebuild(unpack_descriptor(attr), bytearray(payload))


def round_trip(state: object, prefix: str = "") -> Any:
    flat = flatten(state, prefix=prefix)
    return unflatten(flat.skeleton, Store(flat).load)


def bits(value: Any) -> bytes:
    return b"".join(prepare(value).buffers)


def identical(left: Any, right: Any) -> bool:
    """The same types all the way down and the same bits at the leaves."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor | np.ndarray):
        return bool(
            left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)
        )
    if isinstance(left, np.generic):
        return bool(left.tobytes() == right.tobytes())
    if isinstance(left, dict):
        return identical(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, complex):
        return identical([left.real, left.imag], [right.real, right.imag])
    return bool(left == right)


# --- any tree -------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(["", ".", "a/b", "%", "weight"])
INTEGERS = st.integers(-(2**200), 2**200) | st.sampled_from([2**64, 2**64 - 1, -(2**63), 2**63])
FLOATS = st.integers(0, 2**64 - 1).map(lambda raw: struct.unpack("<d", struct.pack("<Q", raw))[0])
TENSORS = st.builds(
    lambda kind, shape, seed: make_tensor(kind, tuple(shape), seed),
    st.sampled_from(["<f4", ">i2", "bfloat16", torch.float32, torch.bfloat16, torch.int64]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**32 - 1),
)
SCALARS = st.sampled_from(
    [np.float32("nan"), np.int8(-3), np.True_, np.complex64(1j), np.datetime64(5, "ms")]
) | st.builds(ml_dtypes.bfloat16, st.floats(width=16))
LEAVES = (
    st.none()
    | st.booleans()
    | INTEGERS
    | FLOATS
    | st.complex_numbers()
    | TEXT
    | st.binary(max_size=6)
    | SCALARS
    | TENSORS
    | st.lists(st.integers(0, 2**40), max_size=3).map(torch.Size)
)
KEYS = st.recursive(
    TEXT | INTEGERS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=4,
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(TEXT, inner, max_size=3).map(Counter)
    ),
    max_leaves=16,
)


def make_tensor(kind: Any, shape: tuple[int, ...], seed: int) -> Any:
    rng = np.random.default_rng(seed)
    if isinstance(kind, torch.dtype):
        tensor = torch.empty(shape, dtype=kind)
        view = tensor.reshape(-1).view(torch.uint8).numpy()
        view[:] = rng.integers(0, 256, view.shape, np.uint8)
        return tensor
    array = np.empty(shape, np.dtype(getattr(ml_dtypes, kind) if kind.isalnum() else kind))
    array.reshape(-1).view(np.uint8)[:] = rng.integers(0, 256, array.nbytes, np.uint8)
    return array


@given(TREES, st.sampled_from(["", "run", "run/1"]))
@example({1: torch.ones(1), "1": torch.zeros(1), (True,): [torch.zeros(2)]}, "")
@example({"a/b": np.ones(2), "a": {"b": np.zeros(3)}}, "")
@example({"%2Fx": np.ones(2), "/x": np.zeros(2)}, "")
@example([], "")
@example(torch.zeros(()), "")
@example({"nan": float("nan"), "minus": -0.0, "inf": float("-inf")}, "")
def test_any_tree_comes_back_with_its_types_and_bits(tree: Any, prefix: str) -> None:
    flat = flatten(tree, prefix=prefix)
    store = Store(flat)
    assert identical(unflatten(flat.skeleton, store.load), tree)
    parsed = parse_skeleton(flat.skeleton)
    assert parsed.aliases == flat.aliases
    assert flat.tensors.keys().isdisjoint(flat.aliases)
    for name in (*flat.tensors, *flat.aliases):
        assert check_name(name)
        assert not prefix or name == prefix or name.startswith(f"{prefix}/")


@given(TREES)
def test_every_stored_tensor_is_loaded_once(tree: Any) -> None:
    flat = flatten(tree)
    store = Store(flat)
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return store.load(name)

    unflatten(flat.skeleton, load)
    assert sorted(asked) == sorted(flat.tensors)


def test_tensors_are_handed_over_without_a_copy() -> None:
    array, tensor = np.zeros(3), torch.zeros(3)
    flat = flatten({"n": array, "t": tensor})
    assert flat.tensors["n"] is array
    assert flat.tensors["t"] is tensor


def test_sparse_tensors_are_leaves() -> None:
    coo = torch.eye(3).to_sparse()
    matrix = sp.eye_array(4, format="csr")
    flat = flatten({"model": {"coo": coo, "again": coo, "csr": matrix}})
    assert list(flat.tensors) == ["model/coo", "model/csr"]
    back = unflatten(flat.skeleton, Store(flat).load)["model"]
    assert back["coo"] is back["again"]
    assert torch.equal(back["coo"].to_dense(), torch.eye(3))
    assert type(back["csr"]) is type(matrix)


# --- names ----------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    """Two layers with tied weights, a batch norm, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x)))  # type: ignore[no-any-return]


def test_a_bare_module_or_state_dict_keeps_its_keys_as_names() -> None:
    model = Block()
    for state in (model, model.state_dict(), dict(model.state_dict())):
        flat = flatten(state)
        assert [*flat.tensors, *flat.aliases] == [
            name for name in model.state_dict() if name != "head.weight"
        ] + ["head.weight"]
        assert flat.aliases == {"head.weight": "embed.weight"}
    assert list(flatten({"a/b": np.ones(1), "..": np.ones(1)}).tensors) == ["a/b", "%2E%2E"]
    assert list(flatten({"w": np.ones(1), "lr": 0.1}, prefix="x").tensors) == ["x/w"]
    slashed = torch.nn.ModuleDict({"a/b": torch.nn.Linear(1, 1, bias=False)})
    assert list(flatten(slashed).tensors) == ["a/b.weight"]
    assert list(flatten({"m": slashed}).tensors) == ["m/a%2Fb.weight"]


def test_nested_states_are_named_by_their_path() -> None:
    layer = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    adam.step()
    names = list(flatten({"model": layer, "optimizer": adam, "a/b": [np.ones(1)]}).tensors)
    assert names[:3] == ["model/weight", "model/bias", "optimizer/state/0/step"]
    assert "optimizer/state/1/exp_avg_sq" in names
    assert names[-1] == "a%2Fb/0"
    assert list(flatten(np.ones(1)).tensors) == ["value"]
    assert list(flatten(np.ones(1), prefix="x").tensors) == ["x"]


def test_keys_with_one_name_get_two() -> None:
    flat = flatten({"s": {1: np.ones(1), "1": np.zeros(1), "1~2": np.zeros(2)}})
    assert list(flat.tensors) == ["s/1", "s/1~2", "s/1~2~2"]


def test_a_path_that_gives_no_name_is_refused() -> None:
    with pytest.raises(InvalidNameError, match="256 bytes"):
        flatten({"a": {"k" * 254: np.ones(1)}})
    with pytest.raises(InvalidNameError, match="component"):
        flatten({"w": np.ones(1)}, prefix="../x")


# --- memory that tensors share --------------------------------------------------------------------


def test_tied_weights_come_back_as_one_tensor() -> None:
    model = Block()
    back = round_trip({"m": model, "again": model.embed.weight})
    assert back["m"]["embed.weight"] is back["m"]["head.weight"] is back["again"]
    array = np.ones(3)
    pair = round_trip([array, array])
    assert pair[0] is pair[1]


def test_parts_of_one_buffer_share_a_storage_again() -> None:
    flat = torch.arange(24, dtype=torch.float32)
    state = {
        "whole": flat,
        "weight": flat[:12].view(3, 4),
        "transposed": flat[12:].view(4, 3).T,
        "strided": flat[1::5],
        "raw": flat.view(torch.int32)[4:6],
        "same": flat[:12].view(3, 4),
        "square": flat[:9].view(3, 3),
        "turned": flat[:9].view(3, 3).T,
        "other": torch.zeros(2),
    }
    back = round_trip({"deep": state})["deep"]
    assert identical(back, state)
    assert back["same"] is back["weight"]
    for name in ("weight", "transposed", "strided", "raw", "square", "turned"):
        assert back[name].untyped_storage().data_ptr() == back["whole"].untyped_storage().data_ptr()
        assert back[name].stride() == state[name].stride()
    back["whole"].fill_(7)
    assert back["weight"].eq(7).all()
    assert back["strided"].eq(7).all()
    back["transposed"][0, 0] = -1
    assert back["whole"][12] == -1
    assert back["other"].untyped_storage().data_ptr() != back["whole"].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e5m2, torch.complex128, torch.uint16, torch.bool]
)
def test_disjoint_views_of_every_element_size_share_again(dtype: torch.dtype) -> None:
    raw = torch.arange(40 * dtype.itemsize).to(torch.uint8)
    flat = (raw % 2).bool()[:40] if dtype is torch.bool else raw.view(dtype)
    state = [flat[3:9], flat[9:37:3], flat[30]]
    back = round_trip(state)
    assert identical(back, state)
    assert len({part.untyped_storage().data_ptr() for part in back}) == 1


def test_expanded_axes_share_again() -> None:
    row = torch.arange(4.0)
    state = [row, row.expand(3, 4), row[1:2].expand(5)]
    back = round_trip(state)
    assert identical(back, state)
    assert back[1].stride() == (0, 1)
    back[0].zero_()
    assert back[1].eq(0).all()


def test_views_far_apart_do_not_cost_their_whole_storage() -> None:
    large = torch.zeros(1 << 20)
    state = [large[:2], large[-2:]]
    flat = flatten(state)
    assert parse_skeleton(flat.skeleton).groups == ()
    back = unflatten(flat.skeleton, Store(flat).load)
    assert identical(back, state)
    assert back[0].untyped_storage().nbytes() == 8


def test_lazy_conjugates_of_one_memory_keep_their_own_values() -> None:
    number = torch.complex(torch.ones(2), torch.full((2,), 3.0))
    back = round_trip([number, number.conj(), number.conj().imag])
    assert torch.equal(back[0], number)
    assert torch.equal(back[1], number.conj())
    assert torch.equal(back[2], number.conj().imag)


def test_sharing_is_left_out_when_the_loader_gives_arrays() -> None:
    flat = torch.arange(6.0)
    state = flatten([flat[:3], flat[3:]])
    back = unflatten(state.skeleton, lambda name: state.tensors[name].numpy())
    assert [part.tolist() for part in back] == [[0, 1, 2], [3, 4, 5]]


# --- states as torch, NumPy and Python give them --------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_optimizer_states_come_back(kind: Any) -> None:
    layer = torch.nn.Linear(3, 2).to(torch.bfloat16)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(layer.parameters(), lr=0.1, **options)
    layer(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    back = round_trip({"o": optimizer})["o"]
    assert identical(back, state)
    assert list(back["state"]) == [0, 1]
    assert identical(round_trip(optimizer), state)


def test_scheduler_states_come_back() -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler
    schedulers = [
        schedule.MultiStepLR(optimizer, [2, 4, 4]),
        schedule.OneCycleLR(optimizer, 0.5, total_steps=10),
        schedule.CosineAnnealingLR(optimizer, 5),
        schedule.ReduceLROnPlateau(optimizer),
        schedule.SequentialLR(
            optimizer,
            [schedule.ConstantLR(optimizer), schedule.ExponentialLR(optimizer, 0.5)],
            milestones=[2],
        ),
    ]
    for scheduler in schedulers:
        assert identical(round_trip([scheduler])[0], scheduler.state_dict())


def test_module_versions_come_back() -> None:
    state = Block().state_dict()
    back = round_trip({"m": state})["m"]
    assert type(back) is OrderedDict
    assert identical(back._metadata, state._metadata)  # type: ignore[attr-defined]
    assert identical(round_trip(Block())._metadata, state._metadata)  # type: ignore[attr-defined]


def test_random_states_come_back(seed: int) -> None:
    generator = np.random.default_rng(seed)
    legacy = np.random.RandomState(seed & 0xFFFF)
    state: dict[str, Any] = {
        "python": random.Random(seed).getstate(),
        "pcg": generator.bit_generator.state,
        "mt": np.random.Generator(np.random.MT19937(seed)).bit_generator.state,
        "legacy": legacy.get_state(),
        "torch": torch.Generator().manual_seed(seed).get_state(),
    }
    assert state["pcg"]["state"]["state"].bit_length() > 64
    back = round_trip(state)
    assert identical(back, state)
    generator.bit_generator.state = back["pcg"]
    legacy.set_state(back["legacy"])
    random.Random().setstate(back["python"])


def test_a_generator_comes_back_as_its_state(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    back = round_trip({"g": generator})["g"]
    expected = torch.rand(4, generator=generator)
    assert torch.equal(torch.rand(4, generator=torch.Generator().set_state(back)), expected)


def test_named_tuples_and_parameters_come_back_as_their_base() -> None:
    point = namedtuple("point", "x y")
    back = round_trip([point(1, [2]), torch.nn.Parameter(torch.ones(2))])
    assert identical(back[0], (1, [2]))
    assert identical(back[1], torch.ones(2))


class Level(IntEnum):
    """A class derived from int."""

    LOW = 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "sorted"),
        (frozenset(), "sorted"),
        (defaultdict(int), "dict"),
        (Level.LOW, "built-in"),
        (type("Mine", (dict,), {})(), "built-in"),
        (object(), "state_dict"),
        (print, "state_dict"),
        (torch.nn.Linear, "state_dict"),
        (np.random.default_rng(0), "bit_generator.state"),
        (np.str_("a"), "item"),
        (np.longdouble(1), "longdouble"),
        ({1.5: 2}, "key 1.5 of type float"),
        ({b"k": 2}, "bytes"),
        ({(1, frozenset()): 2}, "frozenset"),
    ],
)
def test_what_is_not_stored_is_named_with_its_path_and_a_remedy(value: Any, words: str) -> None:
    with pytest.raises(InvalidTypeError, match=words) as caught:
        flatten({"outer": {"in/ner": [0, value]}})
    if not isinstance(value, np.longdouble):
        assert "outer/in%2Fner/1" in str(caught.value)


def test_a_state_has_a_depth() -> None:
    nested: list[Any] = []
    for _ in range(STATE_DEPTH_MAX - 1):
        nested = [nested]
    assert round_trip(nested) == nested
    with pytest.raises(LimitError, match="deeper than 64"):
        flatten([nested])
    itself: list[Any] = []
    itself.append({"again": itself})
    with pytest.raises(LimitError, match="holds itself"):
        flatten(itself)
    key: Any = ()
    for _ in range(2000):
        key = (key,)
    with pytest.raises(LimitError, match="key"):
        flatten({key: 1})


def test_huge_plain_values_are_refused() -> None:
    with pytest.raises(LimitError, match=r"np\.frombuffer"):
        flatten({"blob": bytes(65 << 20)})


# --- hostile skeletons ----------------------------------------------------------------------------


def anything(name: str) -> Any:
    """A loader that has a tensor for every name."""
    return torch.arange(4.0) if len(name) % 2 else np.arange(4.0)


def only_corrupt(skeleton: bytes) -> None:
    try:
        unflatten(skeleton, anything)
    except CorruptError:
        return
    except FormatVersionError:
        assert msgpack.unpackb(skeleton)[0] > skeletons.FORMAT


@given(st.binary(max_size=50))
@example(b"\x94\x01" + b"\x91" * 3000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
def test_hostile_bytes_give_only_corrupt(data: bytes) -> None:
    only_corrupt(data)


def sample_skeleton() -> bytes:
    flat = torch.arange(8.0)
    state = {
        "a": flat[:4],
        "b": flat[4:],
        "c": [flat[:4], (1, 2**70), OrderedDict(x=1j), torch.Size([2])],
        "m": Block(),
        (1, "k"): Counter(a=1),
        "s": np.float32(2),
        "t": "\ud800",
    }
    return flatten(state).skeleton


@given(st.data())
def test_damaged_bytes_give_only_corrupt(data: st.DataObject) -> None:
    skeleton = bytearray(sample_skeleton())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(skeleton) - 1))
        skeleton[place] = data.draw(st.integers(0, 255))
    only_corrupt(bytes(skeleton[: data.draw(st.integers(len(skeleton) // 2, len(skeleton)))]))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.just(2**62) | st.just("a") | st.just(b"x"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("a"), inner),
    max_leaves=6,
)


@given(st.data())
def test_damaged_structure_gives_only_corrupt(data: st.DataObject) -> None:
    fields: Any = msgpack.unpackb(sample_skeleton())
    target = fields
    while True:
        place = data.draw(st.integers(0, len(target) - 1))
        if not isinstance(target[place], list) or not target[place]:
            break
        if data.draw(st.integers(0, 3)) == 0:
            break
        target = target[place]
    target[place] = data.draw(ODD)
    only_corrupt(msgpack.packb(fields))


def packed(root: Any, aliases: Any = None, groups: Any = ()) -> bytes:
    return bytes(msgpack.packb([1, root, aliases or {}, groups]))


def nest(tag: int, depth: int) -> Any:
    node: Any = 0
    for _ in range(depth):
        node = [tag, node]
    return node


@pytest.mark.parametrize(
    "skeleton",
    [
        b"",
        msgpack.packb([0, None, {}, []]),
        msgpack.packb([1, None, {}]),
        packed([]),
        packed([True, "a"]),
        packed([99]),
        packed({"a": 1}),
        packed(msgpack.ExtType(1, b"")),
        packed([TENSOR, "../a"]),
        packed([TENSOR, 3]),
        packed([2, "a", 1, "a", 2]),
        packed([2, 1, 1, True, 2]),
        packed([2, "a"]),
        packed([2, [LIST], 1]),
        packed([2, nest(TUPLE, 200), 1]),
        packed(nest(LIST, 900)),
        packed(nest(9, 900)),
        packed([4]),
        packed([8, -1]),
        packed([8, 2**64 - 1]),
        packed([12, "text"]),
        packed([13, 1, 2]),
        packed([14, "O", b""]),
        packed([14, "<f4", b"abc"]),
        packed([14, "|S2", b"ab"]),
        packed([15, b"\xff"]),
        packed([TENSOR, "a"], {"a": "b", "b": "c"}),
        packed([TENSOR, "a"], {"a": 1}),
        packed([TENSOR, "a"], {}, [[16, [["a", 0, [4], [1]], ["a", 0, [4], [1]]]]]),
        packed([TENSOR, "a"], {}, [[15, [["a", 0, [4], [1]]]]]),
        packed([TENSOR, "a"], {}, [[16, [["a", 4, [4], [1]]]]]),
        packed([TENSOR, "a"], {}, [[32, [["a", 2, [4], [1]]]]]),
        packed([TENSOR, "a"], {}, [[16, [["a", 0, [5], [1]]]]]),
        packed([TENSOR, "a"], {}, [[16, [["a", 0, [4], [2**60]]]]]),
        packed([TENSOR, "a"], {}, [[16, [["a", 0, [4], [-1]]]]]),
        packed([TENSOR, "a"], {}, [[2**50, [["a", 0, [4], [1]]]]]),
        packed([TENSOR, "a"], {}, [[16, [["a", 0, [2, 2], [1]]]]]),
    ],
)
def test_impossible_skeletons_are_corrupt(skeleton: bytes) -> None:
    with pytest.raises(CorruptError):
        unflatten(skeleton, lambda _: torch.arange(4.0))


def test_what_a_newer_version_adds_is_read_over_and_a_newer_format_refused() -> None:
    groups = [[16, [["a", 0, [4], [1], "more"]], "more"]]
    longer = msgpack.packb([1, [TENSOR, "a"], {}, groups, "more"])
    np.testing.assert_array_equal(unflatten(longer, lambda _: torch.arange(4.0)), np.arange(4.0))
    newer: list[list[Any]] = [[2], [2, None, {}, []], [99, {}, "more"]]
    for fields in newer:
        with pytest.raises(FormatVersionError, match=f"format {fields[0]}.*newer mldb"):
            unflatten(msgpack.packb(fields), anything)


def test_a_sparse_tensor_has_no_place_in_a_shared_storage() -> None:
    skeleton = packed([TENSOR, "a"], {}, [[64, [["a", 0, [4, 4], [4, 1]]]]])
    with pytest.raises(CorruptError, match="sparse"):
        unflatten(skeleton, lambda _: torch.eye(4).to_sparse())


def test_what_the_loader_raises_goes_through() -> None:
    with pytest.raises(TensorNotFoundError):
        unflatten(packed([TENSOR, "a"]), Store(flatten({})).load)


def test_states_without_torch_do_not_import_it() -> None:
    script = (
        "import sys, numpy as np\n"
        "from mldb.state.tree import flatten, unflatten\n"
        "flat = flatten({'a': [np.ones(2), 1, 'x'], 'b': {1: None}})\n"
        "tree = unflatten(flat.skeleton, flat.tensors.__getitem__)\n"
        "assert tree['a'][0] is flat.tensors['a/0']\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'scipy', 'ml_dtypes')))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
