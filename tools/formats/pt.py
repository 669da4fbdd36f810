"""Files of ``torch.save``: a zip archive of storages, and a pickle that says what views them.

Nothing is unpickled: see :mod:`mldb.tools.formats.pt_pickle`. Storages lie in the archive as they
are, so that a tensor is a view of the file's mapping. Files from before torch 1.6 are one pickle
and no archive, and are refused.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError, UsageError
from mldb.tensors.dtypes import dtype_of, itemsize_of
from mldb.tools.formats.npy import ZIP_ERRORS, stored_member
from mldb.tools.formats.pt_names import StoredTensor
from mldb.tools.formats.pt_pickle import ForeignNameError, UnreadablePickleError, read_pickle
from mldb.tools.formats.safetensors import dense_view, packed_fp4
from mldb.tools.formats.tensors import (
    CHUNK,
    NAME_BYTES_MAX,
    TENSORS_MAX,
    IncomingFile,
    IncomingTensor,
    MappedFile,
    size_of_shape,
)

PROGRAM_BYTES_MAX: Final = 64 << 20
"""What the pickle may take, without the storages; about 200 bytes of it are one tensor."""
_PROGRAM: Final = "data.pkl"
_DEPTH_MAX: Final = 100
_VALUES_MAX: Final = 4 * TENSORS_MAX
_NAMES_BYTES_MAX: Final = 256 << 20
_LEAST_LIMIT: Final = 1 << 30
_RATIO: Final = 20
_FP4: Final = "float4_e2m1fn_x2"
_AS_SAVED: Final = (
    "Nothing was stored. Load the file where it was made and is trusted, and write its tensors "
    "anew: torch.save(model.state_dict(), path), or safetensors.torch.save_file."
)


def read_pt(path: str, *, limit: int | None = None) -> IncomingFile:
    """Return the tensors of a file of ``torch.save``, under the keys that lead to them.

    The keys of nested dicts and lists are joined with ``/``; a tensor alone is called as its file.
    Tensors that share a storage and its layout (tied weights) share one view. Numbers, texts and
    None beside the tensors are in ``left_out``. *limit* bounds the bytes of tensors that repeat
    their elements (``expand``) all together; None: 20 times the file, or 1 GiB where that is more.

    Raises CorruptError for what is no such archive or lies, InvalidTypeError that names a class or
    function the file asks for (sparse and quantized tensors among them), UsageError for files of
    old versions, LimitError, InvalidValueError for names that clash.
    """
    archive = _Archive(MappedFile(path))
    root = archive.program()
    found: dict[str, IncomingTensor] = {}
    left_out: list[str] = []
    views: dict[StoredTensor, IncomingTensor] = {}
    alone = os.path.basename(path).rpartition(".")[0] or "tensor"
    for name, value in _leaves(archive.file, root, alone):
        if not isinstance(value, StoredTensor):
            left_out.append(name)
            continue
        if name in found:
            raise InvalidValueError(
                f"{path}: two tensors are both called {name[:80]!r}. Nothing was stored."
            )
        if len(found) >= TENSORS_MAX:
            raise LimitError(f"{path} has more than {TENSORS_MAX} tensors.")
        known = views.get(value)
        if known is None:
            known = views[value] = archive.tensor(name, value)
        found[name] = IncomingTensor(name, known.dtype, known.shape, known.nbytes, known.read)
    archive.refuse_growth(views, limit)
    return IncomingFile(tuple(found.values()), {}, tuple(left_out))


def _leaves(file: MappedFile, root: Any, alone: str) -> Iterator[tuple[str, Any]]:
    """Yield what is no container with its name, in the order of the file."""
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    seen = named = 0
    while waiting:
        name, value, depth = waiting.pop()
        if type(value) is dict:
            items = [(str(key), item) for key, item in value.items()]
        elif type(value) is list or type(value) is tuple:
            items = [(str(number), item) for number, item in enumerate(value)]
        else:
            yield name or alone, value
            continue
        seen += len(items)
        if seen > _VALUES_MAX or depth > _DEPTH_MAX or named > _NAMES_BYTES_MAX:
            raise LimitError(
                f"{file.path} has more than {_VALUES_MAX} values, nests them deeper than "
                f"{_DEPTH_MAX}, or names them with more than {_NAMES_BYTES_MAX} bytes. Nothing was "
                "stored."
            )
        for key, item in reversed(items):
            whole = f"{name}/{key}" if name else key
            if len(whole.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
                raise file.damaged(f"a name is longer than {NAME_BYTES_MAX} bytes")
            named += len(whole)
            waiting.append((whole, item, depth + 1))


@dataclass(slots=True)
class _Archive:
    """The members of the archive, by their names without the folder that they all lie in."""

    file: MappedFile
    _members: dict[str, zipfile.ZipInfo] = field(default_factory=dict)
    _root: str = ""
    _checked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        file = self.file
        try:
            with zipfile.ZipFile(file.path) as archive:
                infos = archive.infolist()
        except ZIP_ERRORS as error:
            if bytes(file.data[:1]) == b"\x80":
                raise UsageError(
                    f"{file.path} is a bare pickle, as torch wrote before 1.6, and mldb never "
                    f"unpickles. {_AS_SAVED}"
                ) from None
            raise file.damaged(f"this is no archive of torch.save: {error!s:.200}") from None
        if len(infos) > 2 * TENSORS_MAX:
            raise LimitError(f"{file.path} has {len(infos)} members, too many.")
        for info in infos:
            if info.filename in self._members:
                raise file.damaged(f"the member {info.filename[:80]!r} stands there twice")
            self._members[info.filename] = info
        programs = [name for name in self._members if name.split("/")[1:] == [_PROGRAM]]
        if len(programs) != 1:
            raise file.damaged(f"this is no archive of torch.save: {len(programs)} {_PROGRAM}")
        self._root = programs[0].removesuffix(_PROGRAM)
        if f"{self._root}constants.pkl" in self._members:
            raise UsageError(f"{file.path} is a TorchScript archive, which holds code. {_AS_SAVED}")
        order = self._bytes("byteorder") if f"{self._root}byteorder" in self._members else b"little"
        if order != b"little":
            raise UsageError(f"{file.path} was written with the highest byte first. {_AS_SAVED}")

    def _bytes(self, name: str) -> memoryview | bytes:
        """The bytes of a member, whose checksum is looked at once."""
        info = self._members.get(self._root + name)
        if info is None:
            raise self.file.damaged(f"the member {name[:80]!r} is missing")
        data = stored_member(self.file, info)
        # torch may be told to leave checksums out, and writes a zero for each then.
        if info.CRC and name not in self._checked:
            found = 0
            for low in range(0, len(data), CHUNK):
                found = zlib.crc32(data[low : low + CHUNK], found)
            if found != info.CRC:
                raise self.file.damaged(
                    f"the checksum of {info.filename[:80]!r} is wrong", info.header_offset
                )
            self._checked.add(name)
        return data

    def program(self) -> Any:
        """What the file holds, with descriptions in the place of tensors."""
        if self._members[self._root + _PROGRAM].file_size > PROGRAM_BYTES_MAX:
            raise LimitError(
                f"{self.file.path}: its {_PROGRAM} takes more than {PROGRAM_BYTES_MAX} bytes."
            )
        try:
            return read_pickle(memoryview(self._bytes(_PROGRAM)))
        except ForeignNameError as error:
            raise InvalidTypeError(
                f"{self.file.path} asks for {error!s:.200}, which is no tensor, number, text, list "
                f"or dict, and mldb runs nothing of a file. {_AS_SAVED}"
            ) from None
        except UnreadablePickleError as error:
            raise self.file.damaged(
                f"{_PROGRAM} cannot be read at its byte {error.at}: {error.problem}"
            ) from None

    def tensor(self, name: str, stored: StoredTensor) -> IncomingTensor:
        """A tensor whose bytes are looked for now and read when asked."""
        itemsize = itemsize_of(stored.code)
        key = f"data/{stored.storage.key}"
        info = self._members.get(self._root + key)
        if info is None:
            raise self.file.damaged(f"the storage {key[:80]!r} of {name[:80]!r} is missing")
        stated = stored.storage.elements * (
            1 if stored.storage.code is None else itemsize_of(stored.storage.code)
        )
        data = stored_member(self.file, info)
        nbytes = size_of_shape(stored.shape, itemsize)
        reach = (
            stored.offset
            + 1
            + sum(
                (axis - 1) * stride
                for axis, stride in zip(stored.shape, stored.strides, strict=True)
            )
        )
        if stated != len(data) or (nbytes and reach * itemsize > len(data)):
            raise self.file.damaged(
                f"{name[:80]!r} reaches beyond its storage, or that is not {stated} bytes",
                info.header_offset,
            )
        read = partial(self._read, key, stored)
        return IncomingTensor(name, stored.code, stored.shape, nbytes, read)

    def _read(self, key: str, stored: StoredTensor) -> Any:
        data = memoryview(self._bytes(key))
        itemsize = itemsize_of(stored.code)
        low = stored.offset * itemsize
        if is_in_order(stored):
            part = data[low : low + size_of_shape(stored.shape, itemsize)]
            make = packed_fp4 if stored.code == _FP4 else dense_view
            return make(part, stored.code, stored.shape)
        if stored.code == _FP4:
            raise InvalidTypeError(f"{self.file.path}: fp4 with strides is not read. {_AS_SAVED}")
        return _strided(data[low:], stored, itemsize)

    def refuse_growth(self, views: dict[StoredTensor, IncomingTensor], limit: int | None) -> None:
        """A stride of zero makes a few bytes as large as one likes."""
        if limit is None:
            limit = max(_LEAST_LIMIT, _RATIO * self.file.size)
        grown = sum(tensor.nbytes for stored, tensor in views.items() if not is_in_order(stored))
        if grown > limit:
            raise LimitError(
                f"{self.file.path}: its tensors repeat their elements to {grown} bytes, and "
                f"{limit} are allowed. Nothing was stored; if that is meant, raise --max-bytes."
            )


def is_in_order(stored: StoredTensor) -> bool:
    """Whether the elements follow each other as the shape says, with nothing between them."""
    expected = 1
    for axis, stride in zip(reversed(stored.shape), reversed(stored.strides), strict=True):
        if axis > 1 and stride != expected:
            return 0 in stored.shape
        expected *= axis
    return True


def _strided(data: memoryview, stored: StoredTensor, itemsize: int) -> npt.NDArray[Any]:
    count = len(data) // itemsize
    flat = dense_view(data[: count * itemsize], stored.code, (count,))
    dtype = dtype_of(stored.code)
    # A view; storing it copies it in order. Where an axis has one element its stride may be any.
    strides = tuple(
        stride * itemsize if axis > 1 else itemsize
        for axis, stride in zip(stored.shape, stored.strides, strict=True)
    )
    return np.ndarray(stored.shape, dtype, buffer=flat, strides=strides)
