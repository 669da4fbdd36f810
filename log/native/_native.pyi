from typing import Any

VERSION: str
INTERFACE: int
HAS_XXHASH: bool
CONSTANTS: dict[str, int | bytes]

def check64(data: bytes, seed: int = 0) -> int: ...
def digest128(data: bytes) -> bytes: ...
def gather_rows(
    tables: tuple[Any, ...],
    rows: Any,
    out: Any,
    numbers: int,
    size: int,
    blocks: tuple[Any, ...] | None = None,
) -> bool | None: ...
def permute(
    given: Any, out: Any, keys: tuple[int, ...], bases: tuple[int, int], n: int, forward: bool
) -> bool | None: ...
def draw_rows(
    positions: Any, out: Any, seed: int, pass_number: int, block: int, keep: Any, alias: Any
) -> bool | None: ...
def fold_planes(
    planes: bytes, width: int, start: int, is_xor: bool, bias: int, base: object, made: object
) -> bool | None: ...
