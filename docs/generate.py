"""Write the pages of the reference that come from the code: ``python docs/generate.py``.

A test compares the pages with what this script would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import bertsmith as bs
from bertsmith.config import BaseConfig, DataConfig, EvalConfig, ModelConfig, TrainConfig
from bertsmith.measuring.drift import Difference
from bertsmith.measuring.result import MeanLevel, Measurement, Share
from bertsmith.workflows.drift import Drift

REFERENCE = Path(__file__).parent / "reference"
_NOTE = "<!-- docs/generate.py writes this page from the code: edit the code or the script. -->\n"
_CONFIGS: dict[type[BaseConfig], str] = {
    DataConfig: "Data",
    ModelConfig: "Model",
    TrainConfig: "Training",
    EvalConfig: "Evaluation",
}

# -- settings --------------------------------------------------------------------------------------------------------

_SETTINGS = """# Settings

Every setting has one name. The table shows how to write `batch_size` in each place:

| place | spelling |
| --- | --- |
| flag | `--batch-size 16` |
| environment variable | `BERTSMITH_BATCH_SIZE=16` |
| configuration file (`--config FILE.toml`) | `batch_size = 16` or `batch-size = 16` |
| Python | `bertsmith.train(table, batch_size=16, …)` |

Flags and Python arguments take precedence over environment variables, environment variables over the file, and the file
over the defaults. bertsmith reports all wrong settings at once. From Python, `validation` and `test` also take a data
frame, an Arrow table or a `datasets.Dataset`.

The `set` setting passes fields of `transformers.TrainingArguments`. bertsmith refuses fields that it cannot apply, such
as `fsdp`, and fields that have their own flag, such as `seed`.

```toml
# bertsmith train reviews.csv -o runs/reviews --config settings.toml
model = "FacebookAI/roberta-base"
epochs = 4

[set]
weight_decay = 0.05
```
"""
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "table",
    "array": "list of names",
}
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def settings() -> str:
    """Return the page of settings, from `bertsmith.config`."""
    parts = [_SETTINGS]
    for config, title in _CONFIGS.items():
        rows = [
            (f"`{name}`", _kind(schema), _default(schema), schema["description"])
            for name, schema in config.model_json_schema()["properties"].items()
        ]
        parts.append(f"## {title}\n\n{_table(('name', 'type', 'default', 'meaning'), rows)}")
    return "\n".join(parts)


def _kind(schema: dict[str, Any]) -> str:
    schema = next((s for s in schema.get("anyOf", []) if s["type"] != "null"), schema)
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = "path" if schema.get("format") == "path" else _TYPES[schema["type"]]
    bounds = [text.format(_number(schema[key])) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None or value in ({}, []):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else _number(value)}`"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# -- commands --------------------------------------------------------------------------------------------------------

_COMMANDS = """# Commands

Results go to standard output, progress and messages to standard error. A repeated option is an error, unless its
description says that it may be repeated. `bertsmith COMMAND --help` prints the same descriptions.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | an internal error; the message names a file with the traceback |
| 2 | an error that you can fix; the message says what is wrong, where, and what to do |
| 130 | interrupted; the message says how to resume |
"""


def commands() -> str:
    """Return the page of commands, from the command line itself."""
    import typer

    from bertsmith.cli.app import app

    parts = [_COMMANDS]
    for name, command in typer.main.get_command(app()).commands.items():
        lines = [line.strip() for line in command.help.splitlines()]
        example = next(line for line in lines if line.startswith("Example: ")).removeprefix("Example: ")
        about = [line for line in lines if line and not line.startswith("Example: ")]
        arguments = [p for p in command.params if not p.opts[0].startswith("-")]
        options = [p for p in command.params if p not in arguments and p.name != "help"]
        usage = " ".join(p.metavar if p.required else f"[{p.metavar}]" for p in arguments)
        parts += [f"## {name}\n", *(f"{_plain(line)}\n" for line in about)]
        whole = " ".join(f"bertsmith {name} {usage} [OPTIONS]".split())
        parts.append(f"```console\n$ {example}\n```\n\nUsage: `{whole}`\n")
        own = [p for p in options if _config_of(p) is None]
        rows = [(f"`{p.metavar}`", "", p.help + _variable(p)) for p in arguments]
        rows += [(_flags(p), _shown_default(p), _plain(p.help) + _range(p) + _variable(p)) for p in own]
        parts.append(_table(("argument or option", "default", "meaning"), rows))
        for config, title in _CONFIGS.items():
            flags = [f"`--{p.name.replace('_', '-')}`" for p in options if _config_of(p) is config]
            if flags:
                parts.append(f"[{title} settings](settings.md#{title.lower()}): {', '.join(flags)}.\n")
    return "\n".join(parts)


def _config_of(option: Any) -> type[BaseConfig] | None:
    """Return the group of a setting; ``None`` for an option of one command, even if it has the name of a setting."""
    groups = (config for config, title in _CONFIGS.items() if title == option.rich_help_panel)
    return next((config for config in groups if option.name in config.model_fields), None)


def _flags(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"{names} `{_escaped(option.metavar or _choices(option))}`" if not option.is_flag else names


def _choices(option: Any) -> str:
    kind = option.type_descriptor.annotation
    return "|".join(map(str, getattr(kind, "__args__", ()))) or "VALUE"


def _shown_default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag and option.secondary_opts:
        return f"`{option.opts[0] if option.default else option.secondary_opts[0]}`"
    hidden = option.default is None or option.is_flag or option.default in ((), [])
    return "" if hidden else f"`{_number(option.default)}`"


def _range(option: Any) -> str:
    least, most = _number(option.min), _number(option.max)
    if least is None:
        return ""
    return f" At least {least}." if most is None else f" From {least} to {most}."


def _variable(option: Any) -> str:
    return f" Environment variable: `{option.envvar}`." if option.envvar else ""


# -- files -----------------------------------------------------------------------------------------------------------

_FILES = """# Files

## A run

`bertsmith train` writes a run folder. At any time, the folder contains no run, a run that can be resumed, or a finished
run. Row 1 is the first row after the header. A label number is the number of a class in your table; a label text is the
name of the class.

"""
_STUDY = """## A study

`bertsmith tune` writes a study folder.

| file | content |
| --- | --- |
| `report.html` | the result, what to try next, which settings matter, and every trial |
| `best/` | the winner, as a run folder |
| `defaults/` | the run with the default settings and the same flags; absent if the defaults won |
| `best.toml` | the settings of the winner, for `bertsmith train --config` |
| `study.json` | settings, search space, trials and result |
| `journal.log` | the study in Optuna's format; absent with `--storage` |
| `tensorboard/` | event files of `tune --track tensorboard` |

| key of `study.json` | content |
| --- | --- |
| `searched` | settings, search space, objectives, number of folds, fingerprint of the table |
| `trials` | number, state, values, seconds, settings, scores and error of each trial that is done |
| `soft_labels`, `label_noise` | as in `run.json`, for the trials |
| `told` | the winners whose test result the study has shown so far, as numbers of the trial and of its seeds |
| `result` | the winner and its comparison with the default settings. Its `told` counts the test results shown so far |

## A labelling project

`bertsmith label` writes a project folder.

| file | content |
| --- | --- |
| `labels.sqlite` | chosen texts, all decisions of all coders, codebook, settings, former names of labels |
| `labels.csv` | the table for `bertsmith train` |
| `embeddings.f16`, `embeddings.hashes`, `embeddings.json` | embeddings of the pool, hashes of its texts, checkpoint |
| `runs/` | the runs that the page trained, each with its table |

`labels.csv` has a row for each labelled text. The label is empty for texts on which coders are tied, and for random
texts that coders left without a label. With several labels per text, the list `[]` means none of the labels. The first
columns of `labels.csv` are those of the next table. The columns of the pool follow. If a column of the pool has one of
these names, it becomes `pool NAME`. If a flag such as `--text-column` or
`--by` names this column, `bertsmith measure` reads `pool NAME` from this table.

| column | content |
| --- | --- |
| `Text`, `Pair` | the text; the second text of a pair |
| `Label Text`, `Label` | label text, several as a JSON list; number of an ordinal label |
| `split` | `test` for random texts, otherwise `train`; `train` for all texts if only random texts have a label |
| `random` | whether the text was drawn at random and its inclusion probability is known |
| `inclusion_probability` | for a random text, the probability that the random sample contains it; otherwise empty |
| `reason` | why the text was chosen: `uncertain`, `diverse`, `rare` or `random` |
| `decided_by`, `share_of_coders` | origin of the label; share of coders who gave it |
| `row`, `note` | row of the pool; notes of the coders |

## An export

`bertsmith export` writes an export folder. It has a checksum for every file that affects predictions.

| file | content |
| --- | --- |
| `export.json` | labels, columns, inputs, maximum length, temperature, decision rule, result of the check, checksums |
| `model.onnx` and `model.onnx.data`, or `model.xml` and `model.bin` | the model |
| `tokenizer.json` | the tokenizer |
| `validation.npz` | for thresholds and estimates: validation labels, probabilities, lengths, groups, and `long` |
| `README.md` | the commands that install and run the export |

In `export.json`, `parity` is the result of the check, and `parity.held` is whether the export passed it.

## Predictions of new texts

`bertsmith predict` keeps the columns of the input and adds these:

| column | content |
| --- | --- |
| `predicted` | label number; empty where a text is missing or the model abstains |
| `predicted_text` | label text |
| `predicted_texts` | instead, for several labels: a list of label texts, joined by `;` in CSV and Excel |
| `confidence` | calibrated probability of the predicted class |
| `abstained` | with `--min-confidence` or `--target-accuracy`: whether the model abstains on this row |
| `label_set` | with `--coverage`: a set of label texts, which contains the true label for this share of the texts |
| `lower`, `upper` | instead, for numbers: bounds of an interval that contains the number for this share of the texts |
| `probability of LABEL TEXT` | with `--probabilities`: one column for each class |

[Several labels, ordered labels, numbers](../how-to/other-labels.md) lists the columns of each `--task`.

## A measurement

`bertsmith measure` prints these keys with `--json`. [Measure a corpus](../how-to/measure-a-corpus.md) explains them.
"""
_CSV = """The CSV file of `-o` has one row for each entry of `shares` and `means`. Its columns are the keys of a share,
with three differences. `low` and `high` replace `interval`, and `labelled_low` and `labelled_high` replace
`labelled_interval`. `difference` is the naive value minus the corrected one. `group` is empty for the whole corpus. For
ordered labels and numbers, the file also has the columns `mean` and `labelled_mean`. Rows with a mean have the label
text `(level)` or `(number)`.

The file of `--for-regression` has one row for each text of the corpus:

| column | content |
| --- | --- |
| `row` | row of the corpus |
| columns of the corpus | all except the text; if another column has the same name, the name becomes `corpus NAME` |
| `labelled` | 1 if the text is in the labelled sample, otherwise 0 |
| `inclusion_probability` | for a labelled text, the probability that it is in the sample; otherwise empty |
| `outcome LABEL TEXT` | corrected outcome of a class, for `regress`; means: `outcome (level)`, `outcome (number)` |

## A comparison of texts

`bertsmith drift` prints these keys with `--json`.
"""
_PRINTED: dict[str, tuple[type, dict[str, str]]] = {
    "key": (
        Measurement,
        {
            "shares": "one entry for each class of the whole corpus, then for each class of each group; see below",
            "means": "for ordered labels and numbers, the mean of the whole corpus and of each group; otherwise empty",
            "corpus": "name of the corpus",
            "sample": "name of the labelled sample; `null` without one",
            "by": "column of `--by`; `null` without it",
            "in_corpus": "whether all labelled texts are in the corpus. If so, the intervals are for this corpus; "
            "otherwise, they are for the population that sample and corpus come from",
            "more_labels": "for each label text, how many more random texts to label for an interval of ±1 point",
            "least_widths": "for each label text, the least width of an interval with this model, relative to that of "
            "the labelled texts alone. It is √(1 − ρ²), where ρ is the correlation of predictions and labels",
            "left_out": "number of rows of the sample that the estimates do not use, by reason",
            "empty": "number of rows of the corpus without a text",
            "notes": "the notes that the command also prints on standard error",
            "clusters": "number of groups in the sample, with `--group-column`; otherwise `null`",
            "trained": "number of rows of the corpus left out because they are training or validation texts of the run",
            "run": "when the run was created, and the fingerprint of its table",
        },
    ),
    "key of an entry of `shares`": (
        Share,
        {
            "label_text": "the class",
            "group": "value of the column of `--by`; `null` for the whole corpus",
            "share": "corrected share, from 0 to 1; `null` without an estimate",
            "interval": "its 95 % interval, `[low, high]`",
            "naive": "share of the texts with this predicted label, not corrected",
            "estimator": "`PPI++`, `DSL` (unequal inclusion probabilities) or `adjusted count` (no labelled sample)",
            "labelled": "number of labelled texts that the share is based on",
            "texts": "number of texts of the corpus or group",
            "labelled_share": "share in the labelled texts alone, without the model; `null` without a labelled sample",
            "labelled_interval": "its 95 % interval. A good model makes `interval` narrower than this",
        },
    ),
    "key of an entry of `means`": (
        MeanLevel,
        {
            "group": "value of the column of `--by`; `null` for the whole corpus",
            "mean": "corrected mean of the label numbers, or of the number; `null` without an estimate",
            "interval": "its 95 % interval, `[low, high]`",
            "naive": "mean of the predicted levels or numbers, not corrected",
            "estimator": "as for a share",
            "labelled": "number of labelled texts that the mean is based on",
            "texts": "number of texts of the corpus or group",
            "labelled_mean": "mean of the labelled texts alone, without the model; `null` without a labelled sample",
            "labelled_interval": "its 95 % interval",
        },
    ),
    "key of the comparison": (
        Drift,
        {
            "corpus": "name of the new texts",
            "texts": "number of new texts",
            "test_texts": "number of test texts of the run",
            "sampled": "number of new texts in the random sample; all properties except the predicted labels use it",
            "grouped": "whether the run has groups. If so, distances exceed the thresholds more often by chance",
            "differences": "one entry for each property; see below",
            "differs": "whether any property differs by more than chance explains",
        },
    ),
    "key of an entry of `differences`": (
        Difference,
        {
            "name": "the property",
            "before": "its mean in the test texts; `null` for embeddings and predicted labels",
            "after": "its mean in the new texts; `null` in the same cases",
            "distance": "distance between the two, in standard deviations. For predicted labels, it is the total "
            "variation distance; if a text can have several labels, it is the largest difference in the share of any "
            "label",
            "threshold": "value that the distance rarely exceeds by chance",
            "differs": "whether the distance exceeds the threshold",
        },
    ),
}
"""What a command prints with ``--json``: the type of a result or entry, and its keys."""
_PREDICTIONS = {
    "row": "row of the source table",
    "text": "text as the model read it, after cleaning; the first text of a pair. In CSV, a `'` precedes texts that a "
    "spreadsheet would run as formulas",
    "pair": "second text of a pair; with `--pair-column` only",
    "label": "label number from the table; for numbers, the number",
    "label_text": "label text from the table; not for numbers",
    "labels": "instead of `label`, for several labels: a list of label numbers",
    "label_texts": "instead of `label_text`, for several labels: a list of label texts",
    "group": "group of the text; with `--group-column` only",
    "predicted": "predicted label number; for several labels, a list; for numbers, the predicted number",
    "predicted_text": "predicted label text; not for numbers",
    "predicted_texts": "instead of `predicted_text`, for several labels: a list of label texts",
    "confidence": "calibrated probability of the predicted class; for several labels, the probability that all "
    "predicted labels are correct; not for numbers",
    "probabilities": "probability of every class, in the order of `labels.json`; a JSON list in the CSV file; not for "
    "numbers",
}
_SPLIT = {
    "texts": "number of texts",
    "interval": "confidence level, number of resamples, and method of the intervals; with `--group-column`, also the "
    "number of groups",
    "metrics": "every metric with `value` and `interval`; an undefined value is `null`, and so is an interval of one "
    "group or without width",
    "per_class": "precision, recall, F1, average precision and counts of each class; not for numbers",
    "confusion": "confusion matrix; rows are the true classes, columns the predicted ones; for one label per text",
    "cooccurrence": "for several labels, two matrices over pairs of labels: `labels` counts the texts that have both, "
    "`predicted` the texts for which the model predicts both",
    "without_labels": "for several labels: `labels` is the number of texts without a label, `predicted` that of texts "
    "without a predicted label",
    "calibration": "expected calibration error, Brier score, bins; for the test split also before calibration",
    "sample_of": "for the train split: number of training texts; bertsmith scores a sample of them",
    "by": "`cross-validation` if the metrics come from cross-validation; otherwise absent",
    "folds": "number of folds, if the metrics come from cross-validation; otherwise absent",
}
CONTENT: dict[str, tuple[str, dict[str, str]]] = {
    "run.json": (
        "key",
        {
            "status": "`running`, `interrupted`, `failed` or `finished`",
            "created": "start of the run, UTC",
            "finished": "end of the run, UTC",
            "config": "every setting except `db`, which can contain a password",
            "task": "kind of label: `single-label`, `multi-label`, `ordinal` or `regression`",
            "versions": "versions of Python and of the main packages",
            "hardware": "device, CPU, cores, threads and system",
            "data": "fingerprint, sources, sizes of the splits, number of folds, dropped rows by reason, and all "
            "findings",
            "model": "checkpoint: name, architecture, revision, checksum, number of weights, maximum length",
            "template": "columns that the model reads: `text_column`, `pair_column`, `with_columns`",
            "recipe": "training settings in use, with the reason for each choice",
            "seconds": "time by phase",
            "training": "steps, epochs, best step and score, early stopping, time",
            "long": "how the model reads texts above the maximum length: `truncate`, `head-tail` or `window`",
            "model_files": "SHA-256 of the files in `model/`",
            "went_back": "step and reason, if a loss or gradient was not finite; otherwise absent",
            "soft_labels": "whether training uses soft labels, and their comparison with majority labels; with "
            "`--coder-column` only",
            "label_noise": "whether training left out texts with a probably wrong label, and the comparison that "
            "decided this. Present for `single-label` with 300 to 4,000 training texts, at least 20 per class on "
            "average. Absent with cross-validation, `--coder-column` or `--label-noise off`",
            "best_seed": "seed of the best run; with `--seeds` only",
        },
    ),
    "labels.json": (
        "key of a class",
        {
            "id": "class index in the model, from 0",
            "label": "number of the class in the table",
            "label_text": "name of the class",
            "counts": "texts of the class in each split",
        },
    ),
    "splits.parquet": (
        "column",
        {
            "source": "name of the source table",
            "row": "row in that table",
            "split": "`train`, `validation` or `test`; missing for a dropped row",
            "reason": "why bertsmith dropped the row; otherwise missing",
            "hash": "XXH3 hash of the text; `evaluate` uses it to count texts that training has seen; missing for a "
            "dropped row",
        },
    ),
    "history.jsonl": (
        "key of a line (one line per evaluation)",
        {
            "step": "optimizer steps so far",
            "epoch": "epochs so far",
            "train_loss": "mean loss over the steps since the last evaluation",
            "validation_loss": "mean loss over the validation texts",
            "metrics": "two metrics on validation, one of them primary: accuracy and macro-F1, for example",
            "learning_rate": "learning rate at this step",
            "texts_per_second": "training texts per second since the last evaluation",
            "seconds": "seconds since training began",
            "best": "whether this is the best value of the primary metric so far",
        },
    ),
    "metrics.json": (
        "key",
        {
            "primary": "metric that chooses the best epoch: `macro_f1`; `quadratic_kappa` for ordinal labels; "
            "`r2` for numbers",
            "splits": "metrics of `train`, `validation` and `test`; see below",
            "baseline": "the baselines: `majority_class`, `bag_of_words` and, except with `--effort quick`, "
            "`frozen_embeddings`",
            "inference": "numerical precision of predictions, `fp32` or `bf16`; if bf16 is fast on the device, its "
            "comparison with fp32",
            "abstention": "accuracy by coverage, thresholds, conformal sets, label shift",
            "slices": "accuracy on parts of the test split",
            "decision_rule": "offsets of the classes, gain, and whether the rule is in use",
            "columns": "primary metric with and without the columns after the first text column; with several columns "
            "only",
            "long_texts": "how the model reads long texts, the comparison on validation, and the gain on test texts",
            "seeds": "each seed, the spread, and the ensemble; with `--seeds` only",
        },
    ),
    "metrics.json, one split": ("key", _SPLIT),
    "predictions": ("column of `validation` and `test` (`.parquet` and `.csv`)", _PREDICTIONS),
    "evaluations": (
        "key of `NAME/metrics.json` besides those of a split",
        {
            "table": "name of the table",
            "source": "path of the table",
            "fingerprint": "SHA-256 over texts, labels and splits",
            "long": "how the model read texts above the maximum length",
            "left_out": "dropped rows by reason",
            "seen_in_training": "number of texts of the table that the model was trained or validated on",
            "notes": "labels that no text has, and texts that occur with different labels",
        },
    ),
}
"""What a file of a run holds, by its name: what its parts are called, and each of them."""


def files() -> str:
    """Return the page of files, from the docstring of the run folder's layout."""
    layout = bs.Run(Path("RUN")).layout
    about = dict(re.findall(r"(?m)^ +(\w+): (.*?)\.?$", inspect.getdoc(type(layout)) or ""))
    parts = {path.relative_to("RUN").as_posix(): about[name] for name, path in vars(layout).items()}
    folders = {"model", "predictions", "tensorboard", "checkpoints", "folds", "seeds", "export", "evaluations"}
    rows = [(f"`{path}{'/' if path in folders else ''}`", _plain(text)) for path, text in parts.items()]
    page = [_FILES + _table(("file", "content"), rows)]
    for path, (what, content) in CONTENT.items():
        name = f"{path}/" if path in folders else path
        page.append(f"### {name}\n\n{_table((what, 'content'), ((f'`{key}`', text) for key, text in content.items()))}")
    printed = {}
    for title, (kind, keys) in _PRINTED.items():
        known = {field.name for field in dataclasses.fields(kind)} | ({"differs"} & set(vars(kind)))
        if known != set(keys):
            raise ValueError(f"{kind.__name__} has {sorted(known)}, and the reference {sorted(keys)}")
        printed[title] = _table((title, "content"), ((f"`{key}`", text) for key, text in keys.items()))
    of_measure, of_drift = list(printed.values())[:3], list(printed.values())[3:]
    return "\n".join([*page, _STUDY, *of_measure, _CSV, *of_drift])


# -- HTTP ------------------------------------------------------------------------------------------------------------

_HTTP = """# HTTP API

`bertsmith serve` answers these requests. On the page `/docs` (Swagger UI), you can try each request; `/openapi.json`
describes the requests in machine-readable form. If `BERTSMITH_TOKEN` is set, requests need the header
`Authorization: Bearer TOKEN` or `X-API-Key: TOKEN`, or Basic authentication with the token as the password. The paths
`/health`, `/ready`, `/ping`, `/ui`, `/docs`, `/openapi.json`, `/webhook` and `AIP_HEALTH_ROUTE` never need the token.
Further statuses: 404 for an unknown path, 405 for a method that a path does not accept, and 500 for an internal error.

`AIP_HEALTH_ROUTE` and `AIP_PREDICT_ROUTE` stand for the values of the environment variables that Vertex AI sets.
"""


def http() -> str:
    """Return the page of the HTTP API, from its OpenAPI description."""
    from bertsmith.serving.aliases import VertexRoutes
    from bertsmith.serving.app import create_app

    vertex = VertexRoutes("AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE")
    # Neither counts nor limits are in the description.
    about = create_app(lambda: None, None, None, vertex=vertex).openapi()
    schemas = about["components"]["schemas"]
    parts, statuses = [_HTTP], dict[str, str]()
    for path, methods in about["paths"].items():
        for method, action in methods.items():
            text = "\n\n".join(" ".join(part.split()) for part in action["description"].split("\n\n"))
            parts.append(f"## {method.upper()} {path}\n\n{text}\n")
            if body := action.get("requestBody"):
                schema = str(body["content"]["application/json"]["schema"])
                names = list(dict.fromkeys(re.findall(r"#/components/schemas/(\w+)", schema)))
                for name in names:
                    if len(names) > 1:
                        parts.append(f"{_plain(schemas[name]['description'])}\n")
                    parts.append(_table(("field", "type", "default", "meaning"), _fields(schemas, name)))
            answers = {code: _plain(answer["description"]) for code, answer in action["responses"].items()}
            statuses |= answers | {"200": "The server answered the request."}
            parts.append(f"Statuses: {', '.join(f'`{code}`' for code in sorted(answers))}.\n")
    parts.append(f"## Statuses\n\n{_table(('status', 'meaning'), sorted(statuses.items()))}")
    parts.append("## Answers\n")
    for name in _named(schemas, [*_answers(about)]):
        parts.append(f"### {name}\n\n{_plain(schemas[name]['description'])}\n")
        head = ("field", "type", "meaning")
        rows = [
            (f"`{key}`", _json_type(schema), _plain(schema.get("description", "")))
            for key, schema in schemas[name]["properties"].items()
        ]
        shown = 3 if any(meaning for _, _, meaning in rows) else 2
        parts.append(_table(head[:shown], (row[:shown] for row in rows)))
    return "\n".join(parts)


def _named(schemas: dict[str, Any], part: Any) -> dict[str, None]:
    """Return the names of the schemas in a part of the description, and of those in them, in order."""
    found: dict[str, None] = {}
    for name in re.findall(r"#/components/schemas/(\w+)", str(part)):
        found |= {name: None} | _named(schemas, schemas[name])
    return found


def _answers(about: dict[str, Any]) -> Iterator[Any]:
    for methods in about["paths"].values():
        for action in methods.values():
            yield from (answer.get("content") for code, answer in sorted(action["responses"].items()))


def _fields(schemas: dict[str, Any], name: str, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for key, schema in schemas[name]["properties"].items():
        if "$ref" in schema:
            yield from _fields(schemas, schema["$ref"].rpartition("/")[2], f"{prefix}{key}.")
            continue
        given = schema.get("default")
        default = "" if given is None else f"`{str(given).lower() if isinstance(given, bool) else given}`"
        if key in schemas[name].get("required", ()):
            default = "required"
        yield f"`{prefix}{key}`", _json_type(schema), default, _plain(schema.get("description", ""))


def _json_type(schema: dict[str, Any]) -> str:
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        # Lists last: "a list of x or y" could be a list of both.
        kinds = sorted((s for s in alternatives if s.get("type") != "null"), key=lambda s: s.get("type") == "array")
        return " or ".join(dict.fromkeys(map(_json_type, kinds)))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = _json_type(schema["items"])
        return f"list of ({items})" if " or " in items else f"list of {items}"
    if schema.get("type") == "object":
        return "object"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}[schema["type"]]


# -- all -------------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Return a description on one line, with the double backquotes of docstrings as single ones."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([_escaped_once(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escaped_once(text: str) -> str:
    return re.sub(r"(?<!\\)\|", "\\|", text)


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings,
    "commands.md": commands,
    "files.md": files,
    "http.md": http,
}


def page(name: str) -> str:
    """Return what a page should hold."""
    return _NOTE + PAGES[name]().rstrip("\n") + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (REFERENCE / name).write_text(page(name), encoding="utf-8")
