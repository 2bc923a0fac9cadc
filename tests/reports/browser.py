# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for tests: the few commands of W3C WebDriver that are needed, over http.client."""

import base64
import contextlib
import http.client
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)  # fmt: skip


def missing() -> str:
    """Why no browser can be started here; empty if one can."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(absent)} not installed (Debian: apt-get install chromium chromium-driver)" if absent else ""


class Browser:
    """One session. `run` evaluates JavaScript in the page; `click` and `type` act as a person would."""

    def __init__(self, port: int, profile: str):
        self.port, self.session = port, ""
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        asked = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        self.session = f"/session/{found['sessionId']}"

    def _call(self, verb: str, path: str, body: dict | None = None) -> Any:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(link):
            link.request(verb, self.session + path, json.dumps(body) if body is not None else None)
            value = json.loads(link.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{value['error']}: {value['message']}")
        return value

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, fragment: str = "") -> None:
        """Load a file at a given size, as a person whose system is set to light or dark."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self._call("POST", "/url", {"url": "about:blank"})  # so that a new fragment is a new load
        self._call("POST", "/url", {"url": page.as_uri() + fragment})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script body (it says `return`), with `arguments[0]` ... ."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def log(self) -> list[str]:
        """What the console said since the last call, errors and warnings only."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path: Path) -> None:
        """The visible part as a PNG (for people; no test compares pictures)."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start chromedriver on a free port with an empty profile, and end both."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [shutil.which("chromedriver") or "chromedriver", "--port=0"]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            session = Browser(_port(driver), f"{profile}/profile")
            try:
                yield session
            finally:
                session._call("DELETE", "")
        finally:
            driver.terminate()
            driver.wait(10)
            driver.stdout.close()


def _port(driver: subprocess.Popen) -> int:
    """chromedriver says on which port it listens: "... was started successfully on port 41234."."""
    end = time.monotonic() + 30
    for line in driver.stdout:
        if "successfully on port" in line:
            return int(line.rsplit("port", 1)[1].strip(" .\n"))
        if time.monotonic() > end:
            break
    raise RuntimeError("chromedriver did not start")
