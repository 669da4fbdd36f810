"""The page in a browser: wide and narrow, light and dark, by keyboard, without a word of complaint.

Whatever the store holds, no script but the page's own runs and no request leaves the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from mldb.tools.report.build import ReportMade
from tests.support.browser import Tab, chromium_path, open_tab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        chromium_path() is None, reason="chromium is not installed: apt-get install chromium"
    ),
]

CONTRAST_LEAST = 4.5
"""Of text, by WCAG 2.2, 1.4.3."""

_CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const light = (text) => {
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const part = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
      const share = byte / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = getComputedStyle(at).backgroundColor;
      if (found !== "rgba(0, 0, 0, 0)") return found;
    }
    return "white";
  };
  const found = [];
  for (const element of document.querySelectorAll(
    "h1, h2, h3, nav a, dt, dd, .note, .about, .legend li, summary, .what, .tick, .name, td, th," +
      "footer, caption"
  )) {
    const style = getComputedStyle(element);
    const ink = light(element instanceof SVGElement ? style.fill : style.color);
    const below = light(ground(element));
    const ratio = (Math.max(ink, below) + 0.05) / (Math.min(ink, below) + 0.05);
    if (ratio < LEAST) found.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)];
})()
""".replace("LEAST", str(CONTRAST_LEAST))


@pytest.fixture(scope="module")
def url(hostile_page: ReportMade, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(hostile_page.html)
    return path.as_uri()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def tab(running: Tab) -> Tab:
    running.forget()
    return running


@pytest.mark.parametrize("scheme", ("light", "dark"))
@pytest.mark.parametrize("width", (1280, 390))
def test_it_is_readable_and_asks_for_nothing(
    tab: Tab, url: str, width: int, scheme: str, tmp_path: Path
) -> None:
    tab.show(url, width, scheme=scheme)
    tab.value("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(_CONTRAST) == []
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(245, 246, 248)") == (scheme == "light")
    small = tab.value(
        "[...document.querySelectorAll('.plot svg:not(.own) .tick')].map((text) => "
        "text.getBoundingClientRect()).filter((box) => box.width && box.height < 8).length"
    )
    assert small == 0
    picture = tab.picture()
    (tmp_path / f"{width}_{scheme}.png").write_bytes(picture)
    assert width - 20 <= struct.unpack_from(">I", picture, 16)[0] <= width  # a scroll bar
    assert len(picture) > 50_000
    assert tab.complaints == []
    assert [found for found in tab.requests if not found.startswith("data:")] == [url]


def test_no_name_became_an_element_and_no_script_ran_but_the_own(tab: Tab, url: str) -> None:
    tab.show(url, 1280)
    assert tab.value("document.querySelectorAll('img, b, i').length") == 0
    assert tab.value("document.scripts.length") == 3
    assert tab.value("document.querySelectorAll('.layer').length") == 5
    assert tab.value("document.getElementById('hovers').textContent.length") > 1000


@pytest.mark.parametrize(
    "attempt",
    (
        "fetch('https://example.com/').then(() => 'sent', () => 'refused')",
        "new Promise((told) => { const image = new Image(); image.onload = () => told('sent');"
        " image.onerror = () => told('refused'); image.src = 'https://example.com/x.png'; })",
        "new Promise((told) => { const script = document.createElement('script');"
        " script.textContent = 'window.wasRun = 1'; document.body.append(script);"
        " told(window.wasRun ? 'sent' : 'refused'); })",
    ),
    ids=("fetch", "image", "script"),
)
def test_the_browser_refuses_what_the_policy_does_not_name(
    tab: Tab, url: str, attempt: str
) -> None:
    tab.show(url, 1280)
    assert tab.value(attempt) == "refused"
    assert tab.unstopped == []


def test_a_layer_opens_by_the_keyboard(tab: Tab, url: str) -> None:
    tab.show(url, 1280)
    layer = "document.querySelector('[data-name=\"model/fc\"]')"
    assert tab.value(f"{layer}.open") is False
    tab.value(f"{layer}.querySelector('summary').focus()")
    tab.press("Enter")
    assert tab.value(f"{layer}.open") is True
    for _ in range(8):
        tab.press("Tab")
        if tab.value(f"{layer}.contains(document.activeElement) && "
                     "document.activeElement.hasAttribute('data-hover')"):  # fmt: skip
            break
    else:
        pytest.fail("no chart of the layer takes the focus")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.value(outline) == "solid"


def test_values_are_told_by_arrow_keys_and_by_the_pointer(tab: Tab, url: str) -> None:
    tab.show(url, 1280)
    tip = "document.getElementById('tip')"
    title = "found.querySelector('figcaption').textContent === 'loss'"
    figure = f"[...document.querySelectorAll('figure')].find((found) => {title})"
    plot = f"{figure}.querySelector('.plot')"
    assert tab.value(f"{tip}.hidden") is True
    tab.value(f"{plot}.focus()")
    tab.press("ArrowRight")
    assert tab.value(f"{tip}.hidden") is False
    assert tab.value(f"{tip}.textContent") == "step 1loss: 1"
    tab.press("ArrowRight")
    assert tab.value(f"{tip}.textContent") == "step 2loss: 0.5"
    tab.press("Escape")
    assert tab.value(f"{tip}.hidden") is True
    tab.value(f"{plot}.scrollIntoView({{block: 'center'}})")
    box = tab.value(f"(() => {{ const box = {plot}.getBoundingClientRect();"
                    " return [box.right - 14, box.top + 90]; })()")  # fmt: skip
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    assert tab.value(f"{tip}.textContent") == "step 8loss: 0.125"
    assert tab.complaints == []


def test_figures_are_there_without_scripts(tab: Tab, url: str) -> None:
    tab.show(url, 390, scripts=False)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.value("document.querySelectorAll('table').length") > 12
    assert tab.value("document.querySelectorAll('figure svg path').length") > 100
    layer = "document.querySelector('[data-name=\"model/fc\"]')"
    tab.value(f"{layer}.querySelector('summary').focus()")
    tab.press("Enter")
    assert tab.value(f"{layer}.open") is True
    assert tab.complaints == []


def test_it_prints_with_every_layer_open(tab: Tab, url: str) -> None:
    tab.show(url, 1280)
    tab.value("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.value("[...document.querySelectorAll('.layer, .tensor')].every((d) => d.open)")
    tab.value("window.dispatchEvent(new Event('afterprint'))")
    assert tab.value("document.querySelectorAll('.layer[open]').length") == 0
    assert len(tab.call("Page.printToPDF")["data"]) > 20_000
