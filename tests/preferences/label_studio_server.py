"""A real Label Studio on loopback with a data base of its own, and the few calls that a test needs."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "TRIPTYCH_LABEL_STUDIO"
START_SECONDS = 600


@dataclass(frozen=True)
class Server:
    """A running server and the token of its first user."""

    address: str
    token: str

    def call(self, method: str, path: str, content: Any = None, *, token: str | None = None) -> Any:
        """Send JSON and return JSON."""
        request = urllib.request.Request(
            self.address + path,
            method=method,
            data=None if content is None else json.dumps(content).encode(),
            headers={"Authorization": f"Token {token or self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")

    def download(self, path: str) -> bytes:
        """Return an answer's bytes."""
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"Token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return bytes(answer.read())

    def sign_up(self, email: str) -> str:
        """Let another person join by the invitation link; return that person's token."""
        page = self.address + self.call("GET", "/api/invite")["invite_url"]
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        found = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', browser.open(page).read().decode())
        assert found is not None
        form = {"csrfmiddlewaretoken": found.group(1), "email": email, "password": secrets.token_hex(12)}
        sent = urllib.parse.urlencode(form).encode()
        browser.open(urllib.request.Request(page, data=sent, headers={"Referer": page}))
        answer = json.loads(browser.open(f"{self.address}/api/current-user/token").read())
        return str(answer["token"])


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Start the server that the environment names; skip when it names none."""
    program = os.environ.get(VARIABLE)
    if not program:
        pytest.skip(f"set {VARIABLE} to the path of a label-studio program")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(20)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LABEL_"))},
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "label-studio"),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_USERNAME": "lead@example.org",
        "LABEL_STUDIO_PASSWORD": secrets.token_hex(12),
        "LABEL_STUDIO_USER_TOKEN": token,
        "DJANGO_DB": "sqlite",
        "COLLECT_ANALYTICS": "False",
        "LATEST_VERSION_CHECK": "False",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    arguments = f"start --no-browser --port {port} --internal-host 127.0.0.1 --log-level ERROR"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments.split()], env=environment, stdout=log, stderr=log)
        try:
            server = Server(f"http://127.0.0.1:{port}", token)
            _wait(server, process, folder / "server.log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            server.call("GET", "/api/current-user/whoami")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(2)
    raise AssertionError(f"the server did not answer within {START_SECONDS} s")
