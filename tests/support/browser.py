"""Chromium without a window, spoken to over a pair of pipes; no package is needed.

Protocol: the Chrome DevTools Protocol over ``--remote-debugging-pipe``: JSON messages that end in a
zero byte, read by the browser on descriptor 3 and written on 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ANSWER_SECONDS = 60.0


def chromium_path() -> str | None:
    """Where the browser is; None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One process of a browser. A context manager; one thread."""

    def __init__(self, profile: Path) -> None:
        path = chromium_path()
        assert path is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
            f"--user-data-dir={profile}",
        )
        # A shell puts the pipes where the browser looks for them, and becomes the browser.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, path, *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, *, session: str | None = None, **params: Any) -> Any:
        """Call a method and return its result; events that come meanwhile are kept."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(ANSWER_SECONDS)
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            if "method" in found:
                self.events.append(found)

    def wait_for(self, method: str) -> dict[str, Any]:
        """Return the next event of a kind, one that is kept included."""
        for event in self.events:
            if event["method"] == method:
                self.events.remove(event)
                return event
        while True:
            found = self._next(ANSWER_SECONDS)
            if found.get("method") == method:
                return found
            if "method" in found:
                self.events.append(found)

    def _next(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            ready = select.select([self._read], [], [], max(left, 0))[0]
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "the browser ended or does not answer"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._write)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)


class Tab:
    """One page that is open. What it logs and asks for is kept in ``complaints`` and ``requests``.

    One thread.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of this page."""
        return self._browser.call(method, session=self._session, **params)

    def show(self, url: str, width: int, *, scheme: str = "light", scripts: bool = True) -> None:
        """Load a page in a window so wide, light or dark, and wait until it is there."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Return what an expression comes to in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go, as a keyboard does."""
        code = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Escape": 27}[key]
        text = {"Enter": "\r"}.get(key, "")
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self) -> bytes:
        """Return what is seen, the whole page, as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        return base64.b64decode(found["data"])

    @property
    def complaints(self) -> list[str]:
        """What the page logged, raised or was refused, as text."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [
            json.dumps(event["params"]) for event in self._browser.events
            if event["method"] in kinds
        ]  # fmt: skip

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        return [
            event["params"]["request"]["url"] for event in self._browser.events
            if event["method"] == "Network.requestWillBeSent"
        ]  # fmt: skip

    @property
    def unstopped(self) -> list[str]:
        """Those of them that go to a network and that the page's policy did not stop."""
        stopped = {
            event["params"]["requestId"]
            for event in self._browser.events
            if event["method"] == "Network.loadingFailed"
            and event["params"].get("blockedReason") == "csp"
        }
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["request"]["url"].startswith("http")
            and event["params"]["requestId"] not in stopped
        ]

    def forget(self) -> None:
        """Forget what was logged and asked for."""
        self._browser.events.clear()


@contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    """Start a browser with a profile of its own and yield a page in it."""
    with Browser(profile) as browser:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        found = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        tab = Tab(browser, found["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
