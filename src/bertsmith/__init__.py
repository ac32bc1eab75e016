"""Fine-tune BERT-family models for text classification: from a labelled table to a classifier you can trust.

The public names load on first use, so that ``import bertsmith`` needs neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertsmith.api.inference import export, load, predict
    from bertsmith.api.training import compare, evaluate, inspect, label_errors, read_table, train, tune
    from bertsmith.data.findings import Findings
    from bertsmith.data.table import Labels, Table
    from bertsmith.errors import UserError
    from bertsmith.folders.run import Run
    from bertsmith.folders.study import Study
    from bertsmith.inference.classifier import Classifier
    from bertsmith.inference.export import Export
    from bertsmith.inference.predictor import Predictor
    from bertsmith.workflows.predict import Predictions

__version__ = "0.2.0"

_HOME = {
    "Classifier": "bertsmith.inference.classifier",
    "Findings": "bertsmith.data.findings",
    "Export": "bertsmith.inference.export",
    "Labels": "bertsmith.data.table",
    "Predictions": "bertsmith.workflows.predict",
    "Predictor": "bertsmith.inference.predictor",
    "Run": "bertsmith.folders.run",
    "Study": "bertsmith.folders.study",
    "Table": "bertsmith.data.table",
    "UserError": "bertsmith.errors",
    "compare": "bertsmith.api.training",
    "evaluate": "bertsmith.api.training",
    "export": "bertsmith.api.inference",
    "inspect": "bertsmith.api.training",
    "label_errors": "bertsmith.api.training",
    "load": "bertsmith.api.inference",
    "predict": "bertsmith.api.inference",
    "read_table": "bertsmith.api.training",
    "train": "bertsmith.api.training",
    "tune": "bertsmith.api.training",
}

__all__ = [
    "Classifier",
    "Export",
    "Findings",
    "Labels",
    "Predictions",
    "Predictor",
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
    "predict",
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
