"""Check that the Hugging Face hub is reachable before any call that would block on it."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

TIMEOUT = 10.0
"""Seconds to wait for a connection."""


def endpoint() -> str:
    """Return the address of the hub: ``HF_ENDPOINT``, as for ``huggingface_hub``, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def unreachable_reason() -> str | None:
    """Return why the hub cannot be reached, or ``None`` if a connection succeeds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    try:
        host, port = _server()
    except ValueError as error:
        return f"the address of the hub or of its proxy is invalid: {error}"
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=TIMEOUT).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    # Name resolution has no timeout, so it runs in a thread that may be abandoned.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not outcome:
        return f"{host}:{port} does not answer within {TIMEOUT:.0f} s"
    return None if outcome[0] is None else f"{host}:{port} does not answer ({outcome[0]})"


def _server() -> tuple[str, int]:
    """Return host and port of the hub, or of the proxy to it that the HTTP client uses.

    Raises:
        ValueError: if an address is invalid.
    """
    address, proxies = urlsplit(endpoint()), getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(address.netloc):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    default = 1080 if address.scheme.startswith("socks") else 443 if address.scheme == "https" else 80
    return address.hostname or "", address.port or default
