"""Every code block of README.md and of docs/ runs as it stands; what is not run says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import (
    README,
    RUN,
    SHOWN,
    Block,
    blocks,
    page_id,
    pages,
    run_page,
)

README_LINES_MAX = 80


def test_blocks_are_found_with_their_lines_and_titles() -> None:
    text = (
        "# T\n```python\na = 1\nb = 2\n```\ntext\n```sh\nls\n```\n"
        '```python title="train.py"\nc\n```\n'
    )
    assert list(blocks(text)) == [
        Block("python", "", "a = 1\nb = 2\n", 3),
        Block("sh", "", "ls\n", 8),
        Block("python", "train.py", "c\n", 11),
    ]
    with pytest.raises(ValueError, match="line 2"):
        list(blocks("text\n```python no_run\na\n```\n"))


def test_titles_say_what_becomes_of_a_block() -> None:
    reason, missing, present, file = (
        Block("python", title, "", 1)
        for title in ("not run: no disk", "needs no_such_thing 3", "needs numpy", "train.py")
    )
    assert (reason.reason, missing.reason) == ("no disk", None)
    assert (missing.missing, present.missing) == ("no_such_thing", None)
    assert (file.file, reason.file) == ("train.py", None)


def test_blocks_run_in_order_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="part.py"\nimport sys\nprint(sys.argv[1])\n```\n'
        "```python\na = 1\n```\n"
        "```sh\npython part.py 5 > said\n```\n"
        '```python title="not run: it raises"\nraise ValueError\n```\n'
        '```python title="needs no_such_thing"\nraise ValueError\n```\n'
        "```python\nfrom pathlib import Path\n"
        "assert Path('said').read_text() == f'{a + 4}\\n'\n```\n"
    )
    folder, tools = _folders(tmp_path, monkeypatch)
    assert run_page(page, folder, tools) == ["line 15: no_such_thing is not installed"]
    monkeypatch.setattr("tests.support.pages.page_id", str)
    page.write_text("```sh\nmldb ls nowhere\n```\n")
    with pytest.raises(AssertionError, match=r"line 2: exit status 2(.|\n)*nowhere"):
        run_page(page, folder, tools)


def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    folder, tools = tmp_path / "folder", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    monkeypatch.chdir(folder)
    return folder, tools


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = run_page(page, *_folders(tmp_path, monkeypatch))
    if left_out:
        pytest.skip(f"the rest ran; {'; '.join(left_out)}")


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_every_fence_is_read(page: Path) -> None:
    """A fence that stands elsewhere than at the margin, or is not closed, would not be run."""
    text = page.read_text(encoding="utf-8")
    found = list(blocks(text))
    assert 2 * len(found) == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    unknown = [block for block in found if block.language not in RUN | SHOWN]
    assert unknown == [], "a block has a language: python, sh, sql or text"
    assert [block for block in found if block.reason is not None and not block.reason.strip()] == []


def test_readme_fits_a_screen() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES_MAX


def test_links_of_the_readme_lead_to_files() -> None:
    """The build of the site checks those of docs/."""
    targets = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (README.parent / target).exists()] == []
