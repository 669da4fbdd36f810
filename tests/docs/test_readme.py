"""The Python in README.md is run as it stands: its blocks in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"

_FENCE = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[str]:
    """Return the blocks, each moved down to its own line, so that a traceback names that line."""
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match.group(1)
        for match in _FENCE.finditer(text)
    ]


def test_blocks_are_found_with_their_lines() -> None:
    text = "# T\n```python\na = 1\nb = 2\n```\ntext\n```sh\nls\n```\n```python\nc = a\n```\n"
    assert python_blocks(text) == ["\n\na = 1\nb = 2\n", "\n" * 10 + "c = a\n"]


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text(encoding="utf-8")
    blocks = python_blocks(text)
    assert blocks, "README.md has no python block"
    assert len(blocks) == len(re.findall(r"^\s*```\s*python", text, re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)  # noqa: S102
