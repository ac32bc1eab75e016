"""Whether the hub can be reached at all: asked before anything that would wait for it."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit

from bertsmith.errors import UserError

TIMEOUT = 10.0
"""Seconds to wait for a connection."""


def endpoint() -> str:
    """Return the address of the hub, as ``huggingface_hub`` takes it from ``HF_ENDPOINT``."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def problem() -> str | None:
    """Return why the hub cannot be reached, or ``None`` if a connection to it can be made."""
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

    # Looking a name up knows no timeout of its own: a thread that is left behind does.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not outcome:
        return f"{address.hostname}:{port} does not answer within {TIMEOUT:.0f} s"
    return None if outcome[0] is None else f"{address.hostname}:{port} does not answer ({outcome[0]})"


def require_hub(what: str, kind: type[UserError]) -> None:
    """Check that the hub answers.

    Raises:
        UserError: of the given kind, naming ``what`` was wanted and what can be used instead.
    """
    reason = problem()
    if reason is not None:
        raise kind(
            f"{what} cannot be fetched: {reason}",
            where=endpoint(),
            remedy="Check the network or HF_ENDPOINT, or give a local file or folder instead.",
        )
