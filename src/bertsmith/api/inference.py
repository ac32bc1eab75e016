"""Load, predict and export, with settings as keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from bertsmith.api.keyword_types import PredictSettings
from bertsmith.api.public import public, settings_of
from bertsmith.config import CsvDialect, Long, OnError
from bertsmith.errors import to_path
from bertsmith.folders.run import Run

if TYPE_CHECKING:
    from bertsmith.events import PredictionListener
    from bertsmith.inference.export import Export
    from bertsmith.inference.predictor import Predictor
    from bertsmith.workflows.predict import Predictions

Device = Literal["auto", "cuda", "xpu", "mps", "cpu"]
Runtime = Literal["auto", "torch", "onnx", "openvino"]


@public()
def load(
    run: Run | Path | str,
    *,
    device: Device = "auto",
    decide: bool = True,
    ensemble: bool = False,
    runtime: Runtime = "auto",
    long: Long = "auto",
) -> Predictor:
    """Load the classifier of a finished run, or an export.

    Args:
        run: the run, its folder, or an export folder.
        device: the device to compute on.
        decide: use the decision rule of the run, if it has one.
        ensemble: average the predictions of the models of all seeds.
        runtime: ``"torch"``; ``"onnx"`` or ``"openvino"`` for an export of the run; ``"auto"``: on a CPU, the fastest
            checked fp32 export, else torch.
        long: how to read texts above the maximum length. ``"truncate"`` reads their beginning, ``"head-tail"``
            beginning and end, and ``"window"`` all of them. ``"auto"`` reads as the run does.

    Raises:
        UserError: if the run or export is missing or not usable.
    """
    from bertsmith.inference.load import open_classifier

    return open_classifier(run, device=device, decide=decide, ensemble=ensemble, runtime=runtime, long=long)


@public()
def predict(
    run: Run | Path | str,
    source: Any = None,
    *,
    output: Path | str | None = None,
    probabilities: bool = False,
    min_confidence: float | None = None,
    target_accuracy: float | None = None,
    coverage: float | None = None,
    decide: bool = True,
    ensemble: bool = False,
    runtime: Runtime = "auto",
    on_error: OnError = "fail",
    ray: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    csv_dialect: CsvDialect = "plain",
    formula_guard: bool = True,
    progress: bool | None = None,
    on_event: PredictionListener | None = None,
    **settings: Unpack[PredictSettings],
) -> Predictions:
    """Label the texts of a table chunk by chunk. CSV, JSON Lines and Parquet files can be larger than the memory.

    Args:
        run: the run, its folder, or an export folder.
        source: a path, ``hf://owner/name``, a pandas data frame, a ``datasets.Dataset``, or a table of Polars, DuckDB
            or PyArrow (any object with ``__arrow_c_stream__``). ``None`` with ``sql`` and ``db``.
        output: the file to write: ``.csv``, ``.jsonl``, ``.parquet`` or ``.xlsx``; ``None`` returns the predictions
            in memory.
        probabilities: add a column per class.
        min_confidence: leave texts unlabelled below this confidence, between 0 and 1.
        target_accuracy: leave texts unlabelled below the confidence that reaches this accuracy on the validation texts.
        coverage: add ``label_set``: labels that include the true one with this probability. For numbers, add ``lower``
            and ``upper``, the bounds of an interval.
        decide: use the decision rule of the run, if it has one.
        ensemble: average the predictions of the models of all seeds.
        runtime: ``"torch"``; ``"onnx"`` or ``"openvino"`` for an export of the run; ``"auto"``: on a CPU, the fastest
            checked fp32 export, else torch.
        on_error: ``"fail"`` refuses a table with unreadable rows, and ``"skip"`` skips these rows.
        ray: the address of a Ray cluster, or ``"local"``; ``source`` and ``output`` are folders of Parquet files.
        resume: continue predictions that were interrupted, or begin if none are saved and ``output`` does not exist.
        overwrite: replace the output.
        csv_dialect: delimiter, decimal separator and byte order mark of CSV output.
        formula_guard: escape CSV cells that a spreadsheet would run as formulas.
        progress: show the progress; by default in notebooks only.
        on_event: called with each event (see `bertsmith.events`).
        **settings: fields of `DataConfig` and `ModelConfig` for reading the source, ``long``, and the device.

    Returns:
        The number of rows, the label counts, and the predictions if they are in memory. A data frame of pandas keeps
        its index and types.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: on Ctrl-C, if the predictions can be resumed.
    """
    from bertsmith.progress.display import shown
    from bertsmith.progress.prediction import PredictionProgress
    from bertsmith.workflows.predict import predict_in_memory, run_prediction, run_prediction_on_ray
    from bertsmith.workflows.predict_options import PredictOptions

    config = settings_of(settings, PredictSettings)
    folder = to_path(run, "run")
    file = None if output is None else to_path(output, "output")
    options = PredictOptions(
        probabilities=probabilities,
        min_confidence=min_confidence,
        target_accuracy=target_accuracy,
        coverage=coverage,
        decide=decide,
        ensemble=ensemble,
        runtime=runtime,
        on_error=on_error,
        csv_dialect=csv_dialect,
        formula_guard=formula_guard,
    )
    if ray is not None:
        return run_prediction_on_ray(
            folder, source, config, options, output=file, resume=resume, overwrite=overwrite, address=ray
        )
    with shown(progress, on_event, PredictionProgress) as observe:
        if file is None:
            return predict_in_memory(folder, source, config, options, resume=resume, observe=observe)
        return run_prediction(
            folder, source, config, options, output=file, resume=resume, overwrite=overwrite, observe=observe
        )


@public("export")
def export(
    run: Run | Path | str,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    output: Path | str | None = None,
    long: Long = "auto",
    accept: bool = False,
    overwrite: bool = False,
) -> Export:
    """Export a run for a runtime without torch, and check it against the original on texts of the run.

    Args:
        run: the run, or its folder.
        format: ``"onnx"`` or ``"openvino"``.
        precision: ``"fp32"``; with OpenVINO also ``"bf16"`` and ``"int8"``.
        output: the folder to write; by default ``RUN/export/FORMAT``, followed by ``-PRECISION`` unless fp32.
        long: how the export reads texts above the maximum length; by default as the run does.
        accept: write the export even if its predictions differ from those of the original.
        overwrite: replace an existing export.

    Returns:
        The export, and its comparison with the original (``about.parity``).

    Raises:
        UserError: if the export fails, or its predictions differ from those of the original.
    """
    from bertsmith.inference.export import export as write

    return write(
        run,
        format=format,
        precision=precision,
        output=to_path(output, "output") if output is not None else None,
        long=long,
        accept=accept,
        overwrite=overwrite,
    )


@public("train")
def push(
    run: Run | Path | str,
    repository: str,
    *,
    language: Sequence[str] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
    private: bool = True,
    exports: bool = False,
    overwrite: bool = False,
) -> str:
    """Push the model of a run to the Hugging Face hub: weights, tokenizer and model card, without texts.

    Args:
        run: the run, or its folder.
        repository: ``owner/name``.
        language: codes of the languages of the texts, such as ``["en"]``.
        license: the licence of the model, such as ``"apache-2.0"``.
        datasets: ids of the datasets on the hub that the model was trained on.
        private: create a private repository.
        exports: also send the exports of the run.
        overwrite: push a new commit to an existing repository.

    Returns:
        The address of the repository.

    Raises:
        HubError: if the hub cannot be reached or refuses, or the user is not logged in.
        UserError: if the run is not finished or damaged, or a value is not valid on the hub.
    """
    from bertsmith.report.card import Details
    from bertsmith.workflows.push import push_run

    names = (language,) if isinstance(language, str) else language
    ids = (datasets,) if isinstance(datasets, str) else datasets
    details = Details(repository, tuple(names), license, tuple(ids))
    path = to_path(run, "run")
    return str(push_run(path, details, private=private, exports=exports, overwrite=overwrite))
