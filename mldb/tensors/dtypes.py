"""Stable names ("codes") of element types, shared by NumPy, ml_dtypes and torch.

A code is NumPy's own ``dtype.str`` (``<f4``, ``>i2``, ``|b1``, ``<c16``, ``<M8[ns]``, ``<U3``) or
the ml_dtypes name (``bfloat16``, ``float8_e4m3fn``, ``int4``: at most one element per byte).
One code is torch's alone: ``float4_e2m1fn_x2`` holds two values per byte; NumPy sees ``uint8``.

Refused, because no stable or safe bytes exist for them: object (would need pickle), structured and
void, variable-width strings, and ``longdouble`` where its width depends on the platform.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mldb.deferred import compiled
from mldb.errors import InvalidTypeError, InvalidValueError, MldbError, UsageError

if TYPE_CHECKING:
    import torch

# Known without the pattern, which takes longer to make than to read a tensor.
_USUAL_CODES = frozenset(("|b1", "|i1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8"))
_NUMPY_CODE = (
    r"(?a)\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(?:8|16)|\|S[1-9]\d{0,8}|[<>]U[1-9]\d{0,8}"
    # NumPy ends the process (SIGFPE) when it compares a time dtype of a multiple of 0.
    r"|[<>][mM]8(?:\[(?:[1-9]\d{0,5})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)
# Sizes in bytes stand here so that a descriptor can be checked without importing ml_dtypes.
_EXTENSION_SIZES: Final = {
    "bfloat16": 2,
    "complex32": 4,
    "bcomplex32": 4,
    "float4_e2m1fn": 1,
    "float6_e2m3fn": 1,
    "float6_e3m2fn": 1,
    "float8_e3m4": 1,
    "float8_e4m3": 1,
    "float8_e4m3b11fnuz": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "int1": 1,
    "int2": 1,
    "int4": 1,
    "uint1": 1,
    "uint2": 1,
    "uint4": 1,
}
_PACKED_FP4: Final = "float4_e2m1fn_x2"
_TORCH_LIKE_NUMPY: Final = (
    *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("bool", "float16", "float32", "float64", "complex64", "complex128"),
)
_TORCH_LIKE_ML_DTYPES: Final = (
    *("bfloat16", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", _PACKED_FP4),
)
_CACHE_LIMIT = 4096  # string and datetime codes are without number

# Only ever read, added to or emptied as a whole, so threads need no lock.
_codes: dict[np.dtype[Any], str] = {}
_dtypes: dict[str, np.dtype[Any]] = {}
_torch_of_code: dict[str, torch.dtype] = {}
_code_of_torch: dict[torch.dtype, str] = {}


def dtype_code(dtype: np.dtype[Any]) -> str:
    """Return the code of a NumPy or ml_dtypes *dtype*.

    Raises InvalidTypeError for a dtype that is not stored, with the conversion to use. Thread-safe.
    """
    code = _codes.get(dtype)
    if code is None:
        code = _find_code(dtype)
        if len(_codes) >= _CACHE_LIMIT:
            _codes.clear()
        _codes[dtype] = code
    return code


def dtype_of(code: str) -> np.dtype[Any]:
    """Return the NumPy dtype of *code*.

    Raises InvalidValueError when *code* is none, whatever its type, and UsageError when the
    installed ml_dtypes is too old to know it. Thread-safe.
    """
    try:
        return _dtypes[code]
    except (KeyError, TypeError):
        dtype = _parse_code(code)
    if len(_dtypes) >= _CACHE_LIMIT:
        _dtypes.clear()
    _dtypes[code] = dtype
    return dtype


def itemsize_of(code: str) -> int:
    """Return the bytes of one element of *code*; raises InvalidValueError when it is none."""
    size = _EXTENSION_SIZES.get(code)
    return dtype_of(code).itemsize if size is None else size


def code_of(dtype: Any) -> str:
    """Return the code of whatever names a dtype: NumPy's names and types, ml_dtypes', torch's.

    Raises InvalidTypeError for what names none, or one that is not stored. Thread-safe.
    """
    if type(dtype).__module__ == "torch":
        return code_of_torch(dtype)
    if isinstance(dtype, str):
        name = dtype.removeprefix("torch.")
        # NumPy knows the names of ml_dtypes only once somebody has imported that.
        if name in _EXTENSION_SIZES or name == _PACKED_FP4:
            return name
        dtype = name
    try:
        return dtype_code(np.dtype(dtype))
    except InvalidTypeError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            f"{dtype!r:.80} is no dtype: {error!s:.200}. Give one of NumPy, ml_dtypes or torch, "
            "or the name of one, such as 'float32' or 'bfloat16'."
        ) from None


def torch_dtype(code: str) -> torch.dtype:
    """Return the torch dtype that has exactly the bytes of *code*.

    Raises InvalidTypeError when torch has none, UsageError when torch is not installed.
    """
    _load_torch_tables()
    dtype = _torch_of_code.get(code)
    if dtype is None:
        raise InvalidTypeError(
            f"torch has no dtype for {code!r}. The tensor is stored and readable: read it as a "
            "NumPy array and convert it with astype."
        )
    return dtype


def code_of_torch(dtype: torch.dtype) -> str:
    """Return the code of a torch *dtype*; raises InvalidTypeError for quantised and bit types."""
    _load_torch_tables()
    code = _code_of_torch.get(dtype)
    if code is None:
        raise InvalidTypeError(
            f"{dtype} is not stored. Convert the tensor first: quantised ones with dequantize() "
            "or int_repr() (keep scale and zero point as metadata), others with .to(torch.uint8)."
        )
    return code


def _find_code(dtype: np.dtype[Any]) -> str:
    if dtype.isbuiltin == 2 or dtype.type.__module__ == "ml_dtypes":
        name = dtype.name
        if name in _EXTENSION_SIZES and dtype_of(name) == dtype:
            return name
        raise InvalidTypeError(
            f"dtype {dtype!r} is not stored: only the ml_dtypes types in native byte order are. "
            "Convert it with astype."
        )
    if not _is_code(dtype.str) or dtype.kind == "V":
        raise InvalidTypeError(f"dtype {dtype!r} is not stored: {_why_refused(dtype)}")
    return dtype.str


def _is_code(code: str) -> bool:
    return code in _USUAL_CODES or compiled(_NUMPY_CODE).fullmatch(code) is not None


def _why_refused(dtype: np.dtype[Any]) -> str:
    if dtype.names is not None:
        advice = "store each field under a name of its own, array[field]."
        if dtype.hasobject:
            return f"object arrays would need pickle, which mldb never loads; {advice}"
        return f"structured arrays have no torch or GPU form; {advice}"
    if dtype.kind == "T":
        return "variable-width strings have no flat bytes; convert with astype('U')."
    if dtype.hasobject:
        return (
            "object arrays would need pickle, which mldb never loads; convert with "
            "np.asarray(data, dtype=float) or astype, or store the parts one by one."
        )
    if dtype.kind == "V":
        return "void bytes have no meaning of their own; view them as np.uint8."
    if dtype.kind in "fc":
        return (
            "the width of longdouble depends on the platform, so other machines could not read "
            "it; convert with astype(np.float64) or astype(np.complex128)."
        )
    return "it has no stable bytes; convert it with astype."


def _parse_code(code: object) -> np.dtype[Any]:
    if isinstance(code, str):
        if code in _EXTENSION_SIZES:
            return _extension_dtype(code)
        if code == _PACKED_FP4:
            return np.dtype(np.uint8)
        if _is_code(code):
            try:
                dtype = np.dtype(code)
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidValueError(f"{code!r} is no dtype code of mldb: {error}.") from error
            if dtype.str == code:
                return dtype
    shown = repr(code[:40] if isinstance(code, str) else type(code).__name__)
    raise InvalidValueError(f"{shown} is no dtype code of mldb, such as '<f4' or 'bfloat16'.")


def _extension_dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    scalar = getattr(ml_dtypes, name, None)
    if scalar is None:
        raise UsageError(
            f"the installed ml_dtypes {ml_dtypes.__version__} does not know {name!r}. The tensor "
            "is stored safely; upgrade with: pip install -U ml_dtypes"
        )
    dtype: np.dtype[Any] = np.dtype(scalar)
    return dtype


def _load_torch_tables() -> None:
    if _code_of_torch:
        return
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "PyTorch is not installed, so tensors can only be read as NumPy arrays. Install it "
            "with: pip install 'mldb[torch]'"
        ) from error
    pairs = [(name, np.dtype(name).str) for name in _TORCH_LIKE_NUMPY]
    pairs += [(name, name) for name in _TORCH_LIKE_ML_DTYPES]
    # Older torch lacks some names; what it lacks, no tensor of this process can have.
    found = {code: getattr(torch, name) for name, code in pairs if hasattr(torch, name)}
    _torch_of_code.update(found)
    _code_of_torch.update({dtype: code for code, dtype in found.items()})


def dtype_name(code: str) -> str:
    """Return what NumPy calls a dtype, such as float32; the code where bytes are swapped."""
    if code.startswith(">"):
        return code
    try:
        return str(dtype_of(code).name)
    except MldbError:
        return code  # of a newer ml_dtypes; its own name says as much
