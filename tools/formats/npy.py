"""NumPy's files: npy, one array, and npz, a zip archive of such. NumPy's NEP 1 has the format.

The header of an array is read as a literal and never evaluated; arrays of Python objects are
pickles, and refused. A member of an archive that is stored as it is is read through a mapping of
the file; one that was deflated is decoded in memory, one at a time, within a limit for all of them.
"""

from __future__ import annotations

import ast
import struct
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError, UsageError
from mldb.tensors.dtypes import dtype_of
from mldb.tools.formats.tensors import (
    CHUNK,
    NAME_BYTES_MAX,
    TENSORS_MAX,
    BytesMoved,
    IncomingFile,
    IncomingTensor,
    MappedFile,
    OutgoingTensor,
    low_address,
    size_of_shape,
)

_MAGIC: Final = b"\x93NUMPY"
_HEADER_BYTES_MAX: Final = 10_000
"""What NumPy takes of a file that it does not trust."""
_AXES_MAX: Final = 64
_SUFFIX: Final = ".npy"
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the first that an archive can say: equal exports are equal
ZIP_ERRORS: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(ValueError, LookupError, OverflowError),
    RuntimeError,  # encrypted, or (NotImplementedError) packed in a way that is not known
)
"""What reading an archive raises for one that is damaged."""
_LEAST_LIMIT: Final = 1 << 30
_RATIO: Final = 20


def npy_code(code: str) -> str | None:
    """The dtype that NumPy's files have for one of mldb's: itself, a wider one, or None.

    bfloat16, fp8 and the small integers have none, but every value of theirs is one of float32, of
    complex64, or of int8.
    """
    if code[:1] in "<>|":
        return code
    if code.startswith(("bfloat", "float")) and not code.endswith("_x2"):
        return "<f4"
    if code in ("complex32", "bcomplex32"):
        return "<c8"
    return {"int": "|i1", "uint": "|u1"}.get(code.rstrip("0123456789"))


def write_npy(file: IO[bytes], tensor: OutgoingTensor, moved: BytesMoved) -> None:
    """Write one array as a file. Raises InvalidTypeError for a dtype that has no place in it."""
    code = npy_code(tensor.code)
    if code is None:
        raise InvalidTypeError(f"NumPy's files have no dtype for {tensor.code} ({tensor.name!r})")
    text = f"{{'descr': {code!r}, 'fortran_order': False, 'shape': {tensor.shape!r}, }}".encode()
    text += b" " * (-(len(_MAGIC) + 4 + len(text) + 1) % 64) + b"\n"
    file.write(_MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text)
    flat = np.ascontiguousarray(tensor.read()).reshape(-1)
    step = max(CHUNK // max(flat.itemsize, 1), 1)
    for low in range(0, flat.size, step):
        part = flat[low : low + step]
        if code != tensor.code:
            part = part.astype(dtype_of(code))
        file.write(part.view(np.uint8).data)
        moved(len(flat[low : low + step]) * flat.itemsize)


def write_npz(file: IO[bytes], tensors: Sequence[OutgoingTensor], moved: BytesMoved) -> None:
    """Write an archive of arrays, not compressed, under their names. Raises InvalidTypeError."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for tensor in tensors:
            info = zipfile.ZipInfo(tensor.name + _SUFFIX, _TIME)
            with archive.open(info, "w", force_zip64=True) as member:
                write_npy(member, tensor, moved)


def read_npy(path: str, name: str) -> IncomingFile:
    """Return the array of a file under *name*; a view of it, read when asked.

    Raises CorruptError for what is none, InvalidTypeError for pickled objects and other dtypes.
    """
    file = MappedFile(path)
    found = _array_of(file, name, file.data, 0)
    return IncomingFile((found,), {})


class _Header(NamedTuple):
    code: str
    shape: tuple[int, ...]
    fortran: bool
    start: int
    """Where the bytes begin."""
    nbytes: int


def _array_of(file: MappedFile, name: str, data: memoryview, offset: int) -> IncomingTensor:
    header = _header_in(file, name, bytes(data[: _HEADER_BYTES_MAX + 16]), offset)
    if len(data) - header.start != header.nbytes:
        raise file.damaged(
            f"{name[:80]!r} takes {header.nbytes} bytes, and {len(data) - header.start} are there",
            offset,
        )
    read = partial(_as_array, data[header.start :], header)
    return IncomingTensor(name, header.code, header.shape, header.nbytes, read)


def _header_in(file: MappedFile, name: str, data: bytes, offset: int) -> _Header:
    """Take the header of an array apart, of which *data* are the first bytes."""
    shown = repr(name[:80])
    version = data[6:8]
    if data[:6] != _MAGIC or version not in (b"\x01\x00", b"\x02\x00"):
        raise file.damaged(f"{shown} is no array of version 1 or 2 of NumPy's format", offset)
    size = 2 if version == b"\x01\x00" else 4
    length, start = int.from_bytes(data[8 : 8 + size], "little"), 8 + size
    if length > _HEADER_BYTES_MAX or start + length > len(data):
        raise file.damaged(f"the header of {shown} is said to take {length} bytes", offset)
    try:
        stated = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        descr, fortran, shape = stated["descr"], stated["fortran_order"], stated["shape"]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError) as error:
        what = type(error).__name__
        raise file.damaged(f"the header of {shown} is not understood ({what})", offset) from None
    if not isinstance(descr, str) or descr.lstrip("<>|=")[:1] in ("O", "V"):
        raise InvalidTypeError(
            f"{file.path}: {shown} has the dtype {descr!r:.60}. Python objects are pickled there, "
            "and mldb never unpickles; records and bare bytes have no numbers. Nothing was stored."
        )
    if (
        not isinstance(shape, tuple)
        or len(shape) > _AXES_MAX
        or not all(type(axis) is int and 0 <= axis < 1 << 63 for axis in shape)
        or type(fortran) is not bool
    ):
        raise file.damaged(f"the header of {shown} has no shape or order", offset)
    try:
        itemsize = dtype_of(descr).itemsize
    except InvalidValueError as error:
        raise InvalidTypeError(f"{file.path}: {shown}: {error} Nothing was stored.") from None
    return _Header(descr, shape, fortran, start + length, size_of_shape(shape, itemsize))


def _as_array(data: memoryview | bytes, header: _Header) -> npt.NDArray[Any]:
    dtype = dtype_of(header.code)
    if not header.nbytes:
        return np.empty(header.shape, dtype)
    view = memoryview(data)
    if low_address(view) % max(dtype.alignment, 1):
        view = memoryview(bytearray(view))
    flat = np.frombuffer(view, dtype)
    return flat.reshape(header.shape[::-1]).T if header.fortran else flat.reshape(header.shape)


# --- archives -------------------------------------------------------------------------------------


def read_npz(path: str, *, limit: int | None = None) -> IncomingFile:
    """Return the arrays of an archive, under their names without ``.npy``.

    *limit* bounds what deflated members may grow to, all together; None: 20 times the file, or
    1 GiB where that is more. Raises CorruptError for what is no archive, or holds something else or
    a name twice, LimitError beyond the limit, InvalidTypeError for pickled objects.
    """
    file = MappedFile(path)
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise file.damaged(f"this is no npz archive: {error!s:.200}") from None
    infos = archive.infolist()
    if len(infos) > TENSORS_MAX:
        raise LimitError(f"{path} has {len(infos)} members, more than {TENSORS_MAX}.")
    _refuse_bombs(file, infos, limit)
    found: dict[str, IncomingTensor] = {}
    for info in infos:
        name = info.filename.removesuffix(_SUFFIX)
        if not info.filename.endswith(_SUFFIX) or len(name.encode()) > NAME_BYTES_MAX:
            raise file.damaged(f"the member {info.filename[:80]!r} is no array")
        if name in found:
            raise file.damaged(f"{name[:80]!r} stands there twice")
        found[name] = _member(file, archive, info, name)
    return IncomingFile(tuple(found.values()), {})


def _refuse_bombs(file: MappedFile, infos: list[zipfile.ZipInfo], limit: int | None) -> None:
    if limit is None:
        limit = max(_LEAST_LIMIT, _RATIO * file.size)
    if sum(info.compress_size for info in infos) > file.size:
        raise file.damaged("its members lie on top of each other")  # so one counts many times
    grown = 0
    for info in infos:
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
            raise UsageError(
                f"{file.path}: {info.filename[:80]!r} is encrypted, or packed in a way that mldb "
                "does not read. Nothing was stored."
            )
        if info.compress_type == zipfile.ZIP_DEFLATED:
            grown += info.file_size
        elif info.file_size != info.compress_size:
            raise file.damaged(f"{info.filename[:80]!r} has two sizes")
    if grown > limit:
        raise LimitError(
            f"{file.path}: its members grow to {grown} bytes, and {limit} are allowed for a file "
            f"of {file.size}. Nothing was stored; if that is meant, raise --max-bytes."
        )


def _member(
    file: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> IncomingTensor:
    if info.compress_type == zipfile.ZIP_STORED:
        data = stored_member(file, info)
        found = _array_of(file, name, data, info.header_offset)
        checked = partial(_checked, file, info, data, found.read)
        return IncomingTensor(name, found.dtype, found.shape, found.nbytes, checked)
    head = _unpacked(file, archive, info, _HEADER_BYTES_MAX + 16)
    header = _header_in(file, name, head, info.header_offset)
    if header.start + header.nbytes != info.file_size:
        raise file.damaged(f"{name[:80]!r} has another size than its header says")
    read = partial(_inflated, file, archive, info, header)
    return IncomingTensor(name, header.code, header.shape, header.nbytes, read)


def stored_member(file: MappedFile, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member that is stored as it is. Raises CorruptError, UsageError."""
    if info.flag_bits & _ENCRYPTED or info.compress_type != zipfile.ZIP_STORED:
        raise UsageError(
            f"{file.path}: {info.filename[:80]!r} is encrypted or packed, which is not read here. "
            "Nothing was stored."
        )
    if info.file_size != info.compress_size:
        raise file.damaged(f"{info.filename[:80]!r} has two sizes")
    at = info.header_offset
    head = file.data[at : at + _LOCAL_HEADER.size] if at >= 0 else b""
    if len(head) != _LOCAL_HEADER.size:
        raise file.damaged(f"{info.filename[:80]!r} lies outside of the file")
    magic, names, extra = _LOCAL_HEADER.unpack(head)
    start = at + _LOCAL_HEADER.size + names + extra
    if magic != _LOCAL_MAGIC or start + info.file_size > file.size:
        raise file.damaged(f"{info.filename[:80]!r} lies outside of the file", at)
    return file.data[start : start + info.file_size]


def _checked(
    file: MappedFile, info: zipfile.ZipInfo, data: memoryview, read: Any
) -> npt.NDArray[Any]:
    found = 0
    for low in range(0, len(data), CHUNK):
        found = zlib.crc32(data[low : low + CHUNK], found)
    if found != info.CRC:
        raise file.damaged(f"the checksum of {info.filename[:80]!r} is wrong", info.header_offset)
    array: npt.NDArray[Any] = read()
    return array


def _inflated(
    file: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: _Header
) -> npt.NDArray[Any]:
    data = _unpacked(file, archive, info, info.file_size)
    if len(data) != info.file_size:
        raise file.damaged(f"{info.filename[:80]!r} is cut off")
    return _as_array(memoryview(data)[header.start :], header)


def _unpacked(
    file: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int
) -> bytes:
    """The first *count* bytes of a member."""
    try:
        with archive.open(info) as member:
            return member.read(count)
    except ZIP_ERRORS as error:
        raise file.damaged(f"{info.filename[:80]!r} cannot be unpacked: {error!s:.200}") from None
