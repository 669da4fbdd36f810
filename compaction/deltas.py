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
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.compaction.planes import join_planes, split_planes
from mldb.compaction.zstd import compress_planes, zstd_module

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
    """Stored bytes are no delta to this base. Whoever knows the file says where."""


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

    Holds little more than what it returns, however much *stored* would give, unless chunks are as
    large as they may be. Raises DeltaError for bytes that are no delta to a base of this length.
    """
    size = len(base)
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
    other, step = np.frombuffer(base, _TYPES[width]), 1 << chunk_log2
    made = np.empty(len(other), other.dtype)
    method = Method(kind, bias_log2)
    at = 0
    for frame in _frames(stored, -(-len(other) // step)):
        stop = min(at + step, len(other))
        _join(_decompressed(frame, (stop - at) * width), other[at:stop], method, made[at:stop])
        at = stop
    return made.data.cast("B").toreadonly()


def _frames(stored: memoryview, count: int) -> Iterator[memoryview]:
    """Yield the compressed chunks, *count* of them."""
    start = HEADER.size + count * _LENGTH.itemsize
    if len(stored) < start:
        raise DeltaError(f"{len(stored)} bytes have no lengths of {count} chunks")
    lengths = np.frombuffer(stored, _LENGTH, count, HEADER.size).tolist()
    if start + sum(lengths) != len(stored):
        raise DeltaError(f"{count} chunks end at {start + sum(lengths)} of {len(stored)} bytes")
    for length in lengths:
        yield stored[start : start + length]
        start += length


def _decompressed(frame: memoryview, size: int) -> bytes:
    """The planes of one chunk, of *size* bytes, however much the frame would give."""
    zstd = zstd_module()
    try:
        decompressor = zstd.ZstdDecompressor()
        plain: bytes = decompressor.decompress(frame, max_length=size + 1)
    except (zstd.ZstdError, ValueError, EOFError) as error:
        raise DeltaError(str(error)) from None
    if len(plain) != size or not decompressor.eof or decompressor.unused_data:
        raise DeltaError(f"a chunk of {size} bytes gives {len(plain)} or more")
    return plain


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


def _join(planes: bytes, other: _Words, method: Method, made: _Words) -> None:
    """Make the words of a chunk whose differences to *other* these planes are."""
    join_planes(planes, other.dtype.itemsize, made)
    if method.kind == SUBTRACT:
        np.subtract(made, other.dtype.type(1 << method.bias_log2), out=made)
        np.add(made, other, out=made)
    else:
        np.bitwise_xor(made, other, out=made)
