"""Names of tensors, tags and checkpoints: what is allowed, and how any key becomes a part of one.

A name is a key, never a file path. It is 1 to 255 bytes of UTF-8 and may hold ``/`` and ``.``. A
state-dict key that would break a rule is escaped with ``%XX`` per UTF-8 byte, as in URLs; ordinary
keys such as ``layer.0.weight`` are their own escaped form.
"""

from __future__ import annotations

import re
from functools import lru_cache

from mldb.deferred import compiled
from mldb.errors import InvalidNameError, InvalidTypeError

MAX_NAME_BYTES = 255

# What nearly all names look like; no rule below can break one that is short enough.
_CONTROL = r"[\x00-\x1f\x7f-\x9f]"
_SURROGATE = r"[\ud800-\udfff]"
_MUST_ESCAPE = r"[/%\\\x00-\x1f\x7f-\x9f\ud800-\udfff]|^\.|\.\Z"
_EMPTY_KEY = "%"  # a lone percent sign is no escape sequence, so it can stand for the empty key
_ALLOWED = (
    "A name is 1 to 255 bytes of UTF-8 without control characters, backslashes or '.' and '..' "
    "components, and neither starts with '/' nor ends with '.'; for example 'layer1/weight'."
)
_CACHE_LIMIT = 16_384

# Only ever read, added to or emptied as a whole, so threads need no lock.
_known: dict[str, bytes] = {}


def check_name(name: str) -> bytes:
    """Return *name* as its UTF-8 key.

    Raises InvalidTypeError when it is no string, InvalidNameError when it breaks a rule.
    Thread-safe; names are remembered, so a repeated one costs one dictionary lookup.
    """
    if type(name) is str:
        key = _known.get(name)
        if key is not None:
            return key
    return _check_new_name(name)


@lru_cache(maxsize=8192)
def escape_key(key: str) -> str:
    """Return *key* as one component of a name (no ``/``). No two keys give the same one.

    Escaped are ``/``, ``%``, backslash, control characters, lone surrogates, and a leading or
    trailing ``.``. The empty key becomes ``%``. The 255-byte limit is not checked here.
    """
    if not key:
        return _EMPTY_KEY
    if compiled(_MUST_ESCAPE).search(key) is None:
        return key
    return compiled(_MUST_ESCAPE).sub(_percent, key)


def _check_new_name(name: str) -> bytes:
    if type(name) is str and len(name) <= MAX_NAME_BYTES and _is_plain(name):
        return _remember(name)
    if not isinstance(name, str):
        raise InvalidTypeError(
            f"a name must be a str, not {type(name).__name__}: {_shown(name)}. Nothing was changed."
        )
    rule = _broken_rule(name)
    if rule is not None:
        raise InvalidNameError(f"name {_shown(name)} {rule}. {_ALLOWED} Nothing was changed.")
    return _remember(str(name))


def _is_plain(name: str) -> bool:
    """Whether it is words of ASCII with dots and slashes between; a pattern takes long to make."""
    words = name.replace("/", ".").split(".")
    letters = "".join(words).replace("_", "0").replace("-", "0")
    return all(words) and letters.isascii() and letters.isalnum()


def _remember(name: str) -> bytes:
    key = name.encode()
    if len(_known) >= _CACHE_LIMIT:
        _known.clear()
    _known[name] = key
    return key


def _broken_rule(name: str) -> str | None:
    if not name:
        return "is empty"
    if compiled(_SURROGATE).search(name):
        return "holds a lone surrogate, which UTF-8 cannot express"
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        return f"is {size} bytes long, the limit is {MAX_NAME_BYTES}"
    if compiled(_CONTROL).search(name):
        return "holds a control character"
    if "\\" in name:
        return "holds a backslash"
    if name.startswith("/"):
        return "starts with '/'"
    components = name.split("/")
    if "." in components or ".." in components:
        return "has '.' or '..' as a component"
    if name.endswith("."):
        return "ends with '.'"
    return None


def _shown(name: object) -> str:
    # Slicing first keeps the message cheap for a name of many megabytes.
    text = repr(name[:80]) if isinstance(name, str) else repr(name)
    return text[:80]


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))
