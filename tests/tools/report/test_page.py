"""The page: one file, nothing asked of any network, nothing of a store that acts in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import StorageIOError
from mldb.tools.report.build import ReportMade, ReportSettings, make_report, write_page

VOID = {"meta", "link", "img", "br", "input"}


class Reader(HTMLParser):
    """Elements with their attributes and text; it asserts that they nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        place = self._open[-1] if self._open else ""
        {"script": self.scripts, "style": self.styles}.get(place, self.text).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(hostile_page: ReportMade) -> str:
    return hostile_page.html.decode()


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    return Reader(html)


def test_hostile_names_are_shown_and_do_nothing(html: str, page: Reader) -> None:
    assert page.all("img") == []
    assert page.all("b") == []
    assert len(page.all("script")) == 3
    assert len(page.all("svg")) > 20
    assert "</script><img src=x onerror=alert(1)>" in "".join(page.text)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08]", html)
    assert "y" * 1000 not in html
    known = {attribute for _, attributes in page.tags for attribute in attributes}
    assert not [name for name in known if name.startswith("on") or name == "style"]


def test_nothing_leads_out_of_the_file(html: str, page: Reader) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert set(re.findall(r"https?://[^\s\"'<)]*", html)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert "url(" not in html


def test_the_policy_allows_the_script_that_is_there_and_no_other(page: Reader) -> None:
    (policy,) = [
        found["content"]
        for found in page.all("meta")
        if found.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"

    def digest(text: str) -> str:
        found = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(found).decode()}'"

    assert rules["script-src"] == digest(page.scripts[-1])
    assert rules["style-src"] == digest("".join(page.styles))
    assert "unsafe" not in policy


def test_data_is_json_with_the_figures(page: Reader) -> None:
    hovers, figures = map(json.loads, page.scripts[:2])
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert set(hovers) <= ids
    assert set(figures) == {"metrics", "parameters", "storage", "lakes"}
    assert figures["metrics"]["loss"]["y"][0] == 1
    assert figures["storage"]["stored_bytes"] < figures["storage"]["decoded_bytes"]


def test_ids_are_unique_and_links_lead_somewhere(page: Reader) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [found["href"][1:] for found in page.all("a")]
    assert len(targets) == 6
    assert set(targets) <= set(ids)
    labels = [value for _, found in page.tags if (value := found.get("aria-labelledby"))]
    assert set(labels) <= set(ids)


def test_every_picture_has_a_label_and_charts_their_figures(page: Reader) -> None:
    for found in page.all("svg"):
        assert found.get("aria-hidden") == "true" or len(found.get("aria-label", "")) > 10
    assert sum(1 for found in page.all("svg") if found.get("role") == "img") > 20
    assert len(page.all("table")) > 12


def test_sections_without_anything_say_so_in_a_line(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        empty = make_report(db)
        db.store_tensor("w", np.ones(4, np.float32), epoch=1)
        small = make_report(db)
    text = "".join(Reader(empty.html.decode()).text)
    for line in ("The store is empty", "no tensors at this moment", "No relationships"):
        assert line in text
    for line in ("No version of a tensor is stored", "No splat lake exists"):
        assert line in text
    text = "".join(Reader(small.html.decode()).text)
    for line in ("No metrics", "No relationships", "No splat lake exists"):
        assert line in text
    assert (empty.lsn, small.tensors, small.epochs_shown) == (0, 1, 1)


def test_the_title_is_escaped(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        made = make_report(db, settings=ReportSettings(title="</title><script>1</script>"))
    assert len(Reader(made.html.decode()).all("script")) == 3


def test_a_watched_page_offers_to_load_itself_and_does_not_by_itself(store_path: Path) -> None:
    with mldb.open(store_path, durability="os") as db:
        made = make_report(db, settings=ReportSettings(reload_seconds=3))
    page = Reader(made.html.decode())
    (box,) = page.all("input")
    assert box["data-seconds"] == "3"
    assert "checked" not in box
    assert not [found for found in page.all("meta") if found.get("http-equiv") == "refresh"]


def test_a_page_replaces_another_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, b"one")
    write_page(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "report.html"
    folder.mkdir()
    with pytest.raises(StorageIOError, match="choose another place"):
        write_page(folder, b"one")
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(StorageIOError, match="report cannot be written"):
        write_page(tmp_path / "missing" / "report.html", b"one")


def test_the_same_store_gives_the_same_page(recorded: Path) -> None:
    found: list[Any] = []
    for _ in range(2):
        with mldb.open(recorded, mode="r") as db:
            found.append(make_report(db).html)
    assert found[0] == found[1]
