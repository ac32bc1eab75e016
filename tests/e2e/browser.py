"""A headless Chromium that is driven by the keyboard, over the Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
_CODES = {"Enter": 13, "Escape": 27}


class _Socket:
    """The client side of a WebSocket: text messages only."""

    def __init__(self, url: str) -> None:
        parts = urlparse(url)
        self.stream = socket.create_connection((parts.hostname, parts.port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.stream.makefile("rb")
        while self.file.readline().strip():
            pass

    def send(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        size = (
            struct.pack(">BB", 0x81, 0x80 | len(data))
            if len(data) < 126
            else struct.pack(">BBH", 0x81, 0xFE, len(data))
        )
        self.stream.sendall(size + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def receive(self) -> str:
        parts = []
        while True:
            first, second = self.file.read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.file.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.file.read(8))
            parts.append(self.file.read(length))
            if first & 0x80:
                return b"".join(parts).decode()

    def close(self) -> None:
        self.file.close()
        self.stream.close()


class Tab:
    """A tab with separate storage, like that of another person."""

    def __init__(self, connection: _Socket, width: int = 1280, height: int = 900, *, mobile: bool = False) -> None:
        self.connection, self.numbers, self.session = connection, itertools.count(1), ""
        context = self.command("Target.createBrowserContext")["browserContextId"]
        target = self.command("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.resize(width, height, mobile=mobile)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers) + 1_000_000 * id(self)
        message = {"id": number % 2**31, "method": method, "params": parameters}
        self.connection.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.connection.receive())
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str) -> None:
        self.command("Page.enable")
        self.command("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        found = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"{expression}\n{self.js('document.body.innerText')}"
            time.sleep(0.01)

    def key(self, key: str) -> None:
        text = {"Enter": "\r", "Escape": ""}.get(key, key)
        event = {"key": key, "windowsVirtualKeyCode": _CODES.get(key, ord(key[0].upper()))}
        self.command("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        for character in text:
            self.key(character)

    def accessible(self) -> set[tuple[str, str]]:
        """Return role and name of what a screen reader finds."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        return {
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"] and "role" in node
        }

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium() -> Iterator[_Socket]:
    """Start the browser, and yield the connection to it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                url = next(m[0] for line in process.stderr if (m := re.search(r"ws://\S+", line)))
                with contextlib.closing(_Socket(url)) as connection:
                    yield connection
            finally:
                process.terminate()
                process.stderr.read()
