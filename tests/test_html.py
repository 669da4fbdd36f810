"""What notebooks show: small tables, everything escaped, nothing raised, no value read."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.html import ROWS_MAX, escaped, html_of, html_pairs, html_table
from mldb.log.verify import Problem

ALLOWED = {"table", "caption", "thead", "tbody", "tr", "th", "td", "pre"}
HOSTILE = "<script>alert(1)</script>&\"'\u202e"


class Page(HTMLParser):
    """The texts of cells; fails for what is not closed and for tags or attributes of others."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"{self.open} is not closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ALLOWED
        assert {name for name, _ in attrs} <= {"align", "colspan"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(thing: Any) -> list[str]:
    """The texts that a notebook shows of *thing*."""
    return Page(thing._repr_html_()).texts


@given(st.text())
def test_no_text_means_anything_in_html(text: str) -> None:
    found = escaped(text, limit=None)
    assert not set(found) & set("<>\"'\u202e\x1b")
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in found)
    assert len(Page(html_table((text,), [[text]], caption=text)).texts) <= 3
    Page(html_pairs({text: text}, caption=text))


def test_long_cells_are_cut_before_they_are_looked_at() -> None:
    assert escaped("x" * 10**7) == "x" * 119 + "…"
    assert escaped("<" * 500, limit=3) == "&lt;&lt;…"


def test_a_table_takes_no_more_rows_than_it_shows() -> None:
    numbers = count()
    found = Page(html_table(("n",), ((number,) for number in numbers), rest="many more"))
    assert next(numbers) == ROWS_MAX + 1
    assert found.texts[-1] == "… many more"
    assert len(found.texts) == ROWS_MAX + 2


def test_what_raises_is_told() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("<no>")

    def fail() -> str:
        raise ValueError("<b>bad</b>")

    assert Page(html_of(Broken(), fail)).texts == ["<Broken>\nValueError: <b>bad</b>"]


def test_a_store_shows_its_head_and_first_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        assert "none" in shown(db), "an empty one says so"
        with db.transaction(epoch=3) as txn:
            for number in range(30):
                txn.store_tensor(f"t{number:02}", np.zeros((2, 3), np.float32), {"k": HOSTILE})
        db.store_tensor(HOSTILE.replace("/", "|"), np.ones(4))

        def refuse(*_: object) -> None:
            raise AssertionError("a value was read")

        monkeypatch.setattr("mldb.tensors.scope.stored_bytes", refuse)
        monkeypatch.setattr("mldb.tensors.scope.read_array", refuse)
        texts = shown(db)
        assert texts[0] == db.path
        assert "t18" in texts, "byte order: the hostile name is the first of twenty"
        assert "t19" not in texts
        assert texts[-1] == "… more; .names() has all, len() counts them"
        with db.at(3) as snapshot:
            assert "t00" in shown(snapshot)
        assert any("closed" in text for text in shown(snapshot))
        handle = db.tensor("t00")
        texts = shown(handle)
        assert "2x3" in texts
        assert "24 B, raw" in texts
        assert "<script>alert(1)</script>&\"'\\u202e" in texts
    assert any("closed" in text for text in shown(db))


def test_reports_are_shown(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os", background_compaction=False) as db:
        for epoch in range(1, 4):
            db.checkpoint({"w": np.full(100, epoch)}, epoch=epoch, metrics={HOSTILE: 0.5})
            db.store_tensor("other", np.full(100, epoch))
        (first, *_) = db.checkpoints()
        assert HOSTILE.replace("\u202e", "\\u202e") in shown(first)
        db.retention.set(last=1, checkpoints=1)
        plan, done = db.compact(plan_only=True), db.compact()
        assert shown(plan)[0] == "compaction, planned only"
        assert "w" in shown(done)
        assert "none" in shown(db.verify())
        report = db.load({"w": np.zeros(100, np.int64)})
        assert "w" in shown(report)
    damage = mldb.VerifyReport(1, 2, 3, tuple(Problem(HOSTILE, 7, HOSTILE) for _ in range(99)))
    texts = shown(damage)
    assert texts[-1] == "… 99 problems in all"


def test_a_consolidation_is_shown(tmp_path: Path, rng: np.random.Generator) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        lake = db.lake(dim=4)
        mu = rng.standard_normal((50, 4)).astype(np.float32)
        lake.add_splats(np.repeat(mu / np.linalg.norm(mu, axis=1, keepdims=True), 2, axis=0))
        report = lake.consolidate()
        texts = shown(report)
        assert texts[0] == "sweep of lake default"
        assert f"100 to {report.rows_after} ({report.kept:.1%})" in texts


def test_a_damaged_store_is_told_in_a_line(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "run", durability="os") as db:
        db.store_tensor("w", np.zeros(3))

        def fail(*_: object, **__: object) -> None:
            raise mldb.CorruptError("the index is damaged", file="segments/x", offset=3)

        db._scope = fail  # type: ignore[method-assign, assignment]
        assert any("the index is damaged" in text for text in shown(db))
