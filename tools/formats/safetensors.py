"""Safetensors files: 8 bytes that say how long the header is, the header as JSON, the tensors.

The format is that of https://github.com/huggingface/safetensors. The tensors follow each other
without a gap, little-endian; ``__metadata__`` of the header maps text to text. Written and read by
hand, so that nothing has to be installed.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import IO, Any, Final

import numpy as np

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError, UsageError
from mldb.log.fs.posix_file import start_writeback
from mldb.tensors.dtypes import dtype_of, itemsize_of
from mldb.tools.formats.tensors import (
    NAME_BYTES_MAX,
    TENSORS_MAX,
    BytesMoved,
    IncomingFile,
    IncomingTensor,
    MappedFile,
    OutgoingTensor,
    chunks_of,
    low_address,
    size_of_shape,
)

HEADER_BYTES_MAX: Final = 100_000_000
"""What the reader of the safetensors package takes."""
METADATA_KEY: Final = "__metadata__"
_LENGTH: Final = struct.Struct("<Q")
_ALIGN: Final = 64
_AXES_MAX: Final = 64
_EARLY: Final = 1 << 20
"""Chunks of so many bytes are on their way to the disk before the file is synced."""
_FP4: Final = "float4_e2m1fn_x2"
_DTYPES: Final = {
    "|b1": "BOOL",
    "|u1": "U8",
    "|i1": "I8",
    "<u2": "U16",
    "<i2": "I16",
    "<u4": "U32",
    "<i4": "I32",
    "<u8": "U64",
    "<i8": "I64",
    "<f2": "F16",
    "<f4": "F32",
    "<f8": "F64",
    "<c8": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    _FP4: "F4",
}
_CODES: Final = {word: code for code, word in _DTYPES.items()}


def safetensors_dtype(code: str) -> str | None:
    """The word that the format has for a dtype of mldb, None where it has none.

    Numbers with the highest byte first are turned, as the format is little-endian.
    """
    return _DTYPES.get("<" + code[1:] if code[:1] == ">" else code)


def write_safetensors(
    file: IO[bytes],
    tensors: Sequence[OutgoingTensor],
    metadata: Mapping[str, str],
    moved: BytesMoved,
) -> None:
    """Write a whole file of dense tensors whose dtypes the format has, wide ones first.

    Raises InvalidTypeError for another dtype, InvalidValueError for a name that the format keeps
    for itself, LimitError for a header that no reader takes.
    """
    ordered = sorted(tensors, key=lambda tensor: (-itemsize_of(tensor.code), tensor.name))
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offset = 0
    for tensor in ordered:
        if tensor.name == METADATA_KEY:
            raise InvalidValueError(
                f"{METADATA_KEY} cannot be the name of a tensor in a safetensors file. Nothing was "
                "written; write .npz, or store it under another name."
            )
        word = safetensors_dtype(tensor.code)
        if word is None:
            raise InvalidTypeError(f"safetensors has no dtype for {tensor.code} ({tensor.name!r})")
        shape = list(tensor.shape)
        if tensor.code == _FP4:
            shape[-1] *= 2
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": word, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGN)
    if len(text) > HEADER_BYTES_MAX:
        raise LimitError(
            f"the header takes {len(text)} bytes, and readers take {HEADER_BYTES_MAX}. Nothing was "
            "written; export fewer tensors (--prefix), or leave metadata out (--no-metadata)."
        )
    file.write(_LENGTH.pack(len(text)) + text)
    at = _LENGTH.size + len(text)
    for tensor in ordered:
        for chunk in chunks_of(tensor.read()):
            file.write(chunk)
            if len(chunk) >= _EARLY:
                # The disk works while the next chunk is read and checked.
                start_writeback(file.fileno(), at, len(chunk))
            at += len(chunk)
            moved(len(chunk))


def read_safetensors(path: str) -> IncomingFile:
    """Return what a safetensors file holds; its tensors are views of it, read when asked.

    Nothing of the file is believed: raises CorruptError for a header that is too long, no JSON, or
    names a tensor twice, for tensors that overlap, leave gaps or end elsewhere than the file, and
    for shapes that are not their bytes; UsageError for a dtype that mldb has not.
    """
    file = MappedFile(path)
    header, start = _header_of(file)
    metadata = header.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise file.damaged(f"{METADATA_KEY} does not map text to text", _LENGTH.size)
    if len(header) > TENSORS_MAX:
        raise LimitError(f"{path} has {len(header)} tensors, more than {TENSORS_MAX}.")
    found, spans = [], []
    for name, stated in header.items():
        word, shape, low, high = _checked_entry(file, name, stated, file.size - start)
        spans.append((low, high, name))
        found.append(_incoming(file, name, word, shape, start + low, start + high))
    _refuse_overlaps(file, spans, file.size - start)
    return IncomingFile(tuple(found), metadata)


def _header_of(file: MappedFile) -> tuple[dict[str, Any], int]:
    if file.size < _LENGTH.size:
        raise file.damaged(f"{file.size} bytes are no safetensors file")
    (length,) = _LENGTH.unpack(file.data[: _LENGTH.size])
    if length > min(HEADER_BYTES_MAX, file.size - _LENGTH.size):
        raise file.damaged(
            f"the header is said to take {length} bytes, of a file of {file.size}; this is no "
            "safetensors file, or the rest of it is missing",
            0,
        )
    start = _LENGTH.size + length
    try:
        text = bytes(file.data[_LENGTH.size : start]).decode("utf-8")
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise file.damaged(f"the header is no JSON: {error!s:.200}", _LENGTH.size) from None
    if not isinstance(header, dict):
        raise file.damaged("the header is no JSON object", _LENGTH.size)
    return header, start


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"{twice[:80]!r} stands there twice")
    return found


def _checked_entry(
    file: MappedFile, name: str, stated: Any, room: int
) -> tuple[str, tuple[int, ...], int, int]:
    shown = repr(name[:80])
    if len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
        raise file.damaged(f"the name {shown} is longer than {NAME_BYTES_MAX} bytes")
    if not isinstance(stated, dict) or not {"dtype", "shape", "data_offsets"} <= stated.keys():
        raise file.damaged(f"{shown} has no dtype, shape and data_offsets")
    word, shape, offsets = stated["dtype"], stated["shape"], stated["data_offsets"]
    if not isinstance(word, str) or word not in _CODES:
        raise UsageError(
            f"{file.path}: {shown} has the dtype {word!r:.40}, which mldb does not store. Nothing "
            "was stored; convert the tensor, or leave it out with --prefix."
        )
    if not _are_counts(shape) or len(shape) > _AXES_MAX:
        raise file.damaged(f"{shown} has no shape of at most {_AXES_MAX} axes")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise file.damaged(f"{shown} lies at {offsets!r:.60}, in {room} bytes of tensors")
    if word == "F4":
        if not shape or shape[-1] % 2:
            raise file.damaged(f"{shown} is F4 with an odd last axis; two values share a byte")
        shape = [*shape[:-1], shape[-1] // 2]
    expected = size_of_shape(tuple(shape), itemsize_of(_CODES[word]))
    if expected != offsets[1] - offsets[0]:
        raise file.damaged(
            f"{shown} of shape {shape!r:.80} and {word} takes {expected} bytes, and "
            f"{offsets[1] - offsets[0]} are there"
        )
    return word, tuple(shape), offsets[0], offsets[1]


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )


def _refuse_overlaps(file: MappedFile, spans: list[tuple[int, int, str]], room: int) -> None:
    end = 0
    for low, high, name in sorted(spans):
        if low != end:
            problem = "overlaps the one before it" if low < end else "leaves a gap before it"
            raise file.damaged(f"{name[:80]!r} {problem}: it starts at {low}, not {end}")
        end = high
    if end != room:
        raise file.damaged(f"the tensors end at {end}, and {room} bytes are there")


def _incoming(
    file: MappedFile, name: str, word: str, shape: tuple[int, ...], low: int, high: int
) -> IncomingTensor:
    code = _CODES[word]
    read = partial(packed_fp4 if code == _FP4 else dense_view, file.data[low:high], code, shape)
    return IncomingTensor(name, word, shape, high - low, read)


def dense_view(data: memoryview, code: str, shape: tuple[int, ...]) -> Any:
    """An array over bytes, which are copied only where they are not aligned."""
    dtype = dtype_of(code)
    if low_address(data) % max(dtype.alignment, 1) and len(data):
        # A foreign file need not align; what reads numbers must have them aligned.
        return np.frombuffer(bytearray(data), dtype).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape) if len(data) else np.empty(shape, dtype)


def packed_fp4(data: memoryview, code: str, shape: tuple[int, ...]) -> Any:
    """A torch tensor of two values to a byte. Raises UsageError without torch."""
    try:
        import torch
    except ImportError:
        raise UsageError(
            "fp4, two values to a byte, is a type of torch alone. Nothing was stored; install it "
            "with: pip install 'mldb[torch]'"
        ) from None
    own = np.frombuffer(bytearray(data), np.uint8).reshape(shape)
    return torch.from_numpy(own).view(getattr(torch, code))
