from collections.abc import Iterable
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
def encode_batch(
    records: Any, start: Any, extra: Any, commit_id: bytes
) -> tuple[Any, ...] | None: ...
def add_versions(
    table: dict[bytes, list[Any]],
    order: list[bytes],
    log: list[Any],
    commits: list[Any],
    row: Any,
    entries: Any,
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
def pack_tensors(
    keys: list[bytes],
    prepared: list[Any],
    first: int,
    stop: int,
    seen: set[bytes],
    where: dict[bytes, Any],
    packs: list[Any],
    most: int,
    below: int,
    upper: int,
    view: object,
    digests: dict[bytes, bytes],
) -> tuple[int, int]: ...
def tensor_keys(names: Iterable[Any]) -> list[bytes] | None: ...
def meet_tensors(kinds: tuple[type, ...], tags: tuple[int, ...], depth: int) -> None: ...
def add_items(
    items: Any, start: str, whole: bool, node: list[Any], depth: int, taken: dict[str, Any]
) -> bool: ...
def look_at_tensors(
    named: dict[str, Any],
    asked: tuple[Any, ...],
    known: dict[Any, Any],
    most: int,
) -> tuple[list[int | None], dict[str, Any]]: ...
def pack_array(name: Any, data: Any, room: tuple[Any, ...]) -> bytes | None: ...
def small_record(
    kind: int, name: Any, data: Any, known: dict[Any, Any], made: type[Any], below: int
) -> Any: ...
def is_unchanged(path: bytes, seen: tuple[int, int, int], file: object, size: int) -> bool: ...
def following_view(view: Any, row: Any) -> Any: ...
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
def permute(
    given: Any, out: Any, keys: tuple[int, ...], bases: tuple[int, int], n: int, forward: bool
) -> bool | None: ...
def draw_rows(
    positions: Any, out: Any, seed: int, pass_number: int, block: int, keep: Any, alias: Any
) -> bool | None: ...
def find_items(
    offsets: Any, heap: Any, wanted_offsets: Any, wanted_heap: Any, places: Any, fresh: Any
) -> bool | None: ...
def merge_items(
    offsets: Any,
    heap: Any,
    newer_offsets: Any,
    newer_heap: Any,
    before: Any,
    which: Any,
    made_offsets: Any,
    made_heap: Any,
) -> bool | None: ...
def rows_to_columns(
    rows: list[Any],
    ids: dict[bytes, int],
    numbers: tuple[Any, ...],
    attr: Any,
    flags: Any,
    encoding: Any,
    digest: Any,
) -> bool | None: ...
def items_to_heap(items: list[bytes], offsets: Any, heap: Any, hashes: Any) -> bool | None: ...
