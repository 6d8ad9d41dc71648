"""Opens a local page in headless Chromium: what it logs, what it asks for, how wide it is, how it looks.

Speaks the DevTools protocol over two pipes: nothing but the browser and the standard library.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DEADLINE_SECONDS = 120
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
    " --disable-background-networking --disable-component-update --remote-debugging-pipe --mute-audio"
)


@dataclass
class View:
    """One page as the browser showed it."""

    console: list[str] = field(default_factory=list)
    "Errors and warnings of the console, and exceptions that no script caught."
    requests: list[str] = field(default_factory=list)
    "Every address that was asked for, beside the page itself."
    page_width: int = 0
    "Pixels; more than the window's means that a reader must scroll sideways."
    page_height: int = 0
    busy_seconds: float = 0.0
    "Main thread's time until the page was loaded: parsing, scripts, style and layout."
    screenshot: bytes = b""
    "PNG of the whole page."


def chromium() -> str:
    """Return the browser's path, or skip the test with a reason."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("chromium is not installed: nothing to look at the page with")


def look_at(
    page: Path,
    *,
    width: int = 1280,
    height: int = 2000,
    script: str = "",
    again: str = "",
    media: str = "",
    theme: str = "",
) -> View:
    """Open a page in a window of this size; run a script in it when one is given.

    Args:
        page: the local file.
        width: pixels of the window.
        height: pixels of the window.
        script: JavaScript that is run before the picture is taken, such as a click.
        again: JavaScript that is run after the page was loaded a second time.
        media: `print` shows the page as it is printed; empty shows it as on a screen.
        theme: `dark` or `light`, as the system would ask for; empty is the browser's own.
    """
    with _Browser(chromium()).running() as browser:
        return browser.view(page, width, height, [script, again], {"media": media, "theme": theme})


class _Browser:
    """A running browser and its two pipes."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.number = 0
        self.rest = b""
        self.view_of_page = View()
        self.loaded = False
        self.deadline = time.monotonic() + DEADLINE_SECONDS

    @contextmanager
    def running(self) -> Iterator[_Browser]:
        # The browser reads commands from descriptor 3 and writes answers to descriptor 4.
        read_commands, self.commands = os.pipe()
        self.answers, write_answers = os.pipe()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            pipes = f"exec 3<&{read_commands} 4>&{write_answers}"
            process = subprocess.Popen(
                ["bash", "-c", f"{pipes}; exec {self.program} {FLAGS} --user-data-dir={profile}"],
                pass_fds=(read_commands, write_answers),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os.close(read_commands)
            os.close(write_answers)
            try:
                yield self
            finally:
                with suppress(OSError):
                    self._send("Browser.close", {}, None)
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                os.close(self.commands)
                os.close(self.answers)

    def view(
        self, page: Path, width: int, height: int, scripts: list[str], asked_for: dict[str, str]
    ) -> View:
        address = page.resolve().as_uri()
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Performance"):
            self._ask(f"{domain}.enable", {}, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", size, session)
        features = [{"name": "prefers-color-scheme", "value": asked_for["theme"]}]
        emulated = {"media": asked_for["media"], "features": features if asked_for["theme"] else []}
        self._ask("Emulation.setEmulatedMedia", emulated, session)
        self._ask("Page.navigate", {"url": address}, session)
        while not self.loaded:
            self._read()
        counted = self._ask("Performance.getMetrics", {}, session)["metrics"]
        found = self.view_of_page
        found.busy_seconds = next(item["value"] for item in counted if item["name"] == "TaskDuration")
        for turn, script in enumerate(scripts):
            if turn and script:
                self.loaded = False
                self._ask("Page.reload", {}, session)
                while not self.loaded:
                    self._read()
            if script:
                self._ask("Runtime.evaluate", {"expression": script, "awaitPromise": True}, session)
        measure = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        asked = {"expression": measure, "returnByValue": True}
        wide, high = self._ask("Runtime.evaluate", asked, session)["result"]["value"]
        found.page_width, found.page_height = wide, high
        picture = self._ask("Page.captureScreenshot", {"captureBeyondViewport": True}, session)
        found.screenshot = base64.b64decode(picture["data"])
        found.requests = [url for url in found.requests if url != address and not url.startswith("data:")]
        return found

    def _send(self, method: str, params: dict[str, Any], session: str | None) -> int:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        return self.number

    def _ask(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        number = self._send(method, params, session)
        while True:
            message = self._read()
            if message.get("id") == number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            left = self.deadline - time.monotonic()
            if left <= 0 or not select.select([self.answers], [], [], left)[0]:
                raise AssertionError(f"the browser did not answer within {DEADLINE_SECONDS} s")
            piece = os.read(self.answers, 1 << 16)
            if not piece:
                raise AssertionError("the browser ended")
            self.rest += piece
        text, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, given: dict[str, Any]) -> None:
        found = self.view_of_page
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Network.requestWillBeSent":
            found.requests.append(given["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            found.console.append(str(given["exceptionDetails"].get("text")))
        elif event == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            found.console.append(str(given["entry"]["text"]))
        elif event == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            found.console.append(" ".join(str(item.get("value", "")) for item in given["args"]))
