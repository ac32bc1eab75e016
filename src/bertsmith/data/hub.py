"""Check that the Hugging Face hub is reachable before any call that would block on it."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit

TIMEOUT = 10.0
"""Seconds to wait for a connection."""


def endpoint() -> str:
    """Return the address of the hub: ``HF_ENDPOINT``, as for ``huggingface_hub``, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def unreachable_reason() -> str | None:
    """Return why the hub cannot be reached, or ``None`` if a connection succeeds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or endpoint())
    port = address.port or (443 if address.scheme == "https" else 80)
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname or "", port), timeout=TIMEOUT).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    # Name resolution has no timeout, so it runs in a thread that may be abandoned.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not outcome:
        return f"{address.hostname}:{port} does not answer within {TIMEOUT:.0f} s"
    return None if outcome[0] is None else f"{address.hostname}:{port} does not answer ({outcome[0]})"
