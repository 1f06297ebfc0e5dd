"""A real headless Chromium, driven over a pipe by its own protocol: pages as people see them, without a network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
NEEDED = "FEDEXPERTS_NEED_CHROMIUM"
"""Where this is set, as in `.ci/run`, a missing Chromium is a failure."""
MEASURE = (Path(__file__).parent / "measure.js").read_text()
"""Of a page: texts that lie over each other, what is wider than the page, figures without anything in them."""


def chromium() -> str:
    """Its path; the test is skipped where there is none, or fails where one is needed."""
    for name in NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    text = f"no headless browser ({', '.join(NAMES)}); install one, as with apt install chromium, to test pages in it"
    if os.environ.get(NEEDED):
        pytest.fail(text)
    pytest.skip(text)


class Browser:
    """A browser with one tab; every request and message of the pages in it is kept."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="chromium-")
        to_browser, self.into = os.pipe()
        self.out, from_browser = os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio"]

        def hand_over() -> None:  # what it reads from is 3, what it writes to is 4
            os.dup2(to_browser, 3)
            os.dup2(from_browser, 4)

        first = [os.dup(fd) for fd in (to_browser, from_browser)]  # so that neither is 3 or 4 before it is handed over
        os.close(to_browser), os.close(from_browser)
        to_browser, from_browser = (fd if fd > 4 else os.dup(fd) for fd in first)
        self.process = subprocess.Popen(
            [chromium(), *flags, f"--user-data-dir={self.folder.name}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=hand_over,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser), os.close(from_browser)
        self.waiting, self.number, self.events = b"", 0, list[dict[str, Any]]()
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", {"enabled": True})

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(timeout=120)
        os.close(self.into), os.close(self.out)
        self.folder.cleanup()

    session = ""

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the browser for something, and wait for the answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params or {}}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return dict(found["result"])
            self.events.append(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            data = os.read(self.out, 2**20)
            assert data, "the browser has ended"
            self.waiting += data
        text, _, self.waiting = self.waiting.partition(b"\0")
        return dict(json.loads(text))

    def until_loaded(self, loader: str) -> None:
        """Wait until this document is there with all of it, and not one that was opened before it."""
        wanted = {"loaderId": loader, "name": "load"}
        while not any(
            found.get("method") == "Page.lifecycleEvent" and wanted.items() <= found["params"].items() for found in self.events
        ):
            self.events.append(self._next())

    def open(self, path: Path, width: int, media: str = "screen") -> Tab:
        """A page at a width in pixels, or as it is printed."""
        self.events.clear()
        self.call("Emulation.setEmulatedMedia", {"media": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", size)
        found = self.call("Page.navigate", {"url": path.resolve().as_uri()})
        assert "errorText" not in found, f"{path}: {found['errorText']}"
        self.until_loaded(found["loaderId"])
        return Tab(self, path, width)


@dataclass
class Tab:
    """A page that is open."""

    browser: Browser
    path: Path
    width: int
    found: dict[str, Any] = field(default_factory=dict)

    def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        asked = {"expression": code, "returnByValue": True}
        result = self.browser.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def measured(self) -> dict[str, Any]:
        """What `MEASURE` finds."""
        self.found = self.found or dict(self.run(f"({MEASURE})()"))
        return self.found

    def requests(self) -> list[str]:
        """What the page has asked for beside itself."""
        urls = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        return [url for url in urls if url != self.path.resolve().as_uri() and not url.startswith("data:")]

    def messages(self) -> list[str]:
        """What the console says: errors, refusals of the page's own policy, and all else."""
        said = [json.dumps(event["params"]) for event in self._of("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
        return said + [event["params"]["entry"]["text"] for event in self._of("Log.entryAdded")]

    def _of(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.browser.events if event.get("method") in names]

    def faults(self) -> list[str]:
        """All that is wrong with the page, in words."""
        found = self.measured()
        faults = [f"asks for {url}" for url in self.requests()] + [f"console: {text}" for text in self.messages()]
        for kind in ("overlaps", "wide", "empty", "small", "nameless"):
            faults += [f"{kind}: {text}" for text in found[kind]]
        return faults

    def picture(self, most: int = 16000) -> bytes:
        """A PNG of the whole page."""
        height = min(most, int(self.run("document.documentElement.scrollHeight")))
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.browser.call("Page.captureScreenshot", asked)["data"])

    def printed(self) -> bytes:
        """The page as a PDF, on A4."""
        sheet = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True, "printBackground": True}
        return base64.b64decode(self.browser.call("Page.printToPDF", sheet)["data"])
