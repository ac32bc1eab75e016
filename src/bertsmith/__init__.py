"""Fine-tune BERT-family models for text classification.

Public names are imported on first use, so that ``import bertsmith`` imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertsmith.api.estimator import BertClassifier
    from bertsmith.api.inference import export, load, predict, push
    from bertsmith.api.labelling import next_texts
    from bertsmith.api.measuring import drift, measure, regress
    from bertsmith.api.training import compare, evaluate, inspect, label_errors, read_table, train, tune
    from bertsmith.data.findings import Findings
    from bertsmith.data.table import Labels, Table
    from bertsmith.errors import UserError
    from bertsmith.folders.run import Run
    from bertsmith.folders.study import Study
    from bertsmith.inference.classifier import Classifier
    from bertsmith.inference.export import Export
    from bertsmith.inference.predictor import Predictor
    from bertsmith.measuring.regression import Regression
    from bertsmith.measuring.result import Measurement
    from bertsmith.workflows.drift import Drift
    from bertsmith.workflows.predict import Predictions

__version__ = "0.2.0"

_NAMES = {
    "bertsmith.api.estimator": ("BertClassifier",),
    "bertsmith.api.inference": ("export", "load", "predict", "push"),
    "bertsmith.api.labelling": ("next_texts",),
    "bertsmith.api.measuring": ("drift", "measure", "regress"),
    "bertsmith.api.training": ("compare", "evaluate", "inspect", "label_errors", "read_table", "train", "tune"),
    "bertsmith.data.findings": ("Findings",),
    "bertsmith.data.table": ("Labels", "Table"),
    "bertsmith.errors": ("UserError",),
    "bertsmith.folders.run": ("Run",),
    "bertsmith.folders.study": ("Study",),
    "bertsmith.inference.classifier": ("Classifier",),
    "bertsmith.inference.export": ("Export",),
    "bertsmith.inference.predictor": ("Predictor",),
    "bertsmith.measuring.regression": ("Regression",),
    "bertsmith.measuring.result": ("Measurement",),
    "bertsmith.workflows.drift": ("Drift",),
    "bertsmith.workflows.predict": ("Predictions",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "BertClassifier",
    "Classifier",
    "Drift",
    "Export",
    "Findings",
    "Labels",
    "Measurement",
    "Predictions",
    "Predictor",
    "Regression",
    "Run",
    "Study",
    "Table",
    "UserError",
    "compare",
    "drift",
    "evaluate",
    "export",
    "inspect",
    "label_errors",
    "load",
    "measure",
    "next_texts",
    "predict",
    "push",
    "read_table",
    "regress",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from bertsmith.errors import EXTRAS, MissingPackageError

        try:
            return getattr(importlib.import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise MissingPackageError(error.name, f"bertsmith.{name}", needs="train") from error
    raise AttributeError(f"module 'bertsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
