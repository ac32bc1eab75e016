"""Types of the keyword arguments of the Python API, made from `bertsmith.config`: ``python -m tests.keyword_types``."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from bertsmith.config import Config, DataConfig, EvalConfig, ModelConfig, TableSource, TrainConfig

FILE = Path(__file__).parents[1] / "src" / "bertsmith" / "api" / "keyword_types.py"
_HEAD = '''"""Types of the keyword arguments of the Python API, for completion and type checkers.

Generated from `bertsmith.config` by ``python -m tests.keyword_types``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

'''
_TEXTS = ("text_column", "pair_column", "with_columns", "sql", "db", "sheet", "encoding", "max_unpacked")
_SIZES = ("validation_size", "test_size", "near_duplicates")
_TABLES = ("task", "split_column", "validation", "test")
_TABLE = tuple(name for name in DataConfig.model_fields if name not in (*_SIZES, *_TABLES))
_CLASSES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "PredictSettings": (
        "TypedDict",
        "How to read texts, and where to compute.",
        (*_TEXTS, "long", "device", "threads"),
    ),
    "NextSettings": (
        "PredictSettings",
        "How to read a pool, the checkpoint of its embeddings, and where to compute.",
        ("model", "max_length", "seed"),
    ),
    "TableSettings": ("TypedDict", "How to read one labelled table.", _TABLE),
    "EvaluateSettings": ("TableSettings", "How to read a table, and where to compute.", ("long", "device", "threads")),
    "ReadSettings": ("TableSettings", "How to read tables that are split or not.", _TABLES),
    "LabelErrorSettings": (
        "ReadSettings",
        "How to read a table, to embed its texts, and to assign them to folds.",
        ("seed", "model", "max_length", "device"),
    ),
    "InspectSettings": (
        "ReadSettings",
        "How to read and split a table, and to count tokens.",
        (*_SIZES, *ModelConfig.model_fields, "seed"),
    ),
    "TuneSettings": (
        "InspectSettings",
        "How to read a table, to fine-tune and to decide, without ``cv`` and ``seeds``: `tune` has its own parameters.",
        tuple(
            name
            for name in (*TrainConfig.model_fields, *EvalConfig.model_fields)
            if name not in ("cv", "effort", "seed", "seeds")
        ),
    ),
    "TrainSettings": ("TuneSettings", "How to read a table, to fine-tune and to decide.", ("cv", "effort", "seeds")),
}


def source() -> str:
    """Return the module."""
    parts = [_HEAD]
    for name, (base, doc, fields) in _CLASSES.items():
        lines = [f"    {field}: {_type(field)}" for field in fields]
        parts.append("\n".join([f"\nclass {name}({base}, total=False):", f'    """{doc}"""\n', *lines, ""]))
    return "\n".join(parts)


def _type(field: str) -> str:
    """Return the type of what a user may pass as a setting."""
    if typing.get_type_hints(Config, include_extras=True)[field] == TableSource:
        return "Any"  # a path, an address, a data frame or a dataset
    return _spelled(typing.get_type_hints(Config)[field])


def _spelled(hint: Any) -> str:
    if hint is Path:
        return "Path | str"
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is typing.Literal:
        return f"Literal[{', '.join(repr(value).replace(chr(39), chr(34)) for value in typing.get_args(hint))}]"
    if typing.get_origin(hint) is dict:
        return "dict[str, Any]"
    if typing.get_origin(hint) is tuple:
        return "Sequence[str]"
    if arguments := typing.get_args(hint):  # a union
        return " | ".join(map(_spelled, arguments))
    return str(hint.__name__)


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
