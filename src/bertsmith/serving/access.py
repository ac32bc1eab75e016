"""Who may use a server: clients with the token; without a token, only requests that name this machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from bertsmith.errors import ConfigError
from bertsmith.load_config import TOKEN

_PORT = re.compile(r":\d*$")
_TOKEN = re.compile(r"[!-~]([ -~]*[!-~])?")
"""A token that every client can send in a header: clients encode other characters differently."""


def read_token(environ: Mapping[str, str]) -> str | None:
    """Return the token in the environment; ``None``: requests need no token.

    Raises:
        ConfigError: if a client could not send this token.
    """
    token = environ.get(TOKEN)
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"the environment variable {TOKEN} is empty, or not a token that every client can send",
            remedy="Use ASCII letters, digits and punctuation, or unset the variable to serve without a token.",
        )
    return token


def is_local(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def names_this_machine(header: str) -> bool:
    """Return whether the header ``Host`` has a name of this machine; other names indicate DNS rebinding."""
    return is_local(_PORT.sub("", header).removeprefix("[").removesuffix("]"))
