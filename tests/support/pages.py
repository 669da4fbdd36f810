"""Pages of documentation: their fenced blocks, and running these as a reader would.

docs/contributing.md describes the notation, for those who write pages.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
README: Final = ROOT / "README.md"

RUN: Final = frozenset({"python", "sh"})
SHOWN: Final = frozenset({"text", "sql"})
"""Languages whose blocks are only looked at."""

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'^(\w*)(?: title="([^"]*)")?$')
_NOT_RUN: Final = "not run: "
_NEEDS: Final = "needs "
_SHELL_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its title, its text, and the line at which the text begins."""

    language: str
    title: str
    text: str
    line: int

    @property
    def reason(self) -> str | None:
        """Why it is not run; None when it is."""
        return self.title.removeprefix(_NOT_RUN) if self.title.startswith(_NOT_RUN) else None

    @property
    def missing(self) -> str | None:
        """The package that it needs and that is not installed."""
        if not self.title.startswith(_NEEDS):
            return None
        name = self.title.removeprefix(_NEEDS).split()[0].rstrip(":,;")
        return name if importlib.util.find_spec(name) is None else None

    @property
    def file(self) -> str | None:
        """The file that it is, for the blocks behind it: a title like ``train.py``."""
        return self.title if re.fullmatch(r"[\w-]+\.py", self.title) else None


def pages() -> list[Path]:
    """README.md and every page of docs/, in order."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def page_id(page: Path) -> str:
    """The page as a test is named by it."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order. Raises ValueError for a line that is no fence."""
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        head = _TITLE.match(found[1].strip())
        if head is None:
            raise ValueError(f'line {line - 1}: a fence is ```LANGUAGE or ```LANGUAGE title="…"')
        yield Block(head[1], head[2] or "", found[2], line)


def run_page(page: Path, folder: Path, tools: Path) -> list[str]:
    """Run the blocks of a page in *folder*, an empty one; return why some were left out.

    Python runs in one namespace, in this process, whose current folder is *folder*; shell blocks by
    bash, with ``mldb`` and ``python`` those of this installation, which *tools* gets scripts for.
    """
    namespace: dict[str, object] = {"__name__": page.stem.replace("-", "_")}
    left_out = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language not in RUN or block.reason is not None:
            continue
        if block.missing is not None:
            left_out.append(f"line {block.line}: {block.missing} is not installed")
        elif block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # Moved down to its own line, so that a traceback names that line.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec"), namespace)  # noqa: S102
        else:
            _run_shell(page, block, folder, tools)
    return left_out


def _run_shell(page: Path, block: Block, folder: Path, tools: Path) -> None:
    for name, arguments in (("mldb", "-m mldb.tools "), ("python", "")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SHELL_SECONDS,
        check=False,
    )
    if done.returncode:
        where = f"{page_id(page)}, line {block.line}"
        raise AssertionError(
            f"{where}: exit status {done.returncode}\n{block.text}\n{done.stdout}{done.stderr}"
        )
