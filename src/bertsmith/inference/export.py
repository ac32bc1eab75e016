"""Export a fitted classifier for a runtime that needs no torch, and check it against the original before it counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from bertsmith.compute.machine import versions
from bertsmith.errors import ConfigError, ModelError, RunFolderError
from bertsmith.folders import atomic
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.abstain import held_out_predictions
from bertsmith.inference.export_formats import CALIBRATED, PRECISIONS, write_model
from bertsmith.inference.exported import ABOUT, HELD_OUT, TOKENIZER, Exported, ExportInfo, digest
from bertsmith.inference.predictor import ModelPredictor

AGREEMENT = {"fp32": 1.0, "bf16": 0.995, "int8": 0.995}
"""Least share of the texts it is compared on that an export must label as the original does."""
DIFFERENCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.2}
"""Largest difference of a probability from the original's that is let pass.

A single text between two labels decides it: of 3,999 questions of banking77 one moved by 0.19 in int8, the next by
0.06.
"""
NEIGHBOURS = 0.005
"""Largest difference of a probability between a text among others and the same text alone that is let pass."""
CHECKED = 2000
"""Validation and test texts that an export is compared on, at most; their labels are not looked at.

What it was calibrated with is not among them.
"""
TIED = 1e-3
"""Where the original's two likeliest labels are this close, either counts as the same."""


@dataclass(frozen=True)
class Export:
    """An export, and how it compares with the original.

    Attributes:
        path: the folder.
        about: what it says of itself.
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
) -> Export:
    """Write a self-contained folder that labels texts without torch; see `bertsmith.export`."""
    if format not in PRECISIONS:
        raise ConfigError(f"--format {format}: there is no such format", remedy=f"Take one of {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS[format]:
        raise ConfigError(
            f"--precision {precision}: {format} is exported in {' or '.join(PRECISIONS[format])}",
            remedy="Take one of these, or another --format.",
        )
    opened = run if isinstance(run, Run) else open_run(run)
    place = output or opened.layout.exports / (format if precision == "fp32" else f"{format}-{precision}")
    _check_place(place, overwrite=overwrite)
    import torch  # which what is refused above need not wait for

    from bertsmith.inference.classifier import Classifier

    original = Classifier.load(opened.path, device="cpu").set_dtype(torch.float32)
    validation, n = opened.validation_predictions["text"], CALIBRATED.get((format, precision), 0)
    shown = validation.sample(min(n, len(validation)), random_state=0)
    texts = [*validation.drop(shown.index), *opened.predictions["text"]][:CHECKED]
    with atomic.disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced_folder(place) as folder:
            tokenizer = original.loaded.tokenizer
            tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
            known = held_out_predictions(opened)
            np.savez(folder / HELD_OUT, targets=known.targets, probabilities=known.said[0].astype(np.float32))
            about = ExportInfo(
                format,
                precision,
                original.labels,
                original.loaded.input_names,
                original.loaded.max_length,
                (int(tokenizer.pad_token_id), str(tokenizer.padding_side)),
                original.rule,
                {},
                {},
                _about_run(opened),
            )
            atomic.write_json(folder / ABOUT, about.to_dict())
            for careful in (False, True) if n else (False,):
                write_model(original, folder, format, precision, list(shown), careful=careful)
                found = parity(original, Exported.load(folder), texts)
                why = _what_fails(found, precision)
                if not why:
                    break
            if why and not accept:
                raise ModelError(
                    why,
                    where=str(place),
                    remedy="Take --precision fp32, or pass --accept if that will do. Nothing was written.",
                )
            found |= {"held": not why, "calibrated_with": len(shown)}
            atomic.write_text(folder / "README.md", _readme(about, found))
            files = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.name not in (ABOUT, "README.md")}
            about = replace(about, parity=found, files=files)
            atomic.write_json(folder / ABOUT, about.to_dict())
    return Export(place, about)


def parity(original: ModelPredictor, other: ModelPredictor, texts: list[str]) -> dict[str, Any]:
    """Compare what two classifiers say of the same texts, and how fast.

    Returns:
        ``texts``, ``agreement`` (share labelled alike; a tie within `TIED` counts), ``others_at_most`` (share of texts
        like these that may be labelled otherwise: the upper bound of Clopper and Pearson 1934, at 95 %),
        ``largest_difference`` (of a probability), ``neighbours`` (the same for the other classifier between all texts
        together and one alone, for one text of every length in tokens), and ``texts_per_second`` of both.
    """
    said, speeds = [], []
    for classifier in (original, other):
        classifier.predict_proba(texts[:8])  # what is made once
        began = time.perf_counter()
        said.append(classifier.predict_proba(texts))
        speeds.append(len(texts) / (time.perf_counter() - began))
    ours, theirs = said
    rows = np.arange(len(texts))
    # Runtimes take other ways for other lengths, and can be wrong for a single one of them.
    each = np.unique(np.minimum(other.count_tokens(texts), other.max_length), return_index=True)[1]
    alone = np.concatenate([other.predict_proba([texts[i]]) for i in each])
    alike = ours.max(axis=1) - ours[rows, theirs.argmax(axis=1)] <= TIED
    return {
        "texts": len(texts),
        "agreement": float(alike.mean()),
        "others_at_most": float(beta.ppf(0.95, (~alike).sum() + 1, alike.sum())) if alike.any() else 1.0,
        "largest_difference": float(abs(ours - theirs).max()),
        "neighbours": float(abs(alone - theirs[each]).max()),
        "texts_per_second": {"original": round(speeds[0], 1), "export": round(speeds[1], 1)},
    }


def _what_fails(found: dict[str, Any], precision: str) -> str:
    """Return why an export with this parity is not to be used; empty where it holds."""
    if found["agreement"] < AGREEMENT[precision] or not found["largest_difference"] <= DIFFERENCE[precision]:
        return (
            f"the export does not say what the original says: on {found['texts']:,} validation and test texts "
            f"{found['agreement']:.2%} are labelled alike (at least {AGREEMENT[precision]:.1%} is asked for) and a "
            f"probability differs by up to {found['largest_difference']:.4f} (at most {DIFFERENCE[precision]:g})"
        )
    if not found["neighbours"] <= NEIGHBOURS:
        return (
            "the export answers otherwise among other texts than alone: a probability differs by up to "
            f"{found['neighbours']:.4f} (at most {NEIGHBOURS:g})"
        )
    return ""


def _check_place(place: Path, *, overwrite: bool) -> None:
    if not place.exists():
        inside = next((folder for folder in place.absolute().parents if Run(folder).layout.run.is_file()), None)
        if inside is not None and place.absolute().parent != Run(inside).layout.exports.absolute():
            raise ConfigError(
                f"this is in the folder of the run {inside}, where only the run itself is kept",
                where=str(place),
                remedy="Leave out -o, or give a folder elsewhere.",
            )
        return
    if place.is_dir() and not any(place.iterdir()):
        return
    if not (place / ABOUT).is_file():
        kind = "a folder with other things in it" if place.is_dir() else "a file"
        raise RunFolderError(f"this is {kind}", where=str(place), remedy="Give -o a folder that is not there yet.")
    if not overwrite:
        raise RunFolderError(
            "an export is there already",
            where=str(place),
            remedy="Pass --overwrite to replace it, or -o another folder.",
        )


def _about_run(run: Run) -> dict[str, Any]:
    info, test = run.info, run.metrics["splits"]["test"]
    return {
        "name": run.path.resolve().name,
        "model": info["model"]["name"],
        "trained": info["finished"],
        "model_files": info["model_files"],
        "versions": versions(),
        "test": {"texts": test["texts"], **{name: test["metrics"][name] for name in ("macro_f1", "accuracy")}},
    }


def _readme(about: ExportInfo, found: dict[str, Any]) -> str:
    test = about.run["test"]
    score, base = test["macro_f1"]["value"], about.run["model"]
    bound = (
        "" if about.precision == "fp32" else f" Of others up to {found['others_at_most']:.1%} may get another label."
    )
    return f"""# {about.run["name"]}, exported

A text classifier of {len(about.labels)} labels, fine-tuned from {base}; {about.format}, {about.precision}.
It needs neither torch nor transformers. Two lines install and run it, the first in a clone of bertsmith and a virtual
environment of its own (where bertsmith is installed already, the second does):

```console
$ pip install "./runtime[{about.format},serve]"
$ bertsmith predict . texts.csv -o predictions.csv
```

`bertsmith serve .` answers over HTTP. In Python: `bertsmith.load(".").predict(["a text"])`.

On {test["texts"]:,} test texts the original reached a macro-F1 of {score:.3f}. Of {found["texts"]:,} validation and
test texts this export gives {found["agreement"]:.2%} the same label, and no probability differs by more than
{found["largest_difference"]:.2g}.{bound} Labels, temperature and decision rule travel with it, in `export.json`.
"""
