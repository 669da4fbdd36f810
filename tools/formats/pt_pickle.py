"""What ``torch.save`` writes beside the storages, read without running anything of it.

It is a program for a stack machine. This one knows the instructions that build dicts, lists,
tuples, numbers, texts and tensors, and nothing else: a name of a class or function is looked up in
the tables here and never imported, and one that is not there ends the reading.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from mldb.tools.formats.pt_names import (
    CALLS,
    DTYPE_CODES,
    STORAGE_CODES,
    TENSOR_CLASSES,
    KnownName,
    StoredBytes,
    is_count,
    is_storage,
)

STACK_MAX: Final = 1 << 20
MEMO_MAX: Final = 1 << 22
_TEXT_MAX: Final = 1 << 20
_NAME_MAX: Final = 200


class UnreadablePickleError(Exception):
    """The bytes are no program that builds values; ``at`` is where in them."""

    def __init__(self, problem: str, at: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.at = problem, at


class ForeignNameError(Exception):
    """The file wants something made that is no tensor, number, text or container of such."""


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
        if not (dotted in CALLS or dotted in TENSOR_CLASSES or is_storage(dotted)):
            if module == "torch" and name in DTYPE_CODES:
                self._push(KnownName(dotted))
                return
            raise ForeignNameError(dotted)
        self._push(KnownName(dotted))

    def _storage(self) -> None:
        stated = self._pop()
        if type(stated) is not tuple or len(stated) != 5 or stated[0] != "storage":
            raise self._damaged("a storage is not described as one")
        _, kind, key, _, count = stated
        if not isinstance(kind, KnownName) or not is_storage(kind.dotted):
            raise self._damaged("a storage has no type")
        if not isinstance(key, str) or not is_count(count):
            raise self._damaged("a storage has no name or size")
        name = kind.dotted.rpartition(".")[2]
        self._push(StoredBytes(key, STORAGE_CODES.get(name), count))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, KnownName) or type(arguments) is not tuple:
            raise self._damaged("something is called that is no function")
        call = CALLS.get(function.dotted)
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
