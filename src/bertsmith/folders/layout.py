"""The layout of a run folder, and the keys of its JSON files that a finished run cannot lack."""

from __future__ import annotations

from pathlib import Path


class Layout:
    """Paths in a run folder.

    Attributes:
        run: settings, versions, hardware, data, status and timings.
        labels: number and text of each class, and its count in each split.
        splits: the split of each source row, or the reason why bertsmith dropped the row.
        model: the fine-tuned Hugging Face checkpoint.
        history: one line per evaluation; empty with cross-validation or `--effort quick`.
        metrics: metrics by split.
        predictions: predictions for the validation and test splits; cross-validated texts replace a missing split.
        explanations: word attributions of the most confident mistakes.
        report: the report page.
        tensorboard: event files of `train --track tensorboard`.
        checkpoints: checkpoints of an unfinished run.
        folds: positions and probabilities of the texts in each scored fold of an unfinished run.
        seeds: one run per seed, with several seeds.
        exports: exported models by format.
        evaluations: evaluations on other tables.
    """

    def __init__(self, root: Path) -> None:
        self.run = root / "run.json"
        self.labels = root / "labels.json"
        self.splits = root / "splits.parquet"
        self.model = root / "model"
        self.history = root / "history.jsonl"
        self.metrics = root / "metrics.json"
        self.predictions = root / "predictions"
        self.explanations = self.predictions / "explanations.json"
        self.report = root / "report.html"
        self.tensorboard = root / "tensorboard"
        self.checkpoints = root / "checkpoints"
        self.folds = root / "folds"
        self.seeds = root / "seeds"
        self.exports = root / "export"
        self.evaluations = root / "evaluations"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first. Copies, such as ``checkpoint-4.bak``, do not count."""
    found = (path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal())
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, which its name contains."""
    return int(checkpoint.name.rpartition("-")[2])


FINISHED = {
    "finished": str,
    "config.seed": int,
    "data.fingerprint": str,
    "data.sources": list,
    "data.splits": dict,
    "data.left_out": dict,
    "data.findings": dict,
    "model.name": str,
    "recipe": dict,
    "training.best_step": int,
    "versions": dict,
}
"""Keys of ``run.json`` with the types of their values. Every finished run of any version has them."""
MEASURED = {"splits.validation.metrics": dict, "splits.test.metrics": dict}
"""Keys of ``metrics.json`` that every finished run has."""
