"""What the functions of the Python API share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from bertsmith.compute.machine import use_cores
from bertsmith.config import Config
from bertsmith.errors import ConfigError, naming_parameters, needing, quoted
from bertsmith.load_config import resolve

P = ParamSpec("P")
R = TypeVar("R")


def public(extra: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function part of the Python API.

    The function takes only ``True`` and ``False`` for its keyword-only bool parameters, its errors name parameters
    instead of flags, and a missing package is a `MissingPackageError`.

    Args:
        extra: the extra that the function needs as a whole.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        kinds = {name: kind for name, kind in function.__annotations__.items() if kind in ("bool", "bool | None")}

        @needing(extra)
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, kind in kinds.items():
                value = kwargs.get(name, False)
                is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy's types
                if not is_bool and not (value is None and kind != "bool"):
                    raise ConfigError(
                        f"{name} should be True or False, not {quoted(value)}", remedy="Pass True or False."
                    )
            with naming_parameters():
                return function(*args, **kwargs)

        return checked

    return decorate


def settings_of(given: Mapping[str, object], kind: Any) -> Config:
    """Return the checked settings of a function, and limit the cores of this process to ``threads``.

    Args:
        given: keyword arguments of the user.
        kind: the type from `bertsmith.api.keyword_types` that names the settings of the function.

    Raises:
        ConfigError: if the function does not use a setting, or a value is invalid.
    """
    config = resolve(given, api=True, only=kind.__optional_keys__)
    if "threads" in kind.__optional_keys__:
        use_cores(config.threads)
    return config
