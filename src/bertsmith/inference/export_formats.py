"""How a fitted classifier's model is written for each runtime, and in which number format."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.errors import MissingPackageError, ModelError
from bertsmith.inference.exported import padded
from bertsmith.inference.runtime import RUNTIMES, import_openvino

if TYPE_CHECKING:
    from bertsmith.inference.classifier import Classifier

PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "bf16", "int8")}
"""Number formats of the arithmetic, by format of the export.

ONNX Runtime's int8 was slower than its fp32 on many texts (107 and 114 texts/s) and than OpenVINO's int8 on one text.
Versions before 0.2 wrote it, and such exports still run.
"""
CALIBRATED = {("openvino", "int8"): 300}
"""How many texts it is first shown, at most, where that decides how its numbers are rounded."""
BLOCK = 16
"""Weights that share a scale in int8 with ONNX."""
SMOOTHING = 0.7
"""How far a channel that is large in the activations is made small there and large in the weights instead.

The exponent of SmoothQuant (Xiao et al. 2023).
"""


def write_model(
    original: Classifier, folder: Path, format: str, precision: str, texts: Sequence[str], *, careful: bool = False
) -> None:
    """Write the model alone, which takes token ids and yields logits, into a folder.

    Args:
        original: the classifier.
        folder: that is there.
        format: a key of `PRECISIONS`.
        precision: one of its values.
        texts: as it will meet them, for a precision that is in `CALIBRATED`.
        careful: there, round less, for an export that is slower and nearer to the original.

    Raises:
        MissingPackageError: if a package is not installed.
        ModelError: if the exporter cannot do it.
    """
    try:
        RUNTIMES[format].load()  # what is to run it
        WRITERS[format](original, folder, precision, texts, careful)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            error.name or format, f"exporting to {format} in {precision}", needs="export"
        ) from error


def _to_onnx(original: Classifier, folder: Path, precision: str, texts: Sequence[str], careful: bool) -> None:
    import torch

    with _exporting(original, "ONNX"):
        traced, inputs, free = _traceable(original)
        torch.onnx.export(
            traced,
            inputs,
            str(folder / "model.onnx"),
            input_names=list(original.loaded.input_names),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=free,
            external_data=True,  # weights in a file of their own are mapped into memory, all others copied
            verbose=False,
        )


def _to_openvino(original: Classifier, folder: Path, precision: str, texts: Sequence[str], careful: bool) -> None:
    openvino = import_openvino()
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
        if precision == "int8":
            batches = [padded([ids], (0, "right"), names) for ids in original.encode(texts).ids()]
            model = _rounded(model, batches, careful)
        for file in folder.glob("model.*"):  # of an attempt before, which may be in use still
            file.unlink()
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _rounded(model: Any, batches: list[dict[str, Any]], careful: bool) -> Any:
    """Return an OpenVINO model that multiplies matrices in int8, with one scale for all that flows through a place.

    Scales are set once, from batches that are like what will come, so that no text changes its neighbours' answers. The
    last product of all stays as it is; to be careful all that narrow do, which are the second of each feed-forward
    pair, whose few large inputs leave the others no room. So do the products of attention, which are a small part:
    with AMX OpenVINO 2026.4 gets queries times keys wrong in int8 where there are as many tokens as numbers in a head.

    Weights use half the range of eight bits, so that CPUs with AVX2 alone, whose products of eight bits overflow, say
    what the others say.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    operations = model.get_ordered_ops()
    narrowing = [op.get_friendly_name() for op in operations if _narrows(op)]
    attention = [op.get_friendly_name() for op in operations if _attends(op)]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=attention + (narrowing if careful else narrowing[-1:])),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING),
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            overflow_fix=nncf.OverflowFix.ENABLE,  # weights in seven bits: CPUs without VNNI clip sums of eight
            disable_bias_correction=True,  # gained nothing with these
        ),
    )


def _attends(operation: Any) -> bool:
    """Return whether an operation of OpenVINO multiplies what flows through the model, not with weights."""
    kind = operation.get_type_name()
    return bool(
        kind == "ScaledDotProductAttention" or (kind == "MatMul" and operation.input(1).get_partial_shape().is_dynamic)
    )


def _narrows(operation: Any) -> bool:
    """Return whether an operation of OpenVINO is a product with weights that yields fewer numbers than it takes."""
    if operation.get_type_name() != "MatMul" or _attends(operation):
        return False
    *_, rows, columns = operation.input(1).get_shape()
    takes, yields = (columns, rows) if operation.get_attributes()["transpose_b"] else (rows, columns)
    return bool(yields < takes)


WRITERS: dict[str, Callable[[Classifier, Path, str, Sequence[str], bool], None]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
}
"""How a model is written, by format."""


def _traceable(original: Classifier) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Return a module from the model's inputs to logits, its inputs for two texts, and that their shapes are free.

    The decision rule that is in the weights is in the logits.
    """
    import torch

    from bertsmith.model import forward
    from bertsmith.model.batch import PaddedBatch

    model, names = original.loaded.model, original.loaded.input_names

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            given = dict(zip(names, inputs, strict=True))
            if forward.supports(model):
                return forward.logits(
                    model, PaddedBatch.from_inputs(**given, padding_idx=forward.position_padding_idx(model))
                )
            logits: torch.Tensor = model(**given).logits
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
