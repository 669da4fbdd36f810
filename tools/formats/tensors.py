"""What a file of tensors is taken apart into, and made from: a name, a type, and bytes on demand.

Nothing here holds the bytes of two tensors at once; an import reads one of at most 256 MiB ahead
(``mldb.tools.formats.ahead``). What is read from a file is a view of its mapping, so that a file
may be larger than memory.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import CorruptError, InvalidValueError, MissingError, StorageIOError

CHUNK: Final = 8 << 20
"""Bytes that are written, hashed or turned at once, so that progress shows and Ctrl-C is heard."""
NAME_BYTES_MAX: Final = 4096
TENSORS_MAX: Final = 1 << 20

BytesMoved = Callable[[int], None]
"""Called with the bytes that were written or read since the last call."""


@dataclass(frozen=True, slots=True)
class OutgoingTensor:
    """A dense tensor to be written: ``code`` is its dtype as mldb names it.

    ``read`` returns its array, whose memory may be a view of the store; called once, when it is
    written.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class IncomingTensor:
    """A tensor of a file: ``read`` returns what ``store_tensor`` takes, a view where it can be.

    ``nbytes`` are those in memory. The view lives as long as it is held.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class IncomingFile:
    """What a file holds, in its own order; ``metadata`` is text by name, of the whole file.

    ``left_out`` are the names of numbers, texts and the like that stand beside the tensors.
    """

    tensors: tuple[IncomingTensor, ...]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()


class MappedFile:
    """A file that is only read, as one buffer. For one thread; views of it live on after it.

    Raises MissingError where there is none, StorageIOError for what is no regular file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # A pipe or a device would block, or never end.
            if not os.path.isfile(path):
                if os.path.exists(path):
                    raise StorageIOError(f"{path} is no regular file.")
                raise MissingError(f"there is no file {path!r}")
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.data = memoryview(b"")
                if self.size:
                    mapped = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
                    self.data = memoryview(mapped)
        except OSError as error:
            raise StorageIOError(f"{path} cannot be read: {error}", errno=error.errno) from error
        except ValueError as error:
            raise InvalidValueError(f"{path[:200]!r} is no path: {error}") from None

    def damaged(self, problem: str, offset: int | None = None) -> CorruptError:
        """What is raised for a file that is not what it says."""
        return CorruptError(f"{problem}. Nothing was stored.", file=self.path, offset=offset)


def chunks_of(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    """Yield the bytes of a C-contiguous array in little-endian order, CHUNK at a time.

    Nothing is copied but what has to be turned, and of that one chunk at a time.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(CHUNK // max(flat.itemsize, 1), 1)
    turned = is_big_endian(flat.dtype)
    for low in range(0, flat.size, step):
        part = flat[low : low + step]
        if turned:
            part = part.astype(part.dtype.newbyteorder("<"))
        yield part.view(np.uint8).data


def is_big_endian(dtype: np.dtype[Any]) -> bool:
    """Whether the bytes of a number stand with the highest first."""
    return dtype.str[:1] == ">"


def size_of_shape(shape: tuple[int, ...], itemsize: int) -> int:
    """The bytes of an array; a shape with a zero has none."""
    return math.prod(shape) * itemsize


def low_address(data: memoryview) -> int:
    """Where a buffer lies in memory; 0 for an empty one."""
    return int(np.frombuffer(data, np.uint8).ctypes.data) if len(data) else 0
