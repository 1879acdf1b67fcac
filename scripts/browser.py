"""A headless Chromium, driven through its debugging protocol as a person drives it."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-pipe about:blank"
)
_PATIENCE = 60.0  # seconds for a page


def program() -> str | None:
    """The browser of this machine, None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page; `problems` holds what its scripts and its policy complained of."""

    def __init__(self, width: int, height: int) -> None:
        found = program()
        if found is None:
            raise FileNotFoundError("expected chromium in the PATH; apt-get install chromium")
        self.problems: list[str] = []
        self.requested: list[str] = []  # addresses
        self._folder = tempfile.mkdtemp()
        (read, self._to), (self._from, write) = os.pipe(), os.pipe()
        command = f"exec {found} --user-data-dir={self._folder} {_FLAGS} 3<&{read} 4>&{write}"
        self._process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(read, write), stderr=subprocess.DEVNULL
        )
        os.close(read), os.close(write)
        self._rest, self._number, self._session = b"", 0, ""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        found_page = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = found_page["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        facts = {"deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **facts)

    def prefer(self, scheme: str) -> None:
        """Prefer `light` or `dark` pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def call(self, method: str, **params: Any) -> Any:
        """One command of the protocol, and its result; raises RuntimeError where it failed."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self._rest:
                chunk = os.read(self._from, 1 << 16)
                if not chunk:
                    raise RuntimeError("the browser has ended")
                self._rest += chunk
            text, _, self._rest = self._rest.partition(b"\0")
            yield json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        """Remember the events that say what a page has done."""
        facts = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                found = facts["exceptionDetails"]
                text = found.get("exception", {}).get("description") or found["text"]
                self.problems.append(text)
            case "Log.entryAdded":
                self.problems.append(facts["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requested.append(facts["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.problems.append(f"dialog: {facts['message']}")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; raises RuntimeError for an exception."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['result'].get('description')}")
        return found["result"].get("value")

    def open(self, url: str, until: str) -> None:
        """Open an address and wait until an expression is true."""
        self.call("Page.navigate", url=url)
        self.wait(until)

    def wait(self, until: str) -> None:
        """Wait until an expression is true; raises TimeoutError after a minute."""
        end = time.monotonic() + _PATIENCE
        while not self.evaluate(f"Boolean({until})"):
            if time.monotonic() > end:
                raise TimeoutError(until)
            time.sleep(0.05)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, after scrolling it into view."""
        left, top, width, height = self.evaluate(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'nearest'}); const box = found.getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]; })()"
        )
        return left, top, width, height

    def hover(self, selector: str, across: float = 0.5) -> None:
        """Put the pointer on an element, so far across it."""
        left, top, width, height = self.box(selector)
        self._mouse("mouseMoved", left + across * width, top + height / 2)

    def click(self, selector: str, count: int = 1) -> None:
        left, top, width, height = self.box(selector)
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self._mouse(kind, left + width / 2, top + height / 2, "left", number)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag over an element from one share of its width to another."""
        left, top, width, height = self.box(selector)
        first, middle, last = (left + width * at for at in (start, (start + end) / 2, end))
        self._mouse("mousePressed", first, top + height / 2, "left", 1)
        for x in (middle, last):
            self._mouse("mouseMoved", x, top + height / 2, "left")
        self._mouse("mouseReleased", last, top + height / 2, "left", 1)

    def _mouse(self, kind: str, x: float, y: float, button: str = "none", count: int = 0) -> None:
        facts = {"button": button, "buttons": int(button == "left"), "clickCount": count}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **facts)

    def press(self, key: str) -> None:
        """Press a key by its name: `ArrowLeft`, `Escape`, `/`."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, whole: bool = False) -> bytes:
        """What is shown as PNG; `whole`: of all of the page."""
        facts: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            facts = {"captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **facts)["data"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                os.close(pipe)
        shutil.rmtree(self._folder, ignore_errors=True)
