"""The page of settings, made from `bertsmith.config`: ``python -m tests.settings_page`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertsmith.config import DataConfig, EvalConfig, ModelConfig, TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD = """# Settings

Names, types, ranges and defaults, as `bertsmith.train(…)` and the other functions take them. The flag of `batch_size`
is `--batch-size`, its environment variable `BERTSMITH_BATCH_SIZE`, its key in a `--config` file `batch_size` or
`batch-size`. From Python, `validation` and `test` may be a pandas data frame or a `datasets.Dataset`.
"""
_TITLES = {DataConfig: "Data", ModelConfig: "Model", TrainConfig: "Training", EvalConfig: "Evaluation"}
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "table",
}
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for step, title in _TITLES.items():
        parts.append(f"\n## {title}\n\n| name | type | default | what it is |\n| --- | --- | --- | --- |")
        for name, schema in step.model_json_schema()["properties"].items():
            parts.append(f"| `{name}` | {_kind(schema)} | {_default(schema)} | {schema['description']} |")
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


def _kind(schema: dict[str, Any]) -> str:
    schema = next((s for s in schema.get("anyOf", []) if s["type"] != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = "path" if schema.get("format") == "path" else _TYPES[schema["type"]]
    bounds = [text.format(_number(schema[key])) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None or value == {}:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else _number(value)}`"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
