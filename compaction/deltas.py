"""Deltas: the bytes of one version as the difference to those of another. Pure, no I/O.

Weights of neighbouring epochs share sign, exponent and the upper bits of the mantissa, so the
difference of their bit patterns, taken as integers, is small: what stays is the noise of a step.
Of relative noise ``s`` in float32 that is about ``log2(4.13 * s * 2**23)`` bits an element (the
entropy of a normal distribution), whatever the codec. The difference is moved by a *bias* so that
it is not negative, cut into planes (first the lowest byte of every element, then the next), and
compressed with zstd, whose Huffman coding takes each plane near its entropy.

Where bits flip without order (flags, text, sparse indices), the exclusive or is shorter than the
difference; a sample decides. Layout: FORMAT.md section 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.compaction.planes import split_planes, spread_plane
from mldb.compaction.zstd import FrameReader, UnpackError, compress_planes, zstd_module
from mldb.log import native

_FAST: Final = 1
_DENSE: Final = 5
_MATCH: Final = 7
"""Of noise, matches are accidents: at level 1 none is taken that is shorter than this. Of weights
that were trained, level 5 saves 2 % more. A sample tells which of them it is."""
WIDTHS: Final = (1, 2, 4, 8)
HEADER: Final = struct.Struct("<BBBB")
SUBTRACT: Final = 1
XOR: Final = 2

CHUNK_LOG2: Final = 17
"""Numbers that are compressed together. A plane of a chunk is one block of zstd, which has a code
of its own; and a chunk stays in the cache while its planes are joined."""
CHUNK_LOG2_MAX: Final = 24
_SAMPLE: Final = 1 << 11
_SAMPLES: Final = 4
_WORTH: Final = 0.95
_LENGTH: Final = np.dtype("<u4")
_TYPES: Final = {width: np.dtype(f"<u{width}") for width in WIDTHS}

_Words = npt.NDArray[np.unsignedinteger[Any]]


class DeltaError(ValueError):
    """Stored bytes are no delta to this base. Whoever knows the file says where.

    ``number``: which delta of a chain they are of.
    """

    number: int = 0


class Method(NamedTuple):
    """How the difference was taken: SUBTRACT or XOR, and the exponent of the bias, 0 for none.

    ``is_dense`` asks for the higher level of zstd, for who encodes.
    """

    kind: int
    bias_log2: int
    is_dense: bool = False


def encode_delta(data: memoryview, base: memoryview, width: int) -> bytes | None:
    """Return *data* as the difference to *base*, or None when that is not 5 % smaller than *data*.

    *width*: bytes of a number, of which elements consist: 1, 2, 4 or 8; others count as 1, as do
    lengths that are no multiple. Any thread; holds less than twice the bytes of *data* meanwhile.
    Raises DeltaError when the lengths differ.
    """
    if len(data) != len(base):
        raise DeltaError(f"{len(data)} bytes and a base of {len(base)}")
    if width not in WIDTHS or len(data) % width:
        width = 1
    words = np.frombuffer(data, _TYPES[width])
    other = np.frombuffer(base, _TYPES[width])
    method = _choose(words, other)
    if method is None:
        return None
    step = 1 << CHUNK_LOG2
    frames: list[bytes] = []
    for start in range(0, len(words), step):
        planes = _planes(words[start : start + step], other[start : start + step], method)
        frames.append(_compressed(planes, width, method))
    lengths = np.array([len(frame) for frame in frames], _LENGTH).tobytes()
    head = HEADER.pack(method.kind, width, method.bias_log2, CHUNK_LOG2) + lengths
    size = len(head) + sum(map(len, frames))
    return b"".join((head, *frames)) if size <= _WORTH * len(data) else None


def decode_delta(stored: memoryview, base: memoryview) -> memoryview:
    """Return the bytes that :func:`encode_delta` was given, read-only and as long as *base*.

    Holds little more than what it returns, however much *stored* would give. Raises DeltaError for
    bytes that are no delta to a base of this length.
    """
    made = np.empty(len(base), np.uint8)
    decode_deltas([stored], len(base), base, made.data)
    return made.data.toreadonly()


def decode_deltas(
    stored: Sequence[memoryview],
    size: int,
    base: memoryview,
    made: memoryview,
    start: int = 0,
) -> None:
    """Put bytes *start* to start + len(made) of the last of these deltas into *made*.

    Each delta builds on the one before it, the first on *base*: the same bytes of a version of
    *size* bytes, which may be *made* itself. *start* and what is not the end of the version are
    multiples of 8. Chunk by chunk goes through all deltas, so that it stays in the cache. Holds a
    few chunks beside. Raises DeltaError, whose ``number`` says which of them is damaged.
    """
    deltas = []
    for number, data in enumerate(stored):
        with _numbered(number):
            deltas.append(_Delta(data, size))
    step = max(delta.step for delta in deltas)
    stop = start + len(made)
    low = start
    while low < stop:
        high = min((low // step + 1) * step, stop)
        target = made[low - start : high - start]
        below = base[low - start : high - start]
        for number, delta in enumerate(deltas):
            with _numbered(number):
                delta.fold(low, below, target)
            below = target
        low = high


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Say which delta of a chain is damaged."""
    try:
        yield
    except DeltaError as error:
        error.number = number
        raise


class _Delta:
    """A delta to a base of *size* bytes; ``step`` is how many of them a chunk has. One thread."""

    __slots__ = ("_bias", "_frames", "_kind", "_size", "_type", "_words", "step")

    def __init__(self, stored: memoryview, size: int) -> None:
        """Check the header and the lengths of the chunks. Raises DeltaError."""
        try:
            kind, width, bias_log2, chunk_log2 = HEADER.unpack_from(stored)
        except struct.error as error:
            raise DeltaError(str(error)) from None
        if (
            kind not in (SUBTRACT, XOR)
            or width not in WIDTHS
            or size % width
            or bias_log2 >= 8 * width
            or chunk_log2 > CHUNK_LOG2_MAX
        ):
            raise DeltaError(f"its header {kind}, {width}, {bias_log2}, {chunk_log2} is none")
        self._kind, self._type, self._size = kind, _TYPES[width], size
        self._bias = self._type.type(1 << bias_log2)
        self.step = width << chunk_log2
        self._frames = _frames(stored, -(-size // self.step))
        self._words: _Words = np.empty(0, self._type)

    def fold(self, low: int, base: memoryview, made: memoryview) -> None:
        """Put bytes *low* and following of the version into *made*, those of *base* being below."""
        step, width, done = self.step, self._type.itemsize, 0
        while done < len(made):
            number = (low + done) // step
            skipped = low + done - number * step
            count = min(step - skipped, len(made) - done)
            planes = self._chunk(number)
            below, target = base[done : done + count], made[done : done + count]
            if not self._joined(planes, skipped // width, below, target):
                self._fold(planes, skipped // width, below, target)
            done += count

    def _joined(self, planes: bytes, start: int, base: memoryview, made: memoryview) -> bool:
        """Do the work of :meth:`_fold` in one pass over memory, where there is a compiled twin."""
        twin = native.twin
        if twin is None:
            return False
        width, is_xor = self._type.itemsize, self._kind == XOR
        return bool(twin.fold_planes(planes, width, start, is_xor, int(self._bias), base, made))

    def _fold(self, planes: bytes, start: int, base: memoryview, made: memoryview) -> None:
        width = self._type.itemsize
        count = len(planes) // width
        if len(self._words) < count:
            self._words = np.empty(count, self._type)
        words = self._words[:count]
        for place in range(width):
            part = memoryview(planes)[place * count : (place + 1) * count]
            spread_plane(part, place, width, 0, words)
        target, below = np.frombuffer(made, self._type), np.frombuffer(base, self._type)
        words = words[start : start + len(target)]
        if self._kind == SUBTRACT:
            np.subtract(words, self._bias, out=words)
            np.add(below, words, out=target)
        else:
            np.bitwise_xor(below, words, out=target)

    def _chunk(self, number: int) -> bytes:
        """The planes of the differences of a chunk, one after another."""
        size = min(self.step, self._size - number * self.step)
        reader = FrameReader(self._frames[number])
        try:
            planes = reader.take(size)
            reader.finish()
        except UnpackError as error:
            raise DeltaError(f"a chunk of {size} bytes: {error}") from None
        return planes


def _frames(stored: memoryview, count: int) -> list[memoryview]:
    """The compressed chunks, *count* of them."""
    start = HEADER.size + count * _LENGTH.itemsize
    if len(stored) < start:
        raise DeltaError(f"{len(stored)} bytes have no lengths of {count} chunks")
    lengths = np.frombuffer(stored, _LENGTH, count, HEADER.size).tolist()
    if start + sum(lengths) != len(stored):
        raise DeltaError(f"{count} chunks end at {start + sum(lengths)} of {len(stored)} bytes")
    ends = list(accumulate(lengths, initial=start))
    return [stored[low:high] for low, high in pairwise(ends)]


# --- choosing -------------------------------------------------------------------------------------


def _choose(words: _Words, other: _Words) -> Method | None:
    """The method that takes least of a sample; None when none is worth it."""
    one, two = _sampled(words), _sampled(other)
    biases = range(7, 8 * words.dtype.itemsize, 8)
    methods = [*(Method(SUBTRACT, bias) for bias in biases), Method(XOR, 0)]
    best = min(methods, key=lambda method: _size(one, two, method))
    both = best, best._replace(is_dense=True)
    best = min(both, key=lambda method: _size(one, two, method))
    return best if _size(one, two, best) <= _WORTH * one.nbytes + HEADER.size else None


def _size(words: _Words, other: _Words, method: Method) -> int:
    """The compressed bytes of a sample."""
    return len(_compressed(_planes(words, other, method), words.dtype.itemsize, method))


def _compressed(planes: memoryview, width: int, method: Method) -> bytes:
    names = zstd_module().CompressionParameter
    options = {names.compression_level: _DENSE}
    if not method.is_dense:
        options = {names.compression_level: _FAST, names.min_match: _MATCH}
    return compress_planes(planes, width, options)


def _sampled(words: _Words) -> _Words:
    """Some runs of elements from all over."""
    if len(words) <= _SAMPLES * _SAMPLE:
        return words
    starts = np.linspace(0, len(words) - _SAMPLE, _SAMPLES).astype(np.int64)
    return np.concatenate([words[start : start + _SAMPLE] for start in starts.tolist()])


# --- planes ---------------------------------------------------------------------------------------


def _planes(words: _Words, other: _Words, method: Method) -> memoryview:
    """The differences of a chunk as planes."""
    if method.kind == SUBTRACT:
        part = words - other
        part += words.dtype.type(1 << method.bias_log2)
    else:
        part = words ^ other
    return split_planes(part, words.dtype.itemsize)
