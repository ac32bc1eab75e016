"""Fine-tune BERT-family models for text classification.

Public names are imported on first use, so that ``import bertsmith`` imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # "as" exports a name for type checkers
    from bertsmith.api.estimator import BertClassifier as BertClassifier
    from bertsmith.api.inference import export as export, load as load, predict as predict, push as push
    from bertsmith.api.labelling import next_texts as next_texts
    from bertsmith.api.measuring import drift as drift, measure as measure, regress as regress
    from bertsmith.api.training import (
        compare as compare,
        evaluate as evaluate,
        inspect as inspect,
        label_errors as label_errors,
        read_table as read_table,
        train as train,
        tune as tune,
    )
    from bertsmith.data.findings import Findings as Findings
    from bertsmith.data.table import Labels as Labels, Table as Table
    from bertsmith.errors import UserError as UserError
    from bertsmith.folders.run import Run as Run
    from bertsmith.folders.study import Study as Study
    from bertsmith.inference.classifier import Classifier as Classifier
    from bertsmith.inference.export import Export as Export
    from bertsmith.inference.predictor import Predictor as Predictor
    from bertsmith.measuring.regression import Regression as Regression
    from bertsmith.measuring.result import Measurement as Measurement
    from bertsmith.workflows.drift import Drift as Drift
    from bertsmith.workflows.predict import Predictions as Predictions

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

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from bertsmith.errors import needing

        load = needing("train", f"bertsmith.{name}")(importlib.import_module)
        return getattr(load(_MODULES[name]), name)
    raise AttributeError(f"module 'bertsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
