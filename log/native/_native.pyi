from typing import Any

import numpy as np

VERSION: str
INTERFACE: int
HAS_XXHASH: bool
CONSTANTS: dict[str, int | bytes]

def check64(data: bytes, seed: int = 0) -> int: ...
def digest128(data: bytes) -> bytes: ...
def fold_planes(
    planes: bytes, width: int, start: int, is_xor: bool, bias: int, base: object, made: object
) -> bool | None: ...
def are_as_long(one: object, size: int, two: object, other: int) -> bool: ...
def meet(
    kinds: tuple[type, type, type, type, type],
    learns_from: int,
    keys: dict[str, bytes],
    plain: dict[bytes, tuple[tuple[int, ...], np.dtype[Any], int]],
) -> None: ...
def read(scope: object, name: str, grain: int) -> np.ndarray[Any, Any] | None: ...
def read_as_of(
    source: object, view: object, as_of: object, name: str, grain: int
) -> np.ndarray[Any, Any] | None: ...
