"""The page: sections put into one file of HTML that asks nothing of any network.

Style and script stand inside, and its Content-Security-Policy allows these two alone, by their
digests, and images that are in the page: whatever a name smuggled in, no browser runs it, and
nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from mldb.tools.cli.values import shown_bytes, shown_time
from mldb.tools.report.facts import RunFacts, StorageFacts
from mldb.tools.report.markup import safe, script_json
from mldb.tools.report.parts import Page, Section, tiles

_PACKAGE: Final = "mldb.tools.report"


def whole_page(
    page: Page,
    sections: Sequence[Section],
    run: RunFacts,
    storage: StorageFacts,
    *,
    title: str,
    reload_seconds: float | None = None,
) -> str:
    """Return the HTML; with *reload_seconds* it offers to load itself anew, off at first."""
    style, script = _asset("page.css"), _asset("page.js")
    links = "".join(f'<a href="#{section.id}">{safe(section.title)}</a>' for section in sections)
    parts = "".join(
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">'
        f'<h2 id="{section.id}-title">{safe(section.title)}</h2>{section.body}</section>'
        for section in sections
    )
    live = ""
    if reload_seconds is not None:
        live = (
            f'<label class="live"><input type="checkbox" id="live" '
            f'data-seconds="{reload_seconds:g}"> load anew while the run goes on</label>'
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{safe(title)}</title>'
        f"<style>{style}</style></head><body>"
        '<a class="skip" href="#content">To the content</a>'
        f"<header><h1>{safe(title)}</h1>{_head(run, storage)}"
        f'<nav aria-label="Sections">{links}{live}</nav></header>'
        f'<main id="content">{parts}</main>'
        f"<footer>{_foot(run)}</footer>"
        '<div id="tip" role="status" aria-live="polite" hidden></div>'
        f'<script type="application/json" id="hovers">{script_json(page.hovers)}</script>'
        f'<script type="application/json" id="figures">{script_json(page.figures)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files(_PACKAGE).joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """What the page may do: CSP level 3, section 6. Everything that is not named is refused."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _head(run: RunFacts, storage: StorageFacts) -> str:
    stored = sum(row[3] for row in storage.by_name)
    decoded = sum(row[2] for row in storage.by_name)
    pairs = [
        ("epoch", f"{run.epoch:,}"),
        ("commits", f"{len(run.lsns):,}"),
        ("checkpoints", f"{len(run.checkpoints):,}"),
        ("tensors", f"{len(storage.by_name):,}"),
        ("versions", f"{storage.versions:,}"),
        ("files", shown_bytes(storage.file_bytes)),
        ("saved", shown_bytes(max(decoded - stored, 0))),
    ]
    return tiles(pairs)


def _foot(run: RunFacts) -> str:
    where = f"As of {run.moment}, " if run.moment else ""
    return (
        (
            f"{where}commit {run.lsn} (epoch {run.epoch}) at {safe(shown_time(run.time))} · "
            f"store {safe(run.path, 400)} · written by mldb report"
        )
        if run.lsn
        else f"store {safe(run.path, 400)} · written by mldb report"
    )
