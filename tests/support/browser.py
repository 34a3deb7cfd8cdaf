"""A headless Chromium, by the DevTools protocol over two pipes: it opens a page, and tells what it saw."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.requestWillBeSent")


class Browser:
    """One tab; use it in a with statement."""

    def __init__(self, profile: Path) -> None:
        (here_reads, it_writes), (it_reads, here_writes) = os.pipe(), os.pipe()

        def as_3_and_4() -> None:  # where Chromium looks for them
            reads, writes = os.dup(it_reads), os.dup(it_writes)
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}")
        self._process = subprocess.Popen(
            [CHROMIUM, *options, "--remote-debugging-pipe", "about:blank"],
            preexec_fn=as_3_and_4,
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
        )
        os.close(it_reads)
        os.close(it_writes)
        self._in, self._out = os.fdopen(here_reads, "rb"), os.fdopen(here_writes, "wb")
        self._asked, self._session, self.events = 0, "", list[dict[str, Any]]()
        tab = next(one for one in self._ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        with contextlib.suppress(BrokenPipeError):
            self._out.close()

    def open(self, path: Path, *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Show a file, in a window so wide."""
        self.events.clear()
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Emulation.setScriptExecutionDisabled", value=not script)
        self._ask("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._hear()

    @property
    def complaints(self) -> list[str]:
        """Whatever stands on its console, and each thing that it asked for beside the page."""
        found = [event for event in self.events if event["method"] in COMPLAINTS]
        texts = {json.dumps(event["params"]) for event in found if not self._is_page(event)}
        return sorted(texts)

    def _is_page(self, event: dict[str, Any]) -> bool:
        return event["method"].startswith("Network") and event["params"]["type"] == "Document"

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        data = self._ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """Print the page."""
        path.write_bytes(base64.b64decode(self._ask("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while "id" not in (answer := self._hear()):
            pass
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def _hear(self) -> dict[str, Any]:
        """The next message; events are kept."""
        heard = bytearray()
        while (sign := self._in.read(1)) != b"\0":
            assert sign, "the browser ended"
            heard += sign
        message: dict[str, Any] = json.loads(heard)
        if "method" in message:
            self.events.append(message)
        return message
