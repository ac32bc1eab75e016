"""Export a fitted classifier for a runtime without torch, and check the export against the original."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from bertsmith.compute.machine import versions
from bertsmith.data.template import Texts, texts_of
from bertsmith.errors import ConfigError, ModelError
from bertsmith.folders import atomic
from bertsmith.folders.claim import claim
from bertsmith.folders.files import ExportFolder
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.export_formats import CALIBRATION_TEXTS, PRECISIONS, write_model
from bertsmith.inference.exported import ABOUT, HELD_OUT, TOKENIZER, Exported, ExportInfo, file_digest
from bertsmith.inference.load import run_facts
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import describe, get_task

MIN_AGREEMENT = {"fp32": 1.0, "bf16": 0.995, "int8": 0.995}
"""Required share of texts with the same label as from the original, by precision."""
MAX_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.2}
"""Largest accepted difference of a probability from the original, by precision; see benchmarks/LOG.md."""
MAX_BATCH_DIFFERENCE = 0.005
"""Largest accepted difference of a probability between a text in a batch and the same text on its own."""
MAX_PARITY_TEXTS = 2000
"""Maximum number of validation and test texts in the comparison, without the texts used for calibration."""
TIE = 1e-3
"""If the two highest probabilities of the original are this close, both labels count as the same."""


@dataclass(frozen=True)
class Export:
    """A written export.

    Attributes:
        path: the export folder.
        about: its description, with the comparison in ``parity``.
    """

    path: Path
    about: ExportInfo


def export(
    run: Run | Path | str,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    output: Path | None = None,
    accept: bool = False,
    overwrite: bool = False,
    long: str = "auto",
) -> Export:
    """Write a self-contained folder that predicts without torch; see `bertsmith.export`."""
    if format not in PRECISIONS:
        raise ConfigError(
            f"bertsmith does not export to the format {format}", remedy=f"Pass one of {', '.join(PRECISIONS)}."
        )
    if precision not in PRECISIONS[format]:
        elsewhere = "".join(f", or --format {name}" for name, found in PRECISIONS.items() if precision in found)
        raise ConfigError(
            f"--precision {precision}: {format} supports {' or '.join(PRECISIONS[format])}",
            remedy=f"Pass --precision {PRECISIONS[format][0]}{elsewhere}.",
        )
    opened = open_run(run)
    target = output or opened.layout.exports / (format if precision == "fp32" else f"{format}-{precision}")
    ExportFolder(target).check(overwrite=overwrite)  # before the slow part
    import torch  # imported late, because wrong arguments should fail fast

    from bertsmith.inference.classifier import Classifier

    original = Classifier.load(opened.path, device="cpu", long=long).set_dtype(torch.float32)
    tokenizer = original.loaded.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"bertsmith does not export the tokenizer {type(tokenizer).__name__}, which is written in Python",
            where=str(opened.path),
            remedy="Serve or predict with the run itself, or train a checkpoint that has a tokenizer.json.",
        )
    validation, n = opened.validation_predictions, CALIBRATION_TEXTS.get((format, precision), 0)
    # Cross-validation without test texts scores the same texts as validation and as test.
    has_test = "by" not in opened.metrics["splits"]["test"]
    calibration = validation.sample(min(n, len(validation) // (1 if has_test else 2)), random_state=0)
    others = (validation.drop(calibration.index), *([opened.predictions] if has_test else []))
    texts = Texts([text for frame in others for text in texts_of(frame)][:MAX_PARITY_TEXTS])
    with claim(ExportFolder(target), overwrite=overwrite), atomic.replaced_folder(target) as folder:
        tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
        try:
            held_out = original.held_out()
        except ConfigError:  # the models of folds cannot read their texts again
            held_out = original.saved()
        lengths, groups = (np.array([]) if v is None else v for v in (held_out.lengths, held_out.groups))
        np.savez(
            folder / HELD_OUT,
            targets=held_out.targets,
            probabilities=held_out.scores[0],  # fp32 would round a confidence close to 1 up to 1
            lengths=lengths,
            groups=groups,
            long=held_out.long,
        )
        about = ExportInfo(
            format,
            precision,
            original.labels,
            original.task.name,
            original.loaded.input_names,
            original.loaded.max_length,
            (int(tokenizer.pad_token_id), str(tokenizer.padding_side)),
            original.rule,
            {},
            {},
            run_facts(opened)
            | {"model_files": opened.info["model_files"], "versions": versions()}
            | {"has_chosen_validation": opened.has_chosen_validation},
            original.template,
            original.long,
            str(tokenizer.truncation_side),
        )
        atomic.write_json(folder / ABOUT, about.to_dict())
        evaluated = "cross-validated texts" if "by" in opened.metrics["splits"]["test"] else "test texts"
        for conservative in (False, True) if n else (False,):
            write_model(original, folder, format, precision, texts_of(calibration), conservative=conservative)
            parity = compare(original, Exported.load(folder), texts)
            failure = _failed_check(parity, precision, original.task)
            if not failure:
                break
        if failure and not accept:
            other = "" if precision == "fp32" else "Pass --precision fp32, or "
            accepting = f"{other or 'Pass '}--accept to accept the difference."
            raise ModelError(failure, where=str(target), remedy=f"bertsmith did not write the export. {accepting}")
        parity |= {"held": not failure, "calibrated_with": len(calibration)}
        atomic.write_text(folder / "README.md", _readme(about, parity, evaluated))
        files = {p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.name not in (ABOUT, "README.md")}
        about = replace(about, parity=parity, files=files)
        atomic.write_json(folder / ABOUT, about.to_dict())
    return Export(target, about)


def compare(original: ModelPredictor, other: ModelPredictor, texts: Texts) -> dict[str, Any]:
    """Compare the predictions and the speed of two classifiers on the same texts.

    Returns:
        A dict with these keys:

        - ``texts``: their number
        - ``agreement``: share with the same prediction, or with a tie within `TIE`
        - ``others_at_most``: upper 95 % bound of the share of similar texts with another prediction (Clopper and
          Pearson 1934)
        - ``largest_difference``: of a probability, or of a number in standard deviations
        - ``neighbours``: largest difference of the other classifier between a batch and a single text, for one text
          of every length
        - ``texts_per_second``: of both
    """
    tables, speeds = [], []
    for classifier in (original, other):
        classifier.predict_proba(Texts(texts[:8]))  # warm-up
        began = time.perf_counter()
        tables.append(classifier.predict_proba(texts))
        speeds.append(len(texts) / (time.perf_counter() - began))
    reference, exported = tables
    # Runtimes choose kernels by length, and a kernel can be wrong for a single length.
    each = np.unique(np.minimum(other.count_tokens(texts), other.max_length), return_index=True)[1]
    single = np.concatenate([other.predict_proba(Texts([texts[i]])) for i in each])
    same, unit = original.task.is_same(reference, exported, TIE), original.task.unit(reference)
    return {
        "texts": len(texts),
        "agreement": float(same.mean()),
        "others_at_most": float(beta.ppf(0.95, (~same).sum() + 1, same.sum())) if same.any() else 1.0,
        "largest_difference": float(abs(reference - exported).max()) / unit,
        "neighbours": float(abs(single - exported[each]).max()) / unit,
        "texts_per_second": {"original": round(speeds[0], 1), "export": round(speeds[1], 1)},
    }


def _failed_check(parity: dict[str, Any], precision: str, task: Task) -> str:
    """Return why an export with this parity is not acceptable, or an empty string."""
    if parity["agreement"] < MIN_AGREEMENT[precision] or not parity["largest_difference"] <= MAX_DIFFERENCE[precision]:
        return (
            f"the export differs from the original: {parity['agreement']:.2%} of {parity['texts']:,} texts of the run "
            f"{task.same_name} (minimum {MIN_AGREEMENT[precision]:.1%}). A "
            f"{task.score_name} differs by up to {parity['largest_difference']:.4f} "
            f"(maximum {MAX_DIFFERENCE[precision]:g}{task.unit_name})"
        )
    if not parity["neighbours"] <= MAX_BATCH_DIFFERENCE:
        return (
            f"predictions of the export depend on the other texts of a batch: a {task.score_name} differs by up to "
            f"{parity['neighbours']:.4f} (maximum {MAX_BATCH_DIFFERENCE:g}{task.unit_name})"
        )
    return ""


def _readme(about: ExportInfo, parity: dict[str, Any], evaluated: str) -> str:
    test = about.run["test"]
    package = "bertsmith" if about.format == "onnx" else f"'bertsmith[{about.format}]'"
    task, base = get_task(about.task), about.run["model"]
    value = test[task.primary]["value"]
    score = "undefined" if value is None else f"{value:.3f}"
    item = about.template.example
    bound = (
        ""
        if about.precision == "fp32"
        else f" Of similar texts, up to {parity['others_at_most']:.1%} may get a different prediction."
    )
    return f"""# {about.run["name"]}, exported

A {describe(task, len(about.labels))}, based on {base}, in {about.format} and {about.precision}.
It needs neither torch nor transformers. Two lines install and run it:

```console
$ pip install {package}
$ bertsmith predict . texts.csv -o predictions.csv
```

`bertsmith serve .` answers over HTTP. In Python: `bertsmith.load(".").predict({[item]!r})`.

The {task.primary_name} of the original is {score} on {test["texts"]:,} {evaluated}. This export gives the
same prediction for {parity["agreement"]:.2%} of {parity["texts"]:,} texts of the run, and no {task.score_name}
differs by more than {parity["largest_difference"]:.2g}{task.unit_name}.{bound} `export.json` contains all details.
"""
