"""The site builds offline with warnings as errors, and its pages fetch nothing from elsewhere.

Links between pages and to anchors are checked by the build itself; a test shows that they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import mldb
from mldb.tools import dev
from mldb.tools.cli.main import COMMAND_LINES
from tests.support.pages import DOCS, ROOT

pytest.importorskip("zensical", reason="zensical is not installed: pip install -e '.[docs]'")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

CONFIG = ROOT / "mkdocs.yml"
TAGS = r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>"
FETCHING = re.compile(TAGS, re.IGNORECASE)
ELSEWHERE = re.compile(r"""(?:src|href|srcset|data)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)
IN_STYLES = re.compile(r"""url\(\s*["']?\s*(?:https?:)?//|@import\s""", re.IGNORECASE)


def build(folder: Path, docs: Path = DOCS) -> subprocess.CompletedProcess[str]:
    """Build the site of *docs* in *folder*, as ``make docs`` does in the checkout."""
    shutil.copy(CONFIG, folder)
    shutil.copytree(docs, folder / "docs")
    for name in ("mldb", "log", "tools", "compaction", "gpu"):
        (folder / name).symlink_to(ROOT / name)
    (step,) = dev.COMMANDS["docs"]
    # No proxy is there: an attempt to fetch something fails instead of waiting.
    return subprocess.run(
        [sys.executable, *step],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def fetched(path: Path) -> list[str]:
    """What a page or a style sheet takes from another host, when it is opened."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return IN_STYLES.findall(text)
    found = [tag for tag in FETCHING.findall(text) if ELSEWHERE.search(tag)]
    # The theme would fetch the script that draws these.
    return found + re.findall(r'class="[^"]*\bmermaid\b', text) + IN_STYLES.findall(text)


def documented(inventory: Path) -> set[str]:
    """The names that the reference has, of an inventory in the format of Sphinx."""
    packed = inventory.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert done.returncode == 0, done.stdout
    site = tmp_path / "site"
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    wanted = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert wanted <= built
    looked_at = [path for path in site.rglob("*") if path.suffix in {".html", ".css"}]
    assert {str(path): fetched(path) for path in looked_at if fetched(path)} == {}
    names = documented(site / "objects.inv")
    assert [name for name in mldb.__all__ if f"mldb.{name}" not in names] == []
    # Roles of docstrings were taken out.
    page = (site / "reference/database.html").read_text(encoding="utf-8")
    assert ":meth:" not in page
    assert ":class:" not in page


@pytest.mark.slow
def test_a_link_to_nowhere_and_an_anchor_that_is_not_there_fail_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "pages"
    docs.mkdir()
    (docs / "other.md").write_text("# Other\n")
    (docs / "index.md").write_text("# T\n[a](nowhere.md) [b](other.md#none) [c](other.md#other)\n")
    done = build(tmp_path, docs)
    assert done.returncode != 0
    assert "page does not exist" in done.stdout
    assert done.stdout.count("anchor does not exist") == 2  # once above the line, once below it


def test_what_would_be_fetched_is_found(tmp_path: Path) -> None:
    page, style = tmp_path / "a.html", tmp_path / "a.css"
    page.write_text(
        '<a href="https://x.org">x</a><script src="a.js"></script><link href="//x.org/a.css">'
        '<img src="https://x.org/a.png"><svg xmlns="http://www.w3.org/2000/svg"/>'
        '<pre class="mermaid">'
    )
    style.write_text("a{background:url(b.png)} @import 'c'; b{background:url('https://x.org/c')}")
    assert len(fetched(page)) == 3
    assert len(fetched(style)) == 2


def test_every_page_is_in_the_navigation() -> None:
    nav = re.findall(r":\s+(\S+\.md)$", CONFIG.read_text(encoding="utf-8"), re.MULTILINE)
    there = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(nav) == there, "the list `nav` of mkdocs.yml names every page of docs/ once"


def test_every_notebook_is_linked() -> None:
    text = (DOCS / "notebooks/index.md").read_text(encoding="utf-8")
    linked = sorted(re.findall(r"\]\(([^)]+\.ipynb)\)", text))
    assert linked == sorted(path.name for path in DOCS.rglob("*.ipynb"))


def test_the_reference_has_every_command_option_and_error() -> None:
    commands = (DOCS / "reference/command-line.md").read_text(encoding="utf-8")
    assert [name for name in COMMAND_LINES if f"mldb {name}" not in commands] == []
    options = (DOCS / "reference/options.md").read_text(encoding="utf-8")
    fields = mldb.Options.__dataclass_fields__
    assert [name for name in fields if f"`{name}`" not in options] == []
    errors = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    names = [name for name in mldb.__all__ if name.endswith("Error")]
    assert [name for name in names if f"`{name}`" not in errors] == []
