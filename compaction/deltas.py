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
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.compaction.zstd import zstd_module

_LEVEL: Final = 1
WIDTHS: Final = (1, 2, 4, 8)
HEADER: Final = struct.Struct("<BBBB")
SUBTRACT: Final = 1
XOR: Final = 2

CHUNK_LOG2: Final = 16
"""Elements whose planes stand together: so many stay in the cache while they are joined."""
CHUNK_LOG2_MAX: Final = 24
_SAMPLE: Final = 1 << 15
_SAMPLES: Final = 4
_WORTH: Final = 0.95
_TYPES: Final = {width: np.dtype(f"<u{width}") for width in WIDTHS}

_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.unsignedinteger[Any]]


class DeltaError(ValueError):
    """Stored bytes are no delta to this base. Whoever knows the file says where."""


class Method(NamedTuple):
    """How the difference was taken: SUBTRACT or XOR, and the exponent of the bias, 0 for none."""

    kind: int
    bias_log2: int


def encode_delta(data: memoryview, base: memoryview, width: int) -> bytes | None:
    """Return *data* as the difference to *base*, or None when that is not 5 % smaller than *data*.

    *width*: bytes of a number, of which elements consist: 1, 2, 4 or 8; others count as 1, as do
    lengths that are no multiple. Any thread; holds about twice the bytes of *data* meanwhile.
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
    zstd = zstd_module()
    planes = _planes(words, other, method)
    packed: bytes = zstd.compress(planes, _LEVEL)
    if len(packed) + HEADER.size > _WORTH * len(data):
        return None
    return HEADER.pack(method.kind, width, method.bias_log2, CHUNK_LOG2) + packed


def decode_delta(stored: memoryview, base: memoryview) -> memoryview:
    """Return the bytes that :func:`encode_delta` was given, read-only and as long as *base*.

    Holds about three times the bytes of *base* meanwhile, however much *stored* would give. Raises
    DeltaError for bytes that are no delta to a base of this length.
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
    zstd = zstd_module()
    try:
        decompressor = zstd.ZstdDecompressor()
        plain: bytes = decompressor.decompress(stored[HEADER.size :], max_length=size + 1)
    except (zstd.ZstdError, ValueError, EOFError) as error:
        raise DeltaError(str(error)) from None
    if len(plain) != size or not decompressor.eof:
        raise DeltaError(f"{len(plain)} bytes or more came out, the base has {size}")
    other = np.frombuffer(base, _TYPES[width])
    planes = np.frombuffer(plain, np.uint8)
    return _joined(planes, other, Method(kind, bias_log2), 1 << chunk_log2)


# --- choosing -------------------------------------------------------------------------------------


def _choose(words: _Words, other: _Words) -> Method | None:
    """The method that takes least of a sample; None when none is worth it."""
    one, two = _sampled(words), _sampled(other)
    biases = range(7, 8 * words.dtype.itemsize, 8)
    methods = [*(Method(SUBTRACT, bias) for bias in biases), Method(XOR, 0)]
    zstd = zstd_module()
    sizes = [len(zstd.compress(_planes(one, two, method), _LEVEL)) for method in methods]
    best = sizes.index(min(sizes))
    return methods[best] if sizes[best] <= _WORTH * one.nbytes + HEADER.size else None


def _sampled(words: _Words) -> _Words:
    """Some runs of elements from all over."""
    if len(words) <= _SAMPLES * _SAMPLE:
        return words
    starts = np.linspace(0, len(words) - _SAMPLE, _SAMPLES).astype(np.int64)
    return np.concatenate([words[start : start + _SAMPLE] for start in starts.tolist()])


# --- planes ---------------------------------------------------------------------------------------


def _planes(words: _Words, other: _Words, method: Method) -> memoryview:
    """The differences as planes, chunk by chunk."""
    width, count = words.dtype.itemsize, len(words)
    made = np.empty(words.nbytes, np.uint8)
    step = 1 << CHUNK_LOG2
    room = np.empty(min(step, count), words.dtype)
    bias = words.dtype.type(1 << method.bias_log2 if method.kind == SUBTRACT else 0)
    for start in range(0, count, step):
        stop = min(start + step, count)
        part = room[: stop - start]
        if method.kind == SUBTRACT:
            np.subtract(words[start:stop], other[start:stop], out=part)
            np.add(part, bias, out=part)
        else:
            np.bitwise_xor(words[start:stop], other[start:stop], out=part)
        table = made[start * width : stop * width].reshape(width, -1)
        table[...] = part.view(np.uint8).reshape(-1, width).T
    return made.data


def _joined(planes: _Bytes, other: _Words, method: Method, step: int) -> memoryview:
    """The words whose differences to *other* these planes are."""
    width, count = other.dtype.itemsize, len(other)
    made = np.empty(count, other.dtype)
    bias = other.dtype.type(1 << method.bias_log2)
    for start in range(0, count, step):
        stop = min(start + step, count)
        part = made[start:stop]
        columns = part.view(np.uint8).reshape(-1, width)
        table = planes[start * width : stop * width].reshape(width, -1)
        for place in range(width):
            columns[:, place] = table[place]
        if method.kind == SUBTRACT:
            np.subtract(part, bias, out=part)
            np.add(part, other[start:stop], out=part)
        else:
            np.bitwise_xor(part, other[start:stop], out=part)
    return made.data.cast("B").toreadonly()
