"""Things done in threads of their own, which must come to an end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 20


def in_thread(act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Run *act* in a thread of its own; return or raise what it does."""
    outcome: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(act(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]
    return outcome[0]
