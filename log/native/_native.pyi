from typing import Any

VERSION: str
INTERFACE: int
HAS_XXHASH: bool
CONSTANTS: dict[str, int | bytes]

def check64(data: bytes, seed: int = 0) -> int: ...
def digest128(data: bytes) -> bytes: ...
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
