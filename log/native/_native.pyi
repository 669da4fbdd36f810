from typing import Any

VERSION: str
INTERFACE: int
HAS_XXHASH: bool
CONSTANTS: dict[str, int | bytes]

def check64(data: bytes, seed: int = 0) -> int: ...
def digest128(data: bytes) -> bytes: ...
def encode_batch(
    records: Any, start: Any, extra: Any, commit_id: bytes
) -> tuple[Any, ...] | None: ...
def add_versions(
    table: dict[bytes, list[Any]], order: list[bytes], log: list[Any], entries: Any
) -> bool: ...
def pack_tensor(
    key: bytes,
    prepared: Any,
    seen: set[bytes],
    where: dict[bytes, Any],
    packs: list[Any],
    most: int,
    rival: bytes | None = None,
    digests: dict[bytes, bytes] | None = None,
) -> bytes | None: ...
def pack_array(
    name: Any,
    data: Any,
    known: dict[Any, Any],
    seen: set[bytes],
    where: dict[bytes, Any],
    packs: list[Any],
    most: int,
    below: int,
) -> bytes | None: ...
def small_record(
    kind: int, name: Any, data: Any, known: dict[Any, Any], made: type[Any], below: int
) -> Any: ...
