"""Writers of exported models, by runtime and precision."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertsmith.data.template import Texts
from bertsmith.errors import MissingPackageError, ModelError
from bertsmith.inference.exported import model_inputs
from bertsmith.inference.runtime import RUNTIMES, import_openvino

if TYPE_CHECKING:
    from bertsmith.inference.classifier import Classifier

PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "bf16", "int8")}
"""Number formats of the arithmetic, by export format. ONNX int8 was slower than ONNX fp32; see benchmarks/LOG.md."""
CALIBRATION_TEXTS = {("openvino", "int8"): 300}
"""Maximum number of texts that calibrate a quantization, by format and precision."""
SMOOTH_QUANT_ALPHA = 0.7
"""Exponent of SmoothQuant (Xiao et al. 2023), which moves outliers of activations to weights; see benchmarks/LOG.md."""


def write_model(
    original: Classifier, folder: Path, format: str, precision: str, texts: Texts, *, conservative: bool = False
) -> None:
    """Write the model, from token ids to logits, into a folder.

    Args:
        original: the classifier.
        folder: an existing folder.
        format: a key of `PRECISIONS`.
        precision: one of its values.
        texts: representative texts, for precisions in `CALIBRATION_TEXTS`.
        conservative: quantize fewer operations, which is slower and closer to the original.

    Raises:
        MissingPackageError: if a package is not installed.
        ModelError: if the exporter does not support the model.
    """
    try:
        RUNTIMES[format].load()  # fail early without the runtime
        WRITERS[format](original, folder, precision, texts, conservative)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            error.name or format, f"exporting to {format} in {precision}", needs="export"
        ) from error


def _to_onnx(original: Classifier, folder: Path, precision: str, texts: Texts, conservative: bool) -> None:
    import torch

    with _export_errors(original, "ONNX"):
        module, inputs, shapes = _exportable_module(original)
        torch.onnx.export(
            module,
            inputs,
            str(folder / "model.onnx"),
            input_names=list(original.loaded.input_names),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=True,  # a separate weight file is memory-mapped, not copied
            verbose=False,
        )


def _to_openvino(original: Classifier, folder: Path, precision: str, texts: Texts, conservative: bool) -> None:
    openvino = import_openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    names = original.loaded.input_names
    with _export_errors(original, "OpenVINO"):
        # Converting from torch keeps attention a single, faster operation, which ONNX splits. The function
        # convert_model would send telemetry.
        module, inputs, shapes = _exportable_module(original)
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # must live until the conversion ends
        model = frontend.convert(frontend.load(decoder))
        for port, name in zip(model.inputs, names, strict=True):
            port.get_tensor().set_names({name})
        model.outputs[0].get_tensor().set_names({"logits"})
        model.validate_nodes_and_infer_types()
        if precision == "int8":
            tokens = original.encode(texts).truncate(original.max_length)
            single = (tokens.take(np.array([i])) for i in range(len(texts)))
            batches = [model_inputs(text, names, int(text.truncated_lengths[0])) for text in single]
            model = _quantize_openvino(model, batches, conservative)
        for file in folder.glob("model.*"):  # of an earlier attempt, possibly still in use
            file.unlink()
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _quantize_openvino(model: Any, batches: list[dict[str, Any]], conservative: bool) -> Any:
    """Quantize the matrix products of an OpenVINO model to int8, with one scale per tensor.

    The calibration batches fix the scales, so the prediction of a text does not depend on the others in its batch.

    The last product stays in floating point. If ``conservative``, so does the down-projection of each feed-forward
    layer, because a few large activations leave little precision for the others. Attention stays in floating point
    as well: with AMX, OpenVINO 2026.4 computes wrong int8 products of queries and keys if the number of tokens equals
    the head size.

    Weights use seven bits, because int8 products overflow on CPUs with AVX2 and without VNNI; see benchmarks/LOG.md.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    operations = model.get_ordered_ops()
    down_projections = [op.get_friendly_name() for op in operations if _is_down_projection(op)]
    attention = [op.get_friendly_name() for op in operations if _is_attention(op)]
    excluded = attention + (down_projections if conservative else down_projections[-1:])
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=excluded),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTH_QUANT_ALPHA),
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            overflow_fix=nncf.OverflowFix.ENABLE,  # weights in seven bits
            disable_bias_correction=True,  # no gain with these settings
        ),
    )


def _is_attention(operation: Any) -> bool:
    """Return whether an OpenVINO operation multiplies two activations."""
    kind = operation.get_type_name()
    return bool(
        kind == "ScaledDotProductAttention" or (kind == "MatMul" and operation.input(1).get_partial_shape().is_dynamic)
    )


def _is_down_projection(operation: Any) -> bool:
    """Return whether an OpenVINO operation is a product with weights that has fewer outputs than inputs."""
    if operation.get_type_name() != "MatMul" or _is_attention(operation):
        return False
    *_, rows, columns = operation.input(1).get_shape()
    inputs, outputs = (columns, rows) if operation.get_attributes()["transpose_b"] else (rows, columns)
    return bool(outputs < inputs)


WRITERS: dict[str, Callable[[Classifier, Path, str, Texts, bool], None]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
}
"""Writers by format."""


def _exportable_module(original: Classifier) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Return a module from inputs to logits, example inputs of two texts, and their dynamic shapes."""
    import torch

    from bertsmith.model import forward
    from bertsmith.model.batch import PaddedBatch

    model, names = original.loaded.model, original.loaded.input_names

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            named = dict(zip(names, inputs, strict=True))
            if forward.supports(model):
                return forward.logits(
                    model, PaddedBatch.from_inputs(**named, padding_idx=forward.position_padding_idx(model))
                )
            return model(**named).logits

    example = original.loaded.tokenizer(
        ["a short text", "and one more that is longer"], padding=True, return_tensors="pt"
    )
    dynamic = torch.export.Dim.DYNAMIC
    wrapped = Logits().eval()
    wrapped.model = model
    return wrapped, tuple(example[name] for name in names), (tuple({0: dynamic, 1: dynamic} for _ in names),)


@contextmanager
def _export_errors(original: Classifier, to: str) -> Iterator[None]:
    """Turn errors of exporters into `ModelError`."""
    try:
        with _quiet():
            yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ModelError(
            f"a model of type {original.loaded.model.config.model_type} cannot be exported to {to}: "
            f"{(str(error).strip().splitlines() or [type(error).__name__])[0]}",
            remedy="Pass the run itself to predict or serve.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs, warnings and prints of exporters; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
