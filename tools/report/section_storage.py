"""Where the bytes are, and what was saved of them."""

from __future__ import annotations

from typing import Final

import numpy as np

from mldb.tools.cli.values import shown_bytes
from mldb.tools.report.charts import bar_rows, column_chart
from mldb.tools.report.facts import StorageFacts
from mldb.tools.report.gather_storage import ENCODING_LABELS
from mldb.tools.report.markup import remark, table
from mldb.tools.report.parts import Page, Section, figure, grid, nothing, tiles, unread

_BARS: Final = 8
_ROWS: Final = 400
_COLUMNS: Final = 100


def section_storage(page: Page, facts: StorageFacts) -> Section:
    """Draw the bytes of versions, by tensor, epoch and encoding."""
    title = "Storage"
    if not facts.versions:
        return nothing(title, "storage", "No version of a tensor is stored.")
    decoded = sum(row[2] for row in facts.by_name)
    stored = sum(row[3] for row in facts.by_name)
    pairs = [
        ("all files", shown_bytes(facts.file_bytes)),
        ("versions", f"{facts.versions:,}"),
        ("each by itself", shown_bytes(decoded)),
        ("as stored", shown_bytes(stored)),
        ("saved", f"{shown_bytes(decoded - stored)} ({_share(decoded - stored, decoded)})"),
    ]
    body = [
        tiles(pairs),
        unread(facts.problems),
        remark(
            "Versions of the tensors that exist now, on every lineage, those left behind by "
            "rewinds included. The files hold lakes, metadata, indexes and deleted tensors as well."
        ),
        grid([_by_name(page, facts), _by_epoch(page, facts), _by_encoding(page, facts)]),
    ]
    page.figures["storage"] = {
        "file_bytes": facts.file_bytes,
        "decoded_bytes": decoded,
        "stored_bytes": stored,
        "by_encoding": facts.by_encoding,
    }
    return Section("storage", title, "".join(body))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def _by_name(page: Page, facts: StorageFacts) -> str:
    bars = [
        (name, stored, decoded, f"{shown_bytes(stored)} of {shown_bytes(decoded)}")
        for name, _, decoded, stored in facts.by_name[:_BARS]
    ]
    chart = bar_rows(bars, label=f"Bytes of the {len(bars)} names that take most")
    rows = [
        (name, f"{versions:,}", shown_bytes(decoded), shown_bytes(stored))
        for name, versions, decoded, stored in facts.by_name[:_ROWS]
    ]
    caption = "Bytes by tensor"
    if len(facts.by_name) > _ROWS:
        caption += f": the first {_ROWS} of {len(facts.by_name):,}"
    figures = table(("tensor", "versions", "each by itself", "stored"), rows, caption=caption)
    return figure(
        page, chart, "By tensor", table=figures, about="Full: stored. Pale: each by itself."
    )


def _by_epoch(page: Page, facts: StorageFacts) -> str:
    """Columns of stored MiB: several epochs in one where there are many."""
    epochs = np.array([row[0] for row in facts.by_epoch], np.float64)
    stored = np.array([row[2] for row in facts.by_epoch], np.float64) / 2**20
    low, high = float(epochs[0]), float(epochs[-1]) + 1
    bins = int(min(high - low, _COLUMNS))
    edges = np.linspace(low, high, bins + 1)
    place = np.minimum(((epochs - low) / (high - low) * bins).astype(int), bins - 1)
    counts = np.bincount(place, weights=stored, minlength=bins)
    chart = column_chart(
        edges.tolist(),
        counts.tolist(),
        label=f"Stored MiB by epoch, {float(counts.sum()):.3g} MiB in all",
        x_label="epoch",
        y_label="MiB stored",
    )
    rows = [
        (epoch, shown_bytes(decoded), shown_bytes(kept))
        for epoch, decoded, kept in facts.by_epoch[-_ROWS:]
    ]
    caption = "Bytes by epoch"
    if len(facts.by_epoch) > _ROWS:
        caption += f": the last {_ROWS} of {len(facts.by_epoch):,}"
    figures = table(("epoch", "each by itself", "stored"), rows, caption=caption, text=0)
    return figure(page, chart, "By epoch", table=figures)


def _by_encoding(page: Page, facts: StorageFacts) -> str:
    order = [name for name in ENCODING_LABELS.values() if name in facts.by_encoding]
    order += [name for name in facts.by_encoding if name not in order]
    bars = []
    rows = []
    for name in order:
        versions, decoded, stored = facts.by_encoding[name]
        bars.append((name, stored, decoded, f"{shown_bytes(stored)} of {shown_bytes(decoded)}"))
        saved = decoded - stored
        rows.append(
            (name, f"{versions:,}", shown_bytes(decoded), shown_bytes(stored), shown_bytes(saved))
        )
    chart = bar_rows(bars, label="Bytes stored by encoding, and what they stand for")
    columns = ("encoding", "versions", "each by itself", "stored", "saved")
    figures = table(columns, rows, caption="Bytes by encoding")
    about = "Full: stored. Pale: saved by deduplication, patches, deltas and compression."
    return figure(page, chart, "By encoding", table=figures, about=about)
