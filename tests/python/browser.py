"""A page in headless Chromium: what it logs, requests and shows, and pictures of it.

Speaks the DevTools protocol over the two pipes that --remote-debugging-pipe opens: nothing but Chromium is needed.

    python tests/python/browser.py out/report.html --shots out/shots     # exit status 1: complaints
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE, DESKTOP = 390, 1280
_SLICE = 2400  # pixels of one picture's height
_FACTS = """JSON.stringify({
  height: document.documentElement.scrollHeight,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  images: [...document.images].map(i => ({id: i.id, alt: i.alt, width: i.naturalWidth, shown: i.clientWidth,
                                          complete: i.complete})),
  font: Math.min(...[...document.body.querySelectorAll('*')].filter(e => [...e.childNodes].some(
    n => n.nodeType === 3 && n.textContent.trim())).map(e => parseFloat(getComputedStyle(e).fontSize))),
  links: [...document.links].map(a => a.getAttribute('href')),
  missing: [...document.links].map(a => a.getAttribute('href')).filter(
    h => h.startsWith('#') && !document.getElementById(h.slice(1))),
})"""


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Seen:
    """What a page did and how it came out at one width."""

    width: int
    errors: list[str] = field(default_factory=list)
    """Console errors and warnings, exceptions, requests that failed."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for, the page itself and data: aside."""
    facts: dict[str, Any] = field(default_factory=dict)
    shots: list[bytes] = field(default_factory=list)
    """PNG files, from top to bottom."""

    def complaints(self) -> list[str]:
        """Everything that a report's page must not have."""
        f = self.facts
        out = [f"{self.width} px: {e}" for e in (*self.errors, *(f"asks for {r}" for r in self.requests))]
        out += [f"{self.width} px: no picture {i['id']}" for i in f["images"] if not i["complete"] or not i["width"]]
        out += [f"{self.width} px: picture {i['id']} has no alt text" for i in f["images"] if not i["alt"]]
        if f["overflow"] > 0:
            out.append(f"{self.width} px: the page is {f['overflow']} px wider than the screen")
        if f["font"] < 12:
            out.append(f"{self.width} px: text of {f['font']} px")
        return out + [f"{self.width} px: {link} leads nowhere" for link in f["missing"]]


class Browser:
    """A headless Chromium; a context manager. Raises OSError where it does not start, TimeoutError where it hangs."""

    def __init__(self, path: str, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._folder = tempfile.mkdtemp(prefix="clew-chromium-")
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        # far from 3 and 4, the numbers that Chromium expects
        child = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50) for fd in (reads, writes)]
        for fd in (reads, writes):
            os.close(fd)
        args = [path, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._folder}/profile",
                "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
                "--disable-background-networking", "--hide-scrollbars", "about:blank"]  # fmt: skip
        if os.getuid() == 0:
            args.append("--no-sandbox")  # the sandbox refuses root
        log = f"{self._folder}/log"
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, child[0], 3),
            (os.POSIX_SPAWN_DUP2, child[1], 4),
        ]
        self._pid = os.posix_spawn(path, args, dict(os.environ), file_actions=actions, setpgroup=0)
        for fd in child:
            os.close(fd)
        self._data = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)
        for _ in range(20):  # its children may still be writing
            shutil.rmtree(self._folder, ignore_errors=True)
            if not os.path.exists(self._folder):
                break
            time.sleep(0.05)

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._data:
            if not select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            got = os.read(self._read, 1 << 20)
            if not got:
                raise OSError("Chromium ended: " + Path(self._folder, "log").read_text(errors="replace")[-500:])
            self._data += got
        one, _, self._data = self._data.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of one command; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        until = time.monotonic() + self._seconds
        while True:
            got = self._message(until)
            if got.get("id") == self._number:
                if "error" in got:
                    raise OSError(f"{method}: {got['error']['message']}")
                result: dict[str, Any] = got["result"]
                return result
            self._events.append(got)

    def _wait(self, event: str) -> None:
        until = time.monotonic() + self._seconds
        while not any(e.get("method") == event for e in self._events):
            self._events.append(self._message(until))

    def look(self, page: str | os.PathLike[str], width: int = DESKTOP, shots: bool = True) -> Seen:
        """Opens a file at a width in CSS pixels; as a phone below 600."""
        address = Path(page).resolve().as_uri()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        self.call("Emulation.setDeviceMetricsOverride", session, width=width, height=844, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        self._events.clear()
        self.call("Page.navigate", session, url=address)
        self._wait("Page.loadEventFired")
        seen = Seen(width)
        seen.facts = json.loads(
            self.call("Runtime.evaluate", session, expression=_FACTS, returnByValue=True)["result"]["value"]
        )
        if shots:
            for top in range(0, int(seen.facts["height"]), _SLICE):
                clip = {"x": 0, "y": top, "width": width, "height": min(_SLICE, seen.facts["height"] - top), "scale": 1}
                data = self.call("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)["data"]
                seen.shots.append(base64.b64decode(data))
        for event in self._events:
            told = _told(event, address)
            if told is not None:
                (seen.requests if told[0] == "request" else seen.errors).append(told[1])
        self.call("Target.closeTarget", targetId=target)
        return seen


def _told(event: dict[str, Any], address: str) -> tuple[str, str] | None:
    """What an event says against a page."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return "error", f"exception: {params['exceptionDetails'].get('text', '')}"
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        return "error", f"console: {' '.join(str(a.get('value', a.get('description', ''))) for a in params['args'])}"
    if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return "error", f"log: {params['entry']['text']}"
    if method == "Network.loadingFailed":
        return "error", f"not loaded: {params.get('errorText', '')}"
    if method == "Network.requestWillBeSent":
        url = params["request"]["url"]
        if not url.startswith("data:") and url.split("#")[0] != address:
            return "request", url
    return None


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--shots", type=Path, metavar="DIR", help="writes pictures of the page there")
    options = parser.parse_args()
    path = chromium()
    if path is None:
        print(f"no Chromium: none of {', '.join(NAMES)} is on the path", file=sys.stderr)
        return 2
    complaints = []
    with Browser(path) as browser:
        for name, width in (("phone", PHONE), ("desktop", DESKTOP)):
            seen = browser.look(options.page, width)
            complaints += seen.complaints()
            print(f"{name}: {width} × {seen.facts['height']} px, {len(seen.facts['images'])} pictures")
            if options.shots is not None:
                options.shots.mkdir(parents=True, exist_ok=True)
                for i, data in enumerate(seen.shots):
                    (options.shots / f"{name}-{i:02d}.png").write_bytes(data)
    print("\n".join(complaints) if complaints else "no complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
