"""Fine-tune BERT-family models for text classification: from a labelled table to a classifier you can trust.

The public names load on first use, so that ``import bertsmith`` needs neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertsmith.api import compare, evaluate, export, inspect, label_errors, load, read_table, train, tune
    from bertsmith.data.findings import Findings
    from bertsmith.data.table import Labels, Table
    from bertsmith.errors import UserError
    from bertsmith.inference.classifier import Classifier
    from bertsmith.run import Run
    from bertsmith.tuning.study import Study

__version__ = "0.2.0"

_HOME = {
    "Classifier": "bertsmith.inference.classifier",
    "Findings": "bertsmith.data.findings",
    "Labels": "bertsmith.data.table",
    "Run": "bertsmith.run",
    "Study": "bertsmith.tuning.study",
    "Table": "bertsmith.data.table",
    "UserError": "bertsmith.errors",
    "compare": "bertsmith.api",
    "evaluate": "bertsmith.api",
    "export": "bertsmith.api",
    "inspect": "bertsmith.api",
    "label_errors": "bertsmith.api",
    "load": "bertsmith.api",
    "read_table": "bertsmith.api",
    "train": "bertsmith.api",
    "tune": "bertsmith.api",
}

__all__ = [
    "Classifier",
    "Findings",
    "Labels",
    "Run",
    "Study",
    "Table",
    "UserError",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "label_errors",
    "load",
    "read_table",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from bertsmith.errors import EXTRAS, MissingPackageError

        try:
            return getattr(importlib.import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise MissingPackageError(error.name, f"bertsmith.{name}", needs="train") from error
    raise AttributeError(f"module 'bertsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
