"""Check that the Hugging Face hub is reachable before any call that would block on it."""

from __future__ import annotations

import os
import threading

TIMEOUT = 10.0
"""Seconds to wait for an answer."""


def endpoint() -> str:
    """Return the address of the hub: ``HF_ENDPOINT``, as for ``huggingface_hub``, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def unreachable_reason() -> str | None:
    """Return why the hub cannot be reached, or ``None`` if it answers.

    The client of ``huggingface_hub`` asks it, through the proxy and with the certificates of the environment. Any
    answer counts, because a mirror may refuse the address itself.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import get_session

    address = endpoint()
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=TIMEOUT)
            outcome.append(None)
        except Exception as error:  # the HTTP library has errors of its own
            outcome.append(f"{address} does not answer ({error})")

    # Name resolution has no timeout, so it runs in a thread that may be abandoned.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return outcome[0] if outcome else f"{address} does not answer within {TIMEOUT:.0f} s"
