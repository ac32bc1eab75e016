"""Measure a corpus, and regress on it, with settings as keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from bertsmith.api.keyword_types import EvaluateSettings, PredictSettings
from bertsmith.api.public import public, settings_of
from bertsmith.errors import to_path
from bertsmith.folders.run import Run

if TYPE_CHECKING:
    from bertsmith.events import PredictionListener
    from bertsmith.measuring.regression import Regression
    from bertsmith.measuring.result import Measurement
    from bertsmith.workflows.drift import Drift


@public("train")
def measure(
    run: Run | Path | str,
    corpus: Any = None,
    *,
    labelled: Any = None,
    by: str | None = None,
    random_sample: bool = False,
    for_regression: Path | str | None = None,
    overwrite: bool = False,
    on_event: PredictionListener | None = None,
    **settings: Unpack[EvaluateSettings],
) -> Measurement:
    """Measure the share of each class in a corpus, or the mean of numeric labels, with 95 % intervals.

    bertsmith corrects the estimates for the mistakes of the model. With a labelled sample, the estimator is PPI++ or,
    with unequal inclusion probabilities, design-based supervised learning. Without a sample, the estimator is an
    adjusted count under label shift. If a test rejects label shift, `measure` raises an error. Memory use does not grow
    with the size of a corpus in CSV, JSON Lines or Parquet.

    Args:
        run: the run, or its folder.
        corpus: the texts to measure, as for `predict`.
        labelled: a labelled sample of the corpus, as for `read_table`. The columns ``random`` (true or false) and
            ``inclusion_probability`` describe how its texts were chosen.
        by: a column of the corpus; also measure the texts with each of its values.
        random_sample: declare that a sample without these columns is a simple random sample of the corpus.
        for_regression: a CSV file to write with pseudo-outcomes of each text, for `regress`.
        overwrite: replace this file.
        on_event: called with each event (see `bertsmith.events`).
        **settings: fields of `DataConfig` and `ModelConfig` for reading the tables, and the device. If whole groups
            were drawn, such as all texts of an author, ``group_column`` names the column of the groups in the sample.

    Returns:
        The shares or means with their intervals, and notes.

    Raises:
        UserError: if the sampling design is unknown, the corpus cannot be measured, or ``for_regression`` exists.
    """
    from bertsmith.workflows.measure import run_measurement

    config = settings_of(settings, EvaluateSettings)
    return run_measurement(
        to_path(run, "run"),
        corpus,
        config,
        labelled=labelled,
        by=by,
        random_sample=random_sample,
        for_regression=None if for_regression is None else to_path(for_regression, "for_regression"),
        overwrite=overwrite,
        observe=on_event or (lambda event: None),
    )


@public("train")
def drift(
    run: Run | Path | str,
    new: Any = None,
    *,
    on_event: PredictionListener | None = None,
    **settings: Unpack[PredictSettings],
) -> Drift:
    """Compare new texts with the test texts of a run.

    The compared properties are predicted labels, confidence, length, language, unknown tokens and embeddings.

    Args:
        run: the run, or its folder.
        new: the texts, as for `predict`.
        on_event: called with each event (see `bertsmith.events`).
        **settings: fields of `DataConfig` and `ModelConfig` for reading the texts, and the device.

    Returns:
        One distance for each property, with a threshold that the distance rarely exceeds by chance.

    Raises:
        UserError: if the texts cannot be read or the run is damaged.
    """
    from bertsmith.workflows.drift import compare_texts

    config = settings_of(settings, PredictSettings)
    folder = to_path(run, "run")
    return compare_texts(folder, new, config, observe=on_event or (lambda event: None))


@public("train")
def regress(
    table: Any,
    label_text: str,
    on: str | Sequence[str],
    *,
    model: Literal["linear", "logistic"] = "linear",
    clusters: str | None = None,
) -> Regression:
    """Regress a label, or the level of ordered labels, on columns of a corpus, with valid standard errors.

    Args:
        table: the file of ``for_regression`` of `measure`, or its content as a data frame or Arrow table; you may
            add columns to it.
        label_text: the class; ``"(level)"`` for the level of ordered labels.
        on: a column of an explanatory variable, or several. A column of words becomes one indicator for each value
            except the first.
        model: ``"linear"`` or ``"logistic"``.
        clusters: a column of groups, such as authors, whose texts depend on each other. If you labelled a sample of
            groups, pass their column.

    Returns:
        The coefficients, and notes about values with fewer than five labelled texts (or clusters).

    Raises:
        UserError: if a column is missing, if a value of a column has fewer than two labelled texts (or clusters), or if
            the regression has no solution.
    """
    from bertsmith.measuring.regression import fit_regression

    return fit_regression(table, label_text, on, model=model, clusters=clusters)
