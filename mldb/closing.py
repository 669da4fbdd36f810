"""What is used in a ``with`` block and closed at its end."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self


class Closing:
    """A resource that is a context manager: leaving the block closes it, whatever happened."""

    @abstractmethod
    def close(self) -> None:
        """Close; closing twice is harmless."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
