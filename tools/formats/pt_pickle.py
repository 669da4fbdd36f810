"""What ``torch.save`` writes beside the storages, read without running anything of it.

It is a program for a stack machine. This one knows the instructions that build dicts, lists,
tuples, numbers, texts and tensors, and nothing else: a name of a class or function is looked up in
the tables here and never imported, and one that is not there ends the reading.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

STACK_MAX: Final = 1 << 20
MEMO_MAX: Final = 1 << 22
_AXES_MAX: Final = 64
_TEXT_MAX: Final = 1 << 20
_NAME_MAX: Final = 200

_STORAGE_CODES: Final = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "ComplexDoubleStorage": "<c16",
    "ComplexFloatStorage": "<c8",
}
_DTYPE_CODES: Final = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "bfloat16",
    "uint8": "|u1",
    "int8": "|i1",
    "bool": "|b1",
    "complex32": "complex32",
    "complex64": "<c8",
    "complex128": "<c16",
    **{
        f"{kind}int{bits}": f"<{kind or 'i'}{bits // 8}"
        for kind in ("", "u")
        for bits in (16, 32, 64)
    },
    **{
        name: name
        for name in (
            *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
            *("float8_e8m0fnu", "float4_e2m1fn_x2"),
        )
    },
}
_TENSOR_CLASSES: Final = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
)


class UnreadablePickleError(Exception):
    """The bytes are no program that builds values; ``at`` is where in them."""

    def __init__(self, problem: str, at: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.at = problem, at


class ForeignNameError(Exception):
    """The file wants something made that is no tensor, number, text or container of such."""


class StoredBytes(NamedTuple):
    """A storage: which member of the archive has it, how many elements of which dtype."""

    key: str
    code: str | None
    """None where the tensor says it: then the count is in bytes."""
    elements: int


class StoredTensor(NamedTuple):
    """A tensor: a view of a storage, in elements of its dtype. Checked but for the storage."""

    storage: StoredBytes
    code: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """A class or function that the tables here know."""

    dotted: str


class _Mark:
    pass


_MARK: Final = _Mark()


def read_pickle(data: memoryview) -> Any:
    """Return the value that a program builds: containers, plain values, and StoredTensor.

    Containers may hold themselves or each other many times; who walks them bounds that. Raises
    UnreadablePickleError, and ForeignNameError that names what is asked for.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (UnicodeError, struct.error, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UnreadablePickleError(f"it is damaged ({type(error).__name__})", machine.at) from None


class _Machine:
    """One run over one program. The stack and the memo are bounded, and so is every length."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Take one instruction after another until the one that ends it."""
        while True:
            code = self._take(1)[0]
            if code == _STOP:
                if len(self._stack) != 1 or isinstance(self._stack[0], _Mark):
                    raise self._damaged("it ends with other than one value")
                return self._stack[0]
            step = _STEPS.get(code)
            if step is None:
                raise self._damaged(f"it has the instruction {code:#04x}, which is not known here")
            step(self)
            if len(self._stack) > STACK_MAX:
                raise self._damaged(f"more than {STACK_MAX} values wait on its stack")

    def _damaged(self, problem: str) -> UnreadablePickleError:
        return UnreadablePickleError(problem, self.at)

    def _take(self, count: int) -> memoryview:
        low, high = self.at, self.at + count
        if high > len(self._data):
            raise self._damaged("it is cut off")
        self.at = high
        return self._data[low:high]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise self._damaged("a value is missing")
        return value

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        for low in range(len(stack) - 1, -1, -1):
            if isinstance(stack[low], _Mark):
                values = stack[low + 1 :]
                del stack[low:]
                return values
        raise self._damaged("a mark is missing")

    # --- values -----------------------------------------------------------------------------------

    def _protocol(self) -> None:
        if self._take(1)[0] > 5:
            raise self._damaged("it is of a newer protocol than 5")

    def _skip_frame(self) -> None:
        self._take(8)

    def _text(self, form: str) -> None:
        length = self._number(form)
        if length > _TEXT_MAX:
            raise self._damaged(f"a text is said to take {length} bytes")
        self._push(str(self._take(length), "utf-8", "surrogatepass"))

    def _bytes(self, form: str) -> None:
        length = self._number(form)
        if length > _TEXT_MAX:
            raise self._damaged(f"bytes are said to be {length}")
        self._push(bytes(self._take(length)))

    def _long(self) -> None:
        self._push(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    # --- containers -------------------------------------------------------------------------------

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise self._damaged("something is appended to no list")
        target.extend(values)

    def _append(self) -> None:
        value = self._pop()
        self._extend([value])

    def _set_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(flat) % 2:
            raise self._damaged("items are set in no dict, or keys without values")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if not isinstance(key, str | int | None):
                raise self._damaged(f"a key is a {type(key).__name__}, no text or number")
            target[key] = value

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    # --- the memo ---------------------------------------------------------------------------------

    def _put(self, number: int) -> None:
        if len(self._memo) >= MEMO_MAX:
            raise self._damaged(f"it remembers more than {MEMO_MAX} values")
        value = self._stack[-1]
        if isinstance(value, _Mark):
            raise self._damaged("a mark is remembered")
        self._memo[number] = value

    def _get(self, number: int) -> None:
        self._push(self._memo[number])

    # --- names, storages and tensors --------------------------------------------------------------

    def _line(self) -> str:
        end = self.at
        stop = min(len(self._data), self.at + _NAME_MAX)
        while end < stop and self._data[end] != 0x0A:
            end += 1
        if end == stop:
            raise self._damaged("a name has no end")
        text = str(self._take(end - self.at), "utf-8")
        self._take(1)
        return text

    def _global(self) -> None:
        module = self._line()
        self._named(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._damaged("a name is no text")
        self._named(module[:_NAME_MAX], name[:_NAME_MAX])

    def _named(self, module: str, name: str) -> None:
        dotted = f"{module}.{name}"
        if not (dotted in _CALLS or dotted in _TENSOR_CLASSES or _is_storage(dotted)):
            if module == "torch" and name in _DTYPE_CODES:
                self._push(_Name(dotted))
                return
            raise ForeignNameError(dotted)
        self._push(_Name(dotted))

    def _storage(self) -> None:
        stated = self._pop()
        if type(stated) is not tuple or len(stated) != 5 or stated[0] != "storage":
            raise self._damaged("a storage is not described as one")
        _, kind, key, _, count = stated
        if not isinstance(kind, _Name) or not _is_storage(kind.dotted):
            raise self._damaged("a storage has no type")
        if not isinstance(key, str) or not _is_count(count):
            raise self._damaged("a storage has no name or size")
        name = kind.dotted.rpartition(".")[2]
        self._push(StoredBytes(key, _STORAGE_CODES.get(name), count))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise self._damaged("something is called that is no function")
        call = _CALLS.get(function.dotted)
        if call is None:
            raise self._damaged(f"{function.dotted} is called")
        try:
            self._push(call(*arguments))
        except (ValueError, AttributeError) as error:
            raise self._damaged(f"{function.dotted}: {error!s:.100}") from None

    def _build(self) -> None:
        # torch keeps the versions of modules as an attribute of their OrderedDict.
        state, target = self._pop(), self._stack[-1]
        if type(target) is not dict or type(state) is not dict:
            raise self._damaged("attributes are set of something that has none")


def _is_storage(dotted: str) -> bool:
    module, _, name = dotted.rpartition(".")
    return (module == "torch" and name in _STORAGE_CODES) or dotted in (
        "torch.storage.UntypedStorage",
        "torch.UntypedStorage",
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, _more: Any = None
) -> StoredTensor:
    return _checked_tensor(storage, None, offset, shape, strides)


def _tensor_of_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    _more: Any = None,
) -> StoredTensor:
    code = _DTYPE_CODES.get(dtype.dotted.removeprefix("torch.")) if isinstance(dtype, _Name) else ""
    if not code:
        raise ValueError("a tensor has no dtype")
    return _checked_tensor(storage, code, offset, shape, strides)


def _checked_tensor(
    storage: Any, code: str | None, offset: Any, shape: Any, strides: Any
) -> StoredTensor:
    if not isinstance(storage, StoredBytes) or (code is None and storage.code is None):
        raise ValueError("a tensor has no storage")
    if not (
        _is_count(offset)
        and type(shape) is tuple
        and type(strides) is tuple
        and len(shape) == len(strides) <= _AXES_MAX
        and all(map(_is_count, shape))
        and all(map(_is_count, strides))
    ):
        raise ValueError("a tensor has no offset, shape and strides")
    return StoredTensor(storage, str(code or storage.code), offset, shape, strides)


def _first_tensor(tensor: Any, *_more: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise ValueError("a parameter is no tensor")
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, _state: Any) -> StoredTensor:
    if not isinstance(function, _Name) or not isinstance(kind, _Name):
        raise ValueError("a tensor has no type")
    call = _CALLS.get(function.dotted)
    if call not in (_tensor, _tensor_of_dtype) or kind.dotted not in _TENSOR_CLASSES:
        raise ValueError("a tensor has another type")
    made: StoredTensor = call(*arguments)
    return made


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        if not isinstance(key, str | int | None):
            raise ValueError("a key is no text or number")
        found[key] = value
    return found


def _size(axes: Any) -> tuple[int, ...]:
    if type(axes) is not tuple or not all(map(_is_count, axes)):
        raise ValueError("a size has no axes")
    return axes


def _device(kind: Any, number: Any = None) -> str:
    return f"{kind!s:.20}" if number is None else f"{kind!s:.20}:{number!s:.20}"


def _encoded(text: Any, codec: Any) -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise ValueError("bytes are no text of latin1")
    return text.encode("latin-1")


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "_codecs.encode": _encoded,
}

_STOP: Final = 0x2E
_STEPS: Final[dict[int, Callable[[_Machine], None]]] = {
    0x80: _Machine._protocol,
    0x95: _Machine._skip_frame,
    ord("("): lambda m: m._push(_MARK),
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("K"): lambda m: m._push(m._number("<B")),
    ord("M"): lambda m: m._push(m._number("<H")),
    ord("J"): lambda m: m._push(m._number("<i")),
    ord("G"): lambda m: m._push(m._number(">d")),
    0x8A: _Machine._long,
    ord("X"): lambda m: m._text("<I"),
    0x8C: lambda m: m._text("<B"),
    0x8D: lambda m: m._text("<Q"),
    ord("C"): lambda m: m._bytes("<B"),
    ord("B"): lambda m: m._bytes("<I"),
    ord("}"): lambda m: m._push({}),
    ord("]"): lambda m: m._push([]),
    ord(")"): lambda m: m._push(()),
    ord("t"): lambda m: m._push(tuple(m._since_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("a"): _Machine._append,
    ord("e"): lambda m: m._extend(m._since_mark()),
    ord("s"): _Machine._set_item,
    ord("u"): lambda m: m._set_items(m._since_mark()),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("c"): _Machine._global,
    0x93: _Machine._stack_global,
    ord("Q"): _Machine._storage,
    ord("R"): _Machine._call,
    ord("b"): _Machine._build,
}
"""The instructions by their byte, as Python's ``pickle`` module numbers them."""
