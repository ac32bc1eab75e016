"""An exported classifier, which needs a runtime, tokenizers and numpy, but neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import xxhash

from bertsmith.compute.batching import micro_batches
from bertsmith.compute.machine import cores
from bertsmith.data.table import SINGLE_LABEL, Labels
from bertsmith.data.template import Template
from bertsmith.errors import MissingPackageError, RunFolderError, counted
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.abstain import HeldOutPredictions
from bertsmith.inference.predictor import ModelPredictor, other_long_error
from bertsmith.inference.runtime import RUNTIMES, Session
from bertsmith.model.tokenizer import COLUMNS, Encoder
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.registry import get_task

ABOUT = "export.json"
TOKENIZER, HELD_OUT = "tokenizer.json", "validation.npz"
MAX_PADDING = 64
"""Padding tokens in a micro-batch above which another micro-batch is cheaper; see benchmarks/LOG.md."""
WIDTHS_PER_DOUBLING = 8
"""Distinct widths of micro-batches between two consecutive powers of 2, for runtimes with `Runtime.few_shapes`.

OpenVINO compiles for every new shape; see benchmarks/LOG.md.
"""


@dataclass(frozen=True)
class ExportInfo:
    """The description of an export, in ``export.json``.

    Attributes:
        format: key of `RUNTIMES`.
        precision: number format of the arithmetic.
        labels: the classes.
        task: the kind of label.
        inputs: of the model, among ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        max_length: tokens of a text that the model reads.
        pad_token: id and side (``"left"``, ``"right"``).
        rule: temperature and offsets.
        parity: comparison with the original model.
        files: XXH3 checksum by file name.
        run: facts about the run it comes from.
        template: the columns that the model reads.
        long: how texts above the maximum length are read; absent from exports of older versions.
        truncation_side: ``"left"`` or ``"right"``; absent from exports of older versions.
    """

    format: str
    precision: str
    labels: Labels
    task: str
    inputs: tuple[str, ...]
    max_length: int
    pad_token: tuple[int, str]
    rule: Rule
    parity: dict[str, Any]
    files: dict[str, str]
    run: dict[str, Any]
    template: Template = field(default_factory=Template)
    long: str = "truncate"
    truncation_side: str = "right"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready content of ``export.json``, including its checksum."""
        labels = zip(self.labels.numbers, self.labels.texts, strict=True)
        content = {
            **vars(self),
            "labels": [{"label": number, "label_text": text} for number, text in labels],
            "rule": self.rule.to_dict(),
            "template": self.template.to_dict(),
        }
        return content | {"seal": _seal(content)}

    @classmethod
    def read(cls, folder: Path) -> ExportInfo:
        """Read and verify the description of an export folder.

        Raises:
            RunFolderError: if it is damaged.
        """
        try:
            content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if content.pop("seal", None) != _seal(content):
                raise ValueError("the file has changed since the export")
            number, side = content["pad_token"]
            numbers, texts = (tuple(e[key] for e in content["labels"]) for key in ("label", "label_text"))
            if content["format"] not in RUNTIMES:
                raise ValueError(f"the format {content['format']!r} is unknown")
            return cls(
                content["format"],
                content["precision"],
                Labels(numbers, texts),
                get_task(content.get("task", SINGLE_LABEL)).name,
                tuple(content["inputs"]),
                content["max_length"],
                (number, side),
                Rule.from_dict(content["rule"], len(texts)),
                content["parity"],
                content["files"],
                content["run"],
                Template.from_dict(content.get("template")),
                content.get("long", "truncate"),
                content.get("truncation_side", "right"),
            )
        except json.JSONDecodeError as error:
            raise _damaged(folder / ABOUT, f"line {error.lineno} is not JSON") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / ABOUT, "an entry is missing or has the wrong type") from error
        except (OSError, ValueError) as error:
            raise _damaged(folder / ABOUT, str(error)) from error

    def check_files(self, folder: Path) -> None:
        """Check that the files of an export folder have not changed since the export.

        Raises:
            RunFolderError: naming the file that changed or is missing.
        """
        for name, expected in self.files.items():
            file = folder / name
            if not file.is_file():
                raise _damaged(file, "the file is missing")
            if file_digest(file) != expected:
                raise _damaged(file, "the file has changed since the export")


class Exported(ModelPredictor):
    """Predicts with an export.

    Attributes:
        about: the description of the export.
        labels: the classes.
        task: the kind of label.
        rule: temperature and offsets.
        decide: whether to use the offsets of the decision rule.
        folder: the export folder.
        encoder: turns texts into token ids.
    """

    def __init__(self, folder: Path, about: ExportInfo, session: Session, *, decide: bool = True) -> None:
        self.folder, self.about, self.labels, self.task = folder, about, about.labels, get_task(about.task)
        self.decide = decide or not self.task.decides
        self.session, self.rule, self.long = session, about.rule, about.long
        self.template = about.template
        content = (folder / TOKENIZER).read_text(encoding="utf-8")
        self.encoder = Encoder(content, about.truncation_side, by_line=about.template.by_line)
        if about.template.pair_column:  # the token types of single texts are 0
            self.columns = tuple(name for name in COLUMNS if name in about.inputs)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        decide: bool = True,
        threads: int | None = None,
        long: str = "auto",
        run: Path | None = None,
    ) -> Exported:
        """Load from an export folder.

        Args:
            folder: written by `export`.
            decide: use the decision rule, if the model has one.
            threads: number of threads; by default one per core.
            long: how to read texts above the maximum length; ``"auto"`` follows the export.
            run: the folder of the run that the export belongs to, if it is known.

        Raises:
            RunFolderError: if the export is damaged.
            MissingPackageError: if its runtime is not installed.
            ConfigError: if ``long`` does not suit the columns that the model reads.
        """
        folder = Path(folder)
        about = ExportInfo.read(folder)
        long = about.long if long == "auto" else long
        about.template.check_long(long)
        about.check_files(folder)
        runtime = RUNTIMES[about.format]
        try:
            session = runtime.open(folder, about.precision, threads or cores())
        except ModuleNotFoundError as error:
            raise MissingPackageError(runtime.package, "the export", where=str(folder)) from error
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise _damaged(folder, f"{runtime.package} cannot load the model: {reason}") from error
        exported = cls(folder, about, session, decide=decide)
        exported.long, exported.run = long, run
        return exported

    def __repr__(self) -> str:
        return f"Exported({counted(len(self.labels), 'class', 'classes')}, {self.about.format} {self.about.precision})"

    def held_out(self, *, test: bool = False, again: bool = True) -> HeldOutPredictions:
        """Return the predictions for held-out texts, which a separate export cannot predict again."""
        if self.run is None and self.long != (found := self.saved(test=test)).long:
            raise other_long_error(self.long, found.long, "the export lacks these texts", self.folder)
        return super().held_out(test=test, again=again)

    def saved(self, *, test: bool = False) -> HeldOutPredictions:
        """Return the held-out predictions of the run, or else those in the export, which has none for test texts."""
        if self.run is not None or test:
            return super().saved(test=test)
        try:
            with np.load(self.folder / HELD_OUT, allow_pickle=False) as arrays:
                scores = arrays["probabilities"].astype(np.float64)
                others = {name: arrays[name] for name in ("lengths", "groups") if len(arrays.get(name, ()))}
                long = str(arrays.get("long", self.about.long))  # absent from older exports
                return HeldOutPredictions(arrays["targets"], [scores], **others, long=long)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise _damaged(self.folder / HELD_OUT, str(error)) from error

    @property
    def compute_type(self) -> str:
        """Device and runtime; see `ModelPredictor.compute_type`."""
        return f"cpu+{self.about.format}"

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.about.max_length

    def logits_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits for tokenized texts; see `ModelPredictor.logits_of`."""
        lengths, logits = tokens.truncated_lengths, np.empty((len(tokens), len(self.labels)))
        runtime, about = RUNTIMES[self.about.format], self.about
        if runtime.few_shapes:
            lengths = np.minimum(round_up_widths(lengths), self.max_length)
        groups = micro_batches(lengths, runtime.token_budget, padding=MAX_PADDING)
        batches = (
            model_inputs(tokens.take(rows), about.inputs, int(lengths[rows].max()), about.pad_token) for rows in groups
        )
        with closing(self.session(batches, len(groups))) as results:
            for rows, result in zip(groups, results, strict=True):
                logits[rows] = result
                if progress:
                    progress(len(rows))
        return logits


def round_up_widths(lengths: np.ndarray) -> np.ndarray:
    """Round numbers of tokens up to one of `WIDTHS_PER_DOUBLING` values between consecutive powers of two."""
    steps = 2 ** np.maximum(np.log2(np.maximum(lengths - 1, 1)).astype(np.int64) - int(np.log2(WIDTHS_PER_DOUBLING)), 0)
    return -(-lengths // steps) * steps


def model_inputs(
    tokens: Tokens, names: Sequence[str], width: int, pad_token: tuple[int, str] = (0, "right")
) -> dict[str, np.ndarray]:
    """Return the inputs of a model for tokenized texts, each of shape (texts, width); absent inputs are 0.

    Args:
        tokens: of the texts.
        names: of the inputs to return.
        width: number of tokens after padding.
        pad_token: id and side.
    """
    inputs = tokens.pad({"input_ids": pad_token[0]}, pad_token[1], width)
    return {name: inputs[name] if name in inputs else np.zeros_like(inputs["input_ids"]) for name in names}


def _seal(content: dict[str, Any]) -> str:
    """Return the XXH3 checksum of JSON-ready content, independent of its formatting."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def is_export(path: Path) -> bool:
    """Return whether a folder is an export."""
    return (path / ABOUT).is_file()


def file_digest(file: Path) -> str:
    """Return the XXH3 checksum of a file, a fast check for damage."""
    hashed = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def _damaged(file: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"the export is damaged: {why}",
        where=str(file),
        remedy="Copy the export again from its source, or export the run again with --overwrite.",
    )
