from typing import Any

VERSION: str
INTERFACE: int
HAS_XXHASH: bool
CONSTANTS: dict[str, int | bytes]

def check64(data: bytes, seed: int = 0) -> int: ...
def digest128(data: bytes) -> bytes: ...
def fold_planes(
    planes: bytes, width: int, start: int, is_xor: bool, bias: int, base: object, made: object
) -> bool | None: ...
def gather_rows(
    tables: tuple[Any, ...],
    rows: Any,
    out: Any,
    numbers: int,
    size: int,
    blocks: tuple[Any, ...] | None = None,
) -> bool | None: ...
def verify_blocks(
    data: Any,
    base: int,
    start: int,
    stop: int,
    log2: int,
    checks: bytes,
    done: bytearray,
    first: int,
    last: int,
    rows: Any = None,
    width: int = 0,
) -> bool | None: ...
