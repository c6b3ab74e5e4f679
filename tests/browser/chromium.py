"""Headless Chromium, driven over its DevTools pipe: what a page asks for, says and shows."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
HEIGHT = 900


@dataclass
class Tab:
    """A page that is open, and what it did since it was opened.

    Attributes:
        requests: The addresses that it asked for, besides its own.
        messages: What it wrote to the console, errors of scripts and of the policy, and dialogs.
    """

    browser: Chromium
    session: str
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        return self.browser.send(method, parameters, self.session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, also of a promise."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        found = self.send("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def close(self) -> None:
        """Close the tab."""
        self.send("Page.close")
        del self.browser.tabs[self.session]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def sideways(self) -> int:
        """The pixels by which the page scrolls to the side."""
        return int(
            self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )

    def faults(self, axe: Path) -> list[str]:
        """The serious and critical faults that axe-core finds."""
        self.evaluate(axe.read_text("utf-8") + ";0")
        found = self.evaluate("axe.run().then(found => found.violations)")
        return [
            f"{fault['id']}: {node['html'][:200]}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]


class Chromium:
    """A browser, as a context manager."""

    def __enter__(self) -> Chromium:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe"]
        script = f'exec "$0" "$@" 3<&{read_there} 4>&{write_there}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, str(PROGRAM), *flags],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self.reads, self.writes = os.fdopen(read_here, "rb", 0), os.fdopen(write_here, "wb", 0)
        self.number, self.rest, self.tabs = 0, b"", dict[str, Tab]()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.reads.close()
        self.writes.close()
        self.profile.cleanup()

    def open(self, path: Path, *, width: int = 1100, dark: bool = False, wait: float = 0.3) -> Tab:
        """Open a page of this machine, in a new tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})
        tab = self.tabs[attached["sessionId"]] = Tab(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.send(f"{domain}.enable")
        phone = width < 600
        tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=HEIGHT,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.send("Emulation.setEmulatedMedia", features=[scheme])
        url = path.resolve().as_uri()
        tab.send("Page.navigate", url=url)
        while tab.evaluate("location.href + document.readyState") != f"{url}complete":
            time.sleep(0.02)
        time.sleep(wait)  # for scripts that draw
        tab.evaluate("0")
        tab.requests = [found for found in tab.requests if found != url]
        return tab

    def send(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and note the events that come before its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.writes.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            if tab := self.tabs.get(answer.get("sessionId", "")):
                self._note(tab, answer["method"], answer["params"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            some = self.reads.read(1 << 16)
            assert some, "the browser ended"
            self.rest += some
        line, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, tab: Tab, event: str, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            tab.requests.append(about["request"]["url"])
        elif event == "Log.entryAdded":
            tab.messages.append(about["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            tab.messages.append(str([value.get("value") for value in about["args"]]))
        elif event == "Runtime.exceptionThrown":
            tab.messages.append(about["exceptionDetails"]["text"])
        elif event == "Page.javascriptDialogOpening":
            tab.messages.append(f"dialog: {about['message']}")
            accept = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            answer = {"id": 0, "sessionId": tab.session, **accept}
            self.writes.write(json.dumps(answer).encode() + b"\0")
