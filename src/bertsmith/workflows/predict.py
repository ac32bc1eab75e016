"""Predict: label a table with a run or an export, into a file, a folder or memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith import __version__
from bertsmith.config import Config, CsvDialect, Long, OnError
from bertsmith.data.stream import Stream, open_stream
from bertsmith.data.table import Cells
from bertsmith.errors import ConfigError, RowError
from bertsmith.events import InputOpened, ModelOpened, PredictionListener, RowsPredicted, RowsResumed
from bertsmith.folders.atomic import checksum
from bertsmith.folders.claim import claim
from bertsmith.folders.files import OutputFolder
from bertsmith.folders.run import open_run
from bertsmith.inference.chunks import PredictionFile, write_stream
from bertsmith.inference.exported import is_export
from bertsmith.inference.table_writers import DIALECTS, CsvStyle, output_format

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.inference.abstain import Abstention
    from bertsmith.inference.predictor import Predictor


@dataclass(frozen=True)
class PredictOptions:
    """How texts are labelled and written; see `bertsmith.predict`."""

    probabilities: bool = False
    min_confidence: float | None = None
    target_accuracy: float | None = None
    coverage: float | None = None
    long: Long = "truncate"
    decide: bool = True
    ensemble: bool = False
    runtime: str = "auto"
    on_error: OnError = "fail"
    csv_dialect: CsvDialect = "plain"
    formula_guard: bool = True

    @property
    def thresholds(self) -> dict[str, float | None]:
        """The arguments of `bertsmith.inference.abstain.abstention`."""
        return {name: getattr(self, name) for name in ("min_confidence", "target_accuracy", "coverage")}

    @property
    def csv_style(self) -> CsvStyle:
        """How CSV is written."""
        return replace(DIALECTS[self.csv_dialect], guarded=self.formula_guard)


@dataclass(frozen=True)
class Predictions:
    """What was predicted.

    Attributes:
        path: the file or folder that was written; ``None`` if the predictions are in memory.
        frame: the input columns and the predictions, if they are in memory; else ``None``.
        rows: number of rows.
        label_counts: rows per predicted label text, the most frequent label first.
        empty: rows without a text, which get no prediction.
        abstained: rows left unlabelled because the confidence is too low.
        cut: texts of which only the beginning was read.
        threshold: the confidence that a label needs; ``None`` if every text gets one.
        left_out: position and reason of each row that could not be read.
    """

    path: Path | None
    frame: pd.DataFrame | None
    rows: int
    label_counts: dict[str, int]
    empty: int = 0
    abstained: int = 0
    cut: int = 0
    threshold: float | None = None
    left_out: tuple[tuple[str, str], ...] = ()


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
        resume: continue unfinished predictions.
        overwrite: replace the file.
        inputs: other files that the command reads, which are never replaced.
        observe: receives the events.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: on Ctrl-C, if something is kept to resume from.
    """
    if not is_export(run):
        open_run(run)
    if resume and output is None:
        raise ConfigError("--resume continues the predictions of a file", remedy="Give -o that file.")
    if options.csv_dialect != "plain" and output is not None and output_format(output) != "csv":
        raise ConfigError("--csv-dialect is for CSV", remedy="Leave it out, or write a .csv file.")
    if output is None:
        with _opened(source, config, options, observe) as stream:
            labelled, abstain = _model(run, stream, config, options, observe)
            counts: Counter[str] = Counter()
            for cells, chunk_counts in labelled(stream.chunks()):
                if write is not None:
                    write(cells)
                counts += chunk_counts
            return _summary(None, counts, abstain, stream)
    sources = (source, config.db, *inputs)
    with (
        claim(PredictionFile(output, sources), resume=resume, overwrite=overwrite),
        _opened(source, config, options, observe) as stream,
    ):
        labelled, abstain = _model(run, stream, config, options, observe)
        counts = write_stream(
            labelled,
            stream,
            output,
            _description(run, stream, config, options, labelled),
            style=options.csv_style,
            resume=resume,
            on_resume=lambda n: observe(RowsResumed(n)),
        )
        return _summary(output, counts, abstain, stream)


def predict_in_memory(
    run: Path,
    source: Any,
    config: Config,
    options: PredictOptions,
    *,
    resume: bool = False,
    observe: PredictionListener = lambda event: None,
) -> Predictions:
    """Label texts, and return the predictions as a data frame; see `bertsmith.predict`."""
    import pandas as pd

    columns: dict[str, list[Any]] = {}

    def add(cells: Cells) -> None:
        for name, values in cells.items():
            columns.setdefault(name, []).extend(values)

    found = run_prediction(run, source, config, options, write=add, resume=resume, observe=observe)
    frame = pd.DataFrame(columns)
    if found.empty or found.abstained:  # a column of integers with missing values
        frame = frame.astype({"predicted": "Int64"})
    return replace(found, frame=frame)


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
    if given := [name for name, value in unused.items() if value]:
        raise ConfigError(f"--ray cannot be combined with {', '.join(given)}", remedy="Leave out one of them.")
    if output is None or not isinstance(source, str | Path) or str(source) == "-":
        raise ConfigError("--ray labels a folder of Parquet files", remedy="Give it as INPUT, and a folder with -o.")
    opening = {
        "device": config.device,
        "decide": options.decide,
        "ensemble": options.ensemble,
        "runtime": options.runtime,
        "long": options.long,
    }
    request = RayRequest(run.absolute(), opening, dict(options.thresholds), options.probabilities)
    with claim(OutputFolder(output, Path(source), ".parquet"), overwrite=overwrite):
        n_rows = predict_on_ray(request, Path(source), output.absolute(), config, address)
    return Predictions(output, None, n_rows, {})


@contextmanager
def _opened(source: Any, config: Config, options: PredictOptions, observe: PredictionListener) -> Iterator[Stream]:
    """Open the texts, and report what reading found. Errors of rows mention how to leave the rows out."""
    skip = options.on_error == "skip"
    opened = nullcontext(source()) if callable(source) else open_stream(source, config, skip=skip)
    try:
        with opened as stream:
            observe(InputOpened(stream.n_rows, stream.notes, stream.skipped))
            yield stream
    except RowError as error:
        if skip:
            raise
        remedy = f"{error.remedy} Or leave such rows out: --on-error skip."
        raise RowError(error.what, where=error.where, remedy=remedy) from error


def _model(
    run: Path, stream: Stream, config: Config, options: PredictOptions, observe: PredictionListener
) -> tuple[partial[Iterator[tuple[Cells, Counter[str]]]], Abstention]:
    """Load the classifier; return the function that labels chunks, and its thresholds."""
    from bertsmith.inference.abstain import abstention
    from bertsmith.inference.exported import Exported
    from bertsmith.inference.load import open_classifier
    from bertsmith.inference.predict import predict_chunks
    from bertsmith.inference.windows import Windowed

    classifier, held_out = open_classifier(
        run,
        device=config.device,
        decide=options.decide,
        ensemble=options.ensemble,
        runtime=options.runtime,
        long=options.long,
    )
    model = classifier.model if isinstance(classifier, Windowed) else classifier
    observe(ModelOpened(model.about.format if isinstance(model, Exported) and not is_export(run) else None))
    abstain = abstention(held_out, classifier.rules, decide=options.decide, **options.thresholds)
    labelled = partial(
        predict_chunks,
        classifier,
        probabilities=options.probabilities,
        abstain=abstain,
        waits=stream.n_rows is None,
        progress=lambda n: observe(RowsPredicted(n)),
    )
    return labelled, abstain


def _description(
    run: Path, stream: Stream, config: Config, options: PredictOptions, labelled: partial[Any]
) -> dict[str, Any]:
    """Return what the predictions depend on: they are resumed only with the same."""
    from bertsmith.inference.load import identity

    classifier: Predictor = labelled.args[0]
    chosen = asdict(options)
    return {
        "version": __version__,
        "input": None if stream.path is None else checksum(stream.path),
        "text_column": config.text_column,
        "encoding": config.encoding,
        "model": identity(run, ensemble=options.ensemble),
        "labelled by": repr(classifier),
        "decision_rule": chosen.pop("decide"),
        **{name: value for name, value in chosen.items() if name not in ("long", "ensemble", "runtime")},
    }


def _summary(path: Path | None, counts: Counter[str], abstain: Abstention, stream: Stream) -> Predictions:
    from bertsmith.inference.predict import LABELLED

    labels = Counter({key.removeprefix(LABELLED): n for key, n in counts.items() if key.startswith(LABELLED)})
    return Predictions(
        path,
        None,
        counts["rows"],
        dict(labels.most_common()),
        counts["empty"],
        counts["abstained"],
        counts["cut"],
        abstain.confidence,
        stream.skipped,
    )
