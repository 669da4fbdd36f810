"""Where the parts of a distributed tensor go: whole under one name, or each under its own.

Pure functions. A *box* is where a part starts in its tensor, and its sizes, axis by axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, NamedTuple

from xxhash import xxh3_64_hexdigest

from mldb.errors import InvalidNameError
from mldb.names import MAX_NAME_BYTES, check_name, escape_key

RUN_BYTES_MIN: Final = 16 << 10
"""A part in shorter runs than these is a tensor of its own: each run is a write of its own."""

_ROOM: Final = 64  # bytes that a name of a part may add
_DIGEST_TEXT: Final = 17


class Box(NamedTuple):
    """A part of a tensor: where it starts and how large it is, axis by axis."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)


class BoxedTensor(NamedTuple):
    """A distributed tensor in a store: its boxes, each with the name that it has there.

    A whole one has a single box, which is all of it.
    """

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[tuple[Box, str], ...]

    @property
    def is_whole(self) -> bool:
        """Whether one name has all of it."""
        return len(self.boxes) == 1 and self.boxes[0][0].sizes == self.shape


def name_of_fqn(fqn: str) -> str:
    """Return the name in the store of *fqn*: itself, unless a name must not look like that.

    No two give the same one, but for a digest of 64 bits where they are too long.
    """
    name = escape_key(fqn)
    if len(name.encode()) > MAX_NAME_BYTES - _ROOM:
        kept = name.encode()[: MAX_NAME_BYTES - _ROOM - _DIGEST_TEXT].decode(errors="ignore")
        name = f"{kept}~{xxh3_64_hexdigest(fqn.encode('utf-8', 'surrogatepass'))}"
    check_name(name)
    return name


def name_of_part(name: str, box: Box) -> str:
    """Return the name of a part of the tensor *name*."""
    where = ".".join(map(str, box.offsets))
    if len(where) >= _ROOM:
        where = xxh3_64_hexdigest(where.encode())
    part = f"{name}/{where}"
    try:
        check_name(part)
    except InvalidNameError as error:
        raise InvalidNameError(f"a part of tensor {name!r:.200} has no name: {error}") from error
    return part


def place_tensor(
    fqn: str, dtype: str, shape: tuple[int, ...], boxes: Sequence[Box], itemsize: int
) -> BoxedTensor:
    """Decide how a tensor is stored of which *boxes* are written, each by one rank."""
    name = name_of_fqn(fqn)
    whole = Box((0,) * len(shape), shape)
    if is_in_long_runs(shape, boxes, itemsize):
        return BoxedTensor(dtype, shape, ((whole, name),))
    return BoxedTensor(dtype, shape, tuple((box, name_of_part(name, box)) for box in boxes))


def is_in_long_runs(shape: tuple[int, ...], boxes: Sequence[Box], itemsize: int) -> bool:
    """Whether *boxes* are all of a tensor, and each is few and long runs of its bytes."""
    if sum(box.elements for box in boxes) != math.prod(shape):
        return False
    for box in boxes:
        split = _inner_axis(shape, box)
        short = math.prod(box.sizes[split:]) * itemsize < RUN_BYTES_MIN
        if short and math.prod(box.sizes[:split]) > 1:
            return False
    return True


def runs(shape: tuple[int, ...], box: Box, itemsize: int) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of a box: byte offset in the tensor, byte offset in the box, bytes."""
    if not box.elements:
        return
    split = _inner_axis(shape, box)
    length = math.prod(box.sizes[split:]) * itemsize
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    start = sum(at * step for at, step in zip(box.offsets, strides, strict=True))
    for number, steps in enumerate(product(*map(range, box.sizes[:split]))):
        at = start + sum(step * stride for step, stride in zip(steps, strides, strict=False))
        yield at, number * length, length


def _inner_axis(shape: tuple[int, ...], box: Box) -> int:
    """The first axis from which on a box is one run: those behind it are whole in it."""
    axis = len(shape)
    while axis and box.sizes[axis - 1] == shape[axis - 1]:
        axis -= 1
    return max(axis - 1, 0)
