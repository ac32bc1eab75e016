"""Export a fitted classifier for a runtime that needs no torch, and check it against the original before it counts."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith import storage
from bertsmith.errors import ConfigError, ModelError, RunFolderError
from bertsmith.inference.abstain import held_out_of
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.exported import ABOUT, HELD_OUT, TOKENIZER, About, Exported, digest
from bertsmith.inference.labelling import Labelling
from bertsmith.run import Run, open_run
from bertsmith.versions import versions

PRECISIONS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16")}
"""Number formats of the arithmetic, by format of the export."""
AGREEMENT = {"fp32": 1.0, "bf16": 0.995, "int8": 0.995}
"""Least share of the texts it is compared on that an export must label as the original does."""
DIFFERENCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.1}
"""Largest difference of a probability from the original's that is let pass."""
NEIGHBOURS = 0.005
"""Largest difference of a probability between a text among others and the same text alone that is let pass."""
CHECKED = 2000
"""Validation and test texts that an export is compared on, at most; their labels are not looked at."""
ALONE = 50
"""Of these, texts that are also labelled one by one."""
BLOCK = 16
"""Weights that share a scale in int8. With 16, MiniLM on tweets gave the same label more often than with 32 or 128."""
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
    about: About


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
        raise ConfigError(f"--format {format}: there is none", remedy=f"Take one of {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS[format]:
        raise ConfigError(
            f"--precision {precision}: {format} is exported in {' or '.join(PRECISIONS[format])}",
            remedy="Take one of these, or another --format.",
        )
    opened = run if isinstance(run, Run) else open_run(run)
    place = output or opened.layout.exports / (format if precision == "fp32" else f"{format}-{precision}")
    _check_place(place, overwrite=overwrite)
    original = Classifier.load(opened.path, device="cpu")
    texts = [*opened.validation_predictions["text"], *opened.predictions["text"]][:CHECKED]
    with storage.told(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with storage.replaced_folder(place) as folder:
            with _packages(format):
                WRITERS[format](original, folder, precision)
            tokenizer = original.loaded.tokenizer
            tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
            known = held_out_of(opened)
            np.savez(folder / HELD_OUT, targets=known.targets, probabilities=known.said[0].astype(np.float32))
            about = About(
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
            storage.write_json(folder / ABOUT, about.to_dict())
            found = parity(original, Exported.load(folder), texts)
            why = _what_fails(found, precision)
            if why and not accept:
                raise ModelError(
                    why,
                    where=str(place),
                    remedy="Take --precision fp32, or pass --accept if that will do. Nothing was written.",
                )
            found["held"] = not why
            storage.write_text(folder / "README.md", _readme(about, found))
            files = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.name not in (ABOUT, "README.md")}
            about = replace(about, parity=found, files=files)
            storage.write_json(folder / ABOUT, about.to_dict())
    return Export(place, about)


def parity(original: Labelling, other: Labelling, texts: list[str]) -> dict[str, Any]:
    """Compare what two classifiers say of the same texts, and how fast.

    Returns:
        ``texts``, ``agreement`` (share labelled alike; a tie within `TIED` counts), ``largest_difference`` (of a
        probability), ``neighbours`` (the same for the other classifier between all texts together and one by one), and
        ``texts_per_second`` of both.
    """
    said, speeds = [], []
    for classifier in (original, other):
        classifier.predict_proba(texts[:8])  # what is made once
        began = time.perf_counter()
        said.append(classifier.predict_proba(texts))
        speeds.append(len(texts) / (time.perf_counter() - began))
    ours, theirs = said
    rows = np.arange(len(texts))
    alone = np.concatenate([other.predict_proba([text]) for text in texts[:ALONE]])
    alike = ours.max(axis=1) - ours[rows, theirs.argmax(axis=1)] <= TIED
    return {
        "texts": len(texts),
        "agreement": float(alike.mean()),
        "largest_difference": float(abs(ours - theirs).max()),
        "neighbours": float(abs(alone - theirs[:ALONE]).max()),
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


# -- formats -----------------------------------------------------------------------------------------------------------


def _to_onnx(original: Classifier, folder: Path, precision: str) -> None:
    _write_onnx(original, folder / "model.onnx")
    if precision == "int8":
        _to_int8(folder / "model.onnx")


def _to_int8(file: Path) -> None:
    """Round the weights of matrix products to eight bits, in blocks; activations are rounded token by token.

    Rounding activations by the range of a whole batch, as is usual, would have texts change their neighbours' answers.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            onnx.load(str(file)), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(file), use_external_data_format=False)


def _to_openvino(original: Classifier, folder: Path, precision: str) -> None:
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    names = original.loaded.input_names
    with _exporting(original, "OpenVINO"):
        # From torch itself, where attention is one operation still, which is faster than the pieces ONNX makes of it;
        # and not by convert_model, which would tell its maker.
        traced, inputs, free = _traceable(original)
        program = torch.export.export(traced, inputs, dynamic_shapes=free, strict=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # which must be there until all is converted
        model = frontend.convert(frontend.load(decoder))
        for port, name in zip(model.inputs, names, strict=True):
            port.get_tensor().set_names({name})
        model.outputs[0].get_tensor().set_names({"logits"})
        model.validate_nodes_and_infer_types()
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


WRITERS: dict[str, Callable[[Classifier, Path, str], None]] = {"onnx": _to_onnx, "openvino": _to_openvino}
"""How a model is written, by format."""


def _write_onnx(original: Classifier, file: Path) -> None:
    import torch

    with _exporting(original, "ONNX"):
        traced, inputs, free = _traceable(original)
        torch.onnx.export(
            traced,
            inputs,
            str(file),
            input_names=list(original.loaded.input_names),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=free,
            external_data=False,
            verbose=False,
        )


def _traceable(original: Classifier) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Return a module from the model's inputs to logits, its inputs for two texts, and that their shapes are free.

    The decision rule that is in the weights is in the logits.
    """
    import torch

    model, names = original.loaded.model, original.loaded.input_names

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(**dict(zip(names, inputs, strict=True))).logits
            return logits

    example = original.loaded.tokenizer(
        ["a short text", "and one more that is longer"], padding=True, return_tensors="pt"
    )
    free = torch.export.Dim.DYNAMIC
    wrapped = Logits().eval()
    wrapped.model = model
    return wrapped, tuple(example[name] for name in names), (tuple({0: free, 1: free} for _ in names),)


@contextmanager
def _exporting(original: Classifier, to: str) -> Iterator[None]:
    """Turn what exporters raise of a model into an error of ours."""
    try:
        with _quiet():
            yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ModelError(
            f"a model of type {original.loaded.model.config.model_type} cannot be exported to {to}: "
            f"{_first_line(error)}",
            remedy="Use the run itself, with predict or serve.",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from talking; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _packages(format: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"exporting to {format} needs the package {error.name}",
            remedy=f"Install what it needs: pip install 'bertsmith[export]'{'' if format == 'onnx' else ' openvino'}.",
        ) from error


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


def _readme(about: About, found: dict[str, Any]) -> str:
    test = about.run["test"]
    score, base = test["macro_f1"]["value"], about.run["model"]
    return f"""# {about.run["name"]}, exported

A text classifier of {len(about.labels)} labels, fine-tuned from {base}; {about.format}, {about.precision}.
It needs neither torch nor transformers. Two lines install and run it, the first in a clone of bertsmith:

```console
$ pip install "./runtime[{about.format},serve]"
$ bertsmith predict . texts.csv -o predictions.csv
```

`bertsmith serve .` answers over HTTP. In Python: `bertsmith.load(".").predict(["a text"])`.

On {test["texts"]:,} test texts the original reached a macro-F1 of {score:.3f}. Of {found["texts"]:,} validation and
test texts this export gives {found["agreement"]:.2%} the same label, and no probability differs by more than
{found["largest_difference"]:.2g}. Labels, temperature and decision rule travel with it, in `export.json`.
"""
