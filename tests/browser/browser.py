"""A real browser, headless, spoken to in its own DevTools protocol: open a page, ask it things, see what it loaded and complained of."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
EXECUTABLE = next((path for name in NAMES if (path := shutil.which(name))), None)
QUIET = ("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--mute-audio")
_START_SECONDS, _LOAD_SECONDS = 60, 60


@dataclass
class Seen:
    """What a page said and did: `answers` to the asked expressions, addresses it `requested`, its `complaints`, its looks as PNG."""

    answers: list[Any]
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    screenshot: bytes = b""


@dataclass(frozen=True)
class Browser:
    """A running browser at the address of its DevTools."""

    address: str

    def look(self, url: str, *expressions: str, width: int = 1200, height: int = 900) -> Seen:
        """Opens a page in a window of a size, and evaluates JavaScript expressions in it once it is loaded."""
        return asyncio.run(_look(self.address, url, expressions, width, height))


@contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`."""
    assert EXECUTABLE is not None
    # No sandbox: tests may run as root in a container, where Chromium refuses to start with one; the pages are our own.
    command = [EXECUTABLE, *QUIET, "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "DevTools listening on " in line), "")
        assert said, "the browser ended before it listened"
        yield Browser(said.split("DevTools listening on ")[1].strip())
    finally:
        process.kill()
        process.wait()


class _Session:
    """One page's side of the protocol: commands by number, events kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number, self.session = socket, 0, ""
        self.events: list[dict[str, Any]] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method and returns its result; what happens meanwhile is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        await self.socket.send_json(message)
        while (reply := await self.receive()).get("id") != self.number:
            pass
        assert "error" not in reply, f"{method}: {reply['error']}"
        result: dict[str, Any] = reply["result"]
        return result

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self.socket.receive(_LOAD_SECONDS)).data)
        if "method" in message:
            self.events.append(message)
        return message

    async def wait_for(self, event: str) -> None:
        while not any(one["method"] == event for one in self.events):
            await self.receive()


async def _look(address: str, url: str, expressions: tuple[str, ...], width: int, height: int) -> Seen:
    async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
        page = _Session(socket)
        target = await page.send("Target.createTarget", url="about:blank")
        page.session = (await page.send("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            await page.send(f"{domain}.enable")
        await page.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        page.events.clear()
        await page.send("Page.navigate", url=url)
        await page.wait_for("Page.loadEventFired")
        answers = [await _evaluate(page, expression) for expression in expressions]
        picture = await page.send("Page.captureScreenshot", captureBeyondViewport=True)
        seen = Seen(answers, _requested(page), _complaints(page), base64.b64decode(picture["data"]))
        with suppress(AssertionError):
            await page.send("Page.close")
        return seen


async def _evaluate(page: _Session, expression: str) -> Any:
    found = await page.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")


def _requested(page: _Session) -> list[str]:
    sent = [one["params"]["request"]["url"] for one in page.events if one["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def _complaints(page: _Session) -> list[str]:
    found = [one["params"]["exceptionDetails"]["text"] for one in page.events if one["method"] == "Runtime.exceptionThrown"]
    logged = [one["params"]["entry"] for one in page.events if one["method"] == "Log.entryAdded"]
    return found + [entry["text"] for entry in logged if entry["level"] in ("error", "warning")]
