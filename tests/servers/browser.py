"""A headless Chromium, driven over the DevTools protocol by a pair of pipes: no port, no driver.

    with browser_page(url) as page:
        page.evaluate("document.title")

Tests that need it skip where no Chromium is installed (`apt-get install chromium`, or Chrome).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_ON_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes the browser, with its ends of the pipes where it looks for them."""


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """One open tab.

    `problems` are its console errors, exceptions, refused contents and requests that are neither
    for itself (`url`) nor a data: or file: URL, as they arrive; ask for something before reading
    them.
    """

    commands: BinaryIO
    answers: BinaryIO
    session: str = ""
    url: str = ""
    problems: list[str] = field(default_factory=list)
    _number: int = 0
    _seen: set[str] = field(default_factory=set)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result. Raises RuntimeError for an error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def wait_for(self, event: str) -> None:
        """Until the page has said this once."""
        while event not in self._seen:
            self._next()

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page, of a promise what comes of it.

        Raises RuntimeError.
        """
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key as a person presses it: "Tab", "Enter", " ", "ArrowDown", "ArrowUp"."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowUp": 38, "ArrowDown": 40}
        code = {" ": "Space"}.get(key, key)
        text = {"Enter": "\r", " ": " "}.get(key)
        event: dict[str, Any] = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": codes[key],
            "modifiers": 8 if shift else 0,
        }
        down = {**event, "text": text} if text else event
        self.ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.ask("Input.insertText", text=text)

    def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has gone")
            text += byte
        message: dict[str, Any] = json.loads(bytes(text))
        self._take(message.get("method", ""), message.get("params", {}))
        return message

    def _take(self, event: str, values: dict[str, Any]) -> None:
        self._seen.add(event)
        if event == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
            self.problems.append(str(values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(values["entry"]))
        elif event == "Network.requestWillBeSent":
            url = values["request"]["url"]
            if url != self.url and not url.startswith(("data:", "file:")):
                self.problems.append(f"asked for {url}")


@contextmanager
def browser_page(
    url: str, *, dark: bool = False, width: int = 1280, height: int = 900
) -> Iterator[Page]:
    """A page, loaded. Raises RuntimeError where Chromium is not there or does not start."""
    chromium = find_chromium()
    if chromium is None:
        raise RuntimeError("no Chromium is installed")
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless=new",
            "--no-sandbox",  # a container's root has none
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",  # on 3 and 4
        ]
        ends = (str(command_read), str(answer_write))
        process = subprocess.Popen(
            [sys.executable, "-c", _ON_3_AND_4, *ends, chromium, *options, "about:blank"],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(command_read)
        os.close(answer_write)
        with os.fdopen(command_write, "wb") as commands, os.fdopen(answer_read, "rb") as answers:
            page = Page(commands, answers, url=url)
            try:
                _open(page, url, dark=dark, width=width, height=height)
                yield page
            finally:
                process.kill()
                process.wait()


def _open(page: Page, url: str, *, dark: bool, width: int, height: int) -> None:
    target = page.ask("Target.createTarget", url="about:blank")["targetId"]
    page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        page.ask(f"{domain}.enable")
    page.ask(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=False,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.ask("Emulation.setEmulatedMedia", features=[scheme])
    page._seen.discard("Page.loadEventFired")
    page.ask("Page.navigate", url=url)
    page.wait_for("Page.loadEventFired")
