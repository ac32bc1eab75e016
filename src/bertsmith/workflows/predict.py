"""Predict: label a table with a run or an export, into a file, a folder or memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith import __version__
from bertsmith.config import Config
from bertsmith.data.columns import check_one_source
from bertsmith.data.stream import Stream, check_lines, file_of, open_stream
from bertsmith.data.table import Cells, Position, to_frame
from bertsmith.data.template import SETTINGS, Template
from bertsmith.errors import ConfigError, DataError, RowError, UserError, rendered_by
from bertsmith.events import InputOpened, ModelOpened, PredictionListener, RowsPredicted, RowsResumed
from bertsmith.folders.atomic import checksum
from bertsmith.folders.claim import claim
from bertsmith.folders.files import OutputFolder
from bertsmith.folders.run import open_run
from bertsmith.inference.chunks import PredictionFile, nothing_written, write_stream
from bertsmith.inference.exported import Exported, ExportInfo, is_export
from bertsmith.inference.table_writers import output_format
from bertsmith.workflows.predict_options import PredictOptions

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.inference.abstain import Abstention, HeldOutPredictions
    from bertsmith.inference.predictor import Predictor
    from bertsmith.measuring.expected_accuracy import ExpectedAccuracy


@dataclass(frozen=True)
class Predictions:
    """Predictions for a table, and their summary.

    Attributes:
        path: the file or folder that was written; ``None`` if the predictions are in memory.
        frame: the input columns and the predictions, if they are in memory; else ``None``.
        rows: number of rows.
        label_counts: number of rows per predicted label text, the most frequent label first.
        empty: number of rows without a text, which get no prediction.
        abstained: number of rows left unlabelled because of low confidence.
        cut: number of truncated texts.
        threshold: the minimum confidence of a label; ``None`` without a threshold.
        skipped: position and reason of each row that could not be read.
        expected_accuracy: the accuracy to expect, if every text has one class and held-out texts are known.
        without_labels: number of rows that have none of the labels, if texts can have several.
    """

    path: Path | None
    frame: pd.DataFrame | None
    rows: int
    label_counts: dict[str, int]
    empty: int = 0
    abstained: int = 0
    cut: int = 0
    threshold: float | None = None
    skipped: tuple[tuple[Position, str], ...] = ()
    expected_accuracy: ExpectedAccuracy | None = None
    without_labels: int = 0

    _repr_html_ = rendered_by("bertsmith.report.notebook:predictions_html", optional=True)


def run_prediction(
    run: Path,
    source: Any,
    config: Config,
    options: PredictOptions,
    *,
    output: Path | None = None,
    write: Callable[[Cells], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Iterable[Any] = (),
    observe: PredictionListener = lambda event: None,
) -> Predictions:
    """Label texts chunk by chunk; see `bertsmith.predict`.

    Args:
        run: a run or export folder.
        source: what `bertsmith.data.stream.open_stream` takes, or a function that returns a `Stream`.
        config: how to read the source, and where to compute.
        options: how texts are labelled and written.
        output: the file to write.
        write: receives the cells of each chunk if no file is written.
        resume: continue unfinished predictions; without any, begin, unless the file exists or the source is not one.
        overwrite: replace the file.
        inputs: other files that the command reads, which are never replaced.
        observe: called with each event.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: on Ctrl-C, if the predictions can be resumed.
    """
    from bertsmith.inference.load import template_of
    from bertsmith.inference.predict import LABELLED, predict_chunks

    template = template_of(run)
    if resume and output is None:
        raise ConfigError(
            "--resume needs the output file of the interrupted predictions", remedy="Pass this file with -o."
        )
    if options.csv_dialect != "plain" and output is not None and output_format(output) != "csv":
        raise ConfigError("--csv-dialect applies only to CSV", remedy="Leave out --csv-dialect, or write a .csv file.")
    begins = resume and not overwrite and output is not None and nothing_written(output) and file_of(source) is not None
    resume = resume and not begins
    claimed: AbstractContextManager[None] = nullcontext()
    if output is not None:
        claimed = claim(PredictionFile(output, (source, config.db, *inputs)), resume=resume, overwrite=overwrite)
    with claimed, opened(source, config, template, options, observe) as stream:
        if begins:
            observe(RowsResumed(0))
        classifier, abstain = open_model(run, config, options, observe)
        label = partial(
            predict_chunks,
            classifier,
            probabilities=options.probabilities,
            abstain=abstain,
            waits=stream.n_rows is None,
            progress=lambda n: observe(RowsPredicted(n)),
        )
        counts: Counter[str] = Counter()
        if output is None:
            for cells, chunk_counts, _ in label(stream.chunks()):
                if write is not None:
                    write(cells)
                counts += chunk_counts
        else:
            counts = write_stream(
                label,
                stream,
                output,
                _description(run, stream, config, options, classifier),
                style=options.csv_style,
                resume=resume,
                on_resume=lambda n: observe(RowsResumed(n)),
            )
    labels = Counter({key.removeprefix(LABELLED): n for key, n in counts.items() if key.startswith(LABELLED)})
    expected = None
    if options.decide and abstain.confidence is None:
        expected = _expected_accuracy(classifier, run, counts)
    return Predictions(
        output,
        None,
        counts["rows"],
        dict(labels.most_common()),
        counts["empty"],
        counts["abstained"],
        counts["cut"],
        abstain.confidence,
        stream.skipped,
        expected,
        counts["none"],
    )


def _unseen(classifier: Predictor, run: Path) -> HeldOutPredictions | None:
    """Return predictions for test texts; for an export, or a run with few test texts, those for validation texts.

    Return ``None`` if these were chosen to be labelled: uncertain texts are more difficult than others.
    """
    from bertsmith.measuring.expected_accuracy import FEWEST

    with suppress(UserError):  # an export, a run without a test split, or predictions that read long texts otherwise
        found = classifier.held_out(test=True, again=False)
        if len(found.targets) >= FEWEST:
            return found
    if is_export(run):
        are_chosen = ExportInfo.read(run).run.get("has_chosen_validation", False)  # absent from older versions
    else:
        are_chosen = open_run(run).has_chosen_validation
    return None if are_chosen else classifier.held_out(again=False)


def _expected_accuracy(classifier: Predictor, run: Path, counts: Counter[str]) -> ExpectedAccuracy | None:
    """Return the accuracy to expect; ``None`` if texts have several labels, or suitable held-out texts are missing."""
    from bertsmith.inference.predict import CONFIDENCE, LABELLED, LENGTH
    from bertsmith.measuring.expected_accuracy import FEWEST, GRID, LENGTHS, expect_accuracy, length_bin

    task, known = classifier.task, None
    if not task.one_class or counts["rows"] - counts["empty"] < FEWEST:
        return None
    with suppress(UserError):  # a model folder, or a run of an older version
        known = _unseen(classifier, run)
    if known is None:
        return None
    import numpy as np

    scores, lengths = np.mean(known.scores, axis=0), None
    if known.lengths is not None:
        before = np.bincount([length_bin(int(n)) for n in known.lengths], minlength=LENGTHS)
        lengths = np.array([counts[f"{LENGTH}{i}"] for i in range(LENGTHS)]), before
    return expect_accuracy(
        np.array([counts[f"{CONFIDENCE}{i}"] for i in range(GRID)]),
        np.array([counts[f"{LABELLED}{text}"] for text in classifier.labels.texts]),
        known.targets,
        task.confidence(scores),
        task.predicted(scores),
        lengths,
        known.groups,
    )


def predict_in_memory(
    run: Path,
    source: Any,
    config: Config,
    options: PredictOptions,
    *,
    resume: bool = False,
    observe: PredictionListener = lambda event: None,
) -> Predictions:
    """Label texts, and return the predictions as a data frame; see `bertsmith.predict`.

    The index and the types of a data frame of pandas stay.
    """
    import numpy as np
    import pandas as pd

    columns: dict[str, list[Any]] = {}

    def add(cells: Cells) -> None:
        for name, values in cells.items():
            columns.setdefault(name, []).extend(values)

    predictions = run_prediction(run, source, config, options, write=add, resume=resume, observe=observe)
    frame = to_frame(columns)
    if (predictions.empty or predictions.abstained) and "predicted_text" in frame.columns:
        texts = pd.Series(frame["predicted_text"].tolist(), dtype="str")  # also if all are missing
        frame = frame.assign(predicted_text=texts).astype({"predicted": "Int64", "confidence": "float64"})
    if isinstance(source, pd.DataFrame):
        skipped = [position.number - 1 for position, _ in predictions.skipped]
        given = source.iloc[np.delete(np.arange(len(source)), skipped)]
        frame = frame.set_axis(given.index)
        for i in range(given.shape[1]):
            frame.isetitem(i, given.iloc[:, i].array)  # with its type
    return replace(predictions, frame=frame)


def run_prediction_on_ray(
    run: Path,
    source: Any,
    config: Config,
    options: PredictOptions,
    *,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    address: str,
) -> Predictions:
    """Label a folder of Parquet files on a Ray cluster; see `bertsmith.predict`.

    Raises:
        UserError: for everything that the user can fix.
    """
    from bertsmith.inference.ray_data import RayRequest, predict_on_ray

    unused = {"--resume": resume, "--on-error skip": options.on_error == "skip", "--sql": config.sql}
    if clash := [name for name, value in unused.items() if value]:
        raise ConfigError(
            f"--ray cannot be combined with {', '.join(clash)}",
            remedy=f"Leave out --ray, or leave out {' and '.join(clash)}.",
        )
    if output is None or not isinstance(source, str | Path) or str(source) == "-":
        raise ConfigError("--ray needs a folder of Parquet files and an output folder", remedy="Pass INPUT and -o.")
    opening = {
        "device": config.device,
        "decide": options.decide,
        "ensemble": options.ensemble,
        "runtime": options.runtime,
        "long": config.long,
    }
    request = RayRequest(run.absolute(), opening, dict(options.thresholds), options.probabilities)
    with claim(OutputFolder(output, Path(source), ".parquet"), overwrite=overwrite):
        n_rows = predict_on_ray(request, Path(source), output.absolute(), config, address)
    return Predictions(output, None, n_rows, {})


@contextmanager
def opened(
    source: Any, config: Config, template: Template, options: PredictOptions, observe: PredictionListener
) -> Iterator[Stream]:
    """Open the texts and report notes and skipped rows.

    Errors name the source. Errors of single rows mention ``--on-error skip``.
    """
    skip, name = options.on_error == "skip", None
    if callable(source):
        check_lines(template, "stdin")
        check_one_source("stdin", config)
    opened = nullcontext(source()) if callable(source) else open_stream(source, config, skip=skip, template=template)
    try:
        with opened as stream:
            name = stream.name
            observe(InputOpened(stream.n_rows, stream.notes, stream.skipped))
            yield stream
    except DataError as error:
        error.where = error.where or name
        if isinstance(error, RowError) and not skip:
            error.remedy = f"{error.remedy} Or skip such rows: --on-error skip."
        raise


def open_model(
    run: Path, config: Config, options: PredictOptions, observe: PredictionListener
) -> tuple[Predictor, Abstention]:
    """Load the classifier and its thresholds."""
    from bertsmith.inference.abstain import fit_abstention
    from bertsmith.inference.load import open_classifier

    classifier = open_classifier(
        run,
        device=config.device,
        decide=options.decide,
        ensemble=options.ensemble,
        runtime=options.runtime,
        long=config.long,
    )
    export = classifier.about.format if isinstance(classifier, Exported) and not is_export(run) else None
    observe(ModelOpened(export))
    return classifier, fit_abstention(classifier, decide=options.decide, **options.thresholds)


def _description(
    run: Path, stream: Stream, config: Config, options: PredictOptions, classifier: Predictor
) -> dict[str, Any]:
    """Return everything that the predictions depend on. Resuming is refused if any of it has changed."""
    from bertsmith.inference.load import models_digest

    values = asdict(options)
    return {
        "version": __version__,
        "input": None if stream.path is None else checksum(stream.path),
        **{name: getattr(config, name) for name in SETTINGS if name == "text_column" or getattr(config, name)},
        "encoding": config.encoding,
        "sheet": config.sheet,
        "model": models_digest(run, ensemble=options.ensemble),
        "labelled by": repr(classifier),
        "long": classifier.long if config.long == "auto" else config.long,
        "decision_rule": values.pop("decide"),
        **{name: value for name, value in values.items() if name not in ("ensemble", "runtime")},
    }
