"""How texts are labelled and written, from the command line and from Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, get_args

from bertsmith.config import CsvDialect, OnError
from bertsmith.errors import ConfigError, quoted
from bertsmith.inference.table_writers import DIALECTS, CsvStyle

_RANGES = {"min_confidence": (0, 1), "target_accuracy": (0, 1), "coverage": (0.01, 0.999)}
_CHOICES = {"on_error": get_args(OnError), "csv_dialect": get_args(CsvDialect)}


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How texts are labelled and written; see `bertsmith.predict`."""

    probabilities: bool = False
    min_confidence: float | None = None
    target_accuracy: float | None = None
    coverage: float | None = None
    decide: bool = True
    ensemble: bool = False
    runtime: str = "auto"
    on_error: OnError = "fail"
    csv_dialect: CsvDialect = "plain"
    formula_guard: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the option.
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (is_number and low <= value <= high):
                raise ConfigError(
                    f"{_flag(name)} {quoted(value)} is not a number from {low} to {high}",
                    remedy=f"Pass a number from {low} to {high}.",
                )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{_flag(name)} {quoted(getattr(self, name))} is not a valid value",
                    remedy=f"Pass one of {', '.join(choices)}.",
                )

    @property
    def thresholds(self) -> dict[str, Any]:
        """The arguments of `bertsmith.inference.abstain.fit_abstention`."""
        names = ("min_confidence", "target_accuracy", "coverage", "probabilities")
        return {name: getattr(self, name) for name in names}

    @property
    def csv_style(self) -> CsvStyle:
        """How CSV is written."""
        return replace(DIALECTS[self.csv_dialect], guarded=self.formula_guard)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
