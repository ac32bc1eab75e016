"""An exported classifier, which needs a runtime, tokenizers and numpy, but neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from bertsmith.compute.batching import micro_batches
from bertsmith.compute.machine import cores
from bertsmith.data.table import Labels
from bertsmith.errors import MissingPackageError, RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.abstain import HeldOutPredictions
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.inference.runtime import RUNTIMES, Session
from bertsmith.model.tokenizer import FastEncoder, Tokens

ABOUT = "export.json"
TOKENIZER, HELD_OUT = "tokenizer.json", "validation.npz"
MAX_PADDING = 64
"""Padding tokens in a micro-batch above which another micro-batch is cheaper; see benchmarks/LOG.md."""
WIDTHS_PER_DOUBLING = 8
"""Distinct widths of micro-batches between a number of tokens and its double, for runtimes with `Runtime.few_shapes`.

OpenVINO compiles for every new shape; see benchmarks/LOG.md.
"""


@dataclass(frozen=True)
class ExportInfo:
    """The description of an export, in ``export.json``.

    Attributes:
        format: key of `RUNTIMES`.
        precision: number format of the arithmetic.
        labels: the classes.
        inputs: of the model, of ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        max_length: tokens of a text that the model reads.
        pad_token: id and side (``"left"``, ``"right"``).
        rule: temperature and offsets.
        parity: comparison with the original model.
        files: XXH3 checksum by file name.
        run: facts about the run it comes from.
        long: how texts above the maximum length are read; absent from exports of older versions.
    """

    format: str
    precision: str
    labels: Labels
    inputs: tuple[str, ...]
    max_length: int
    pad_token: tuple[int, str]
    rule: Rule
    parity: dict[str, Any]
    files: dict[str, str]
    run: dict[str, Any]
    long: str = "truncate"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready content of ``export.json``, including its checksum."""
        labels = zip(self.labels.numbers, self.labels.texts, strict=True)
        content = {
            **vars(self),
            "labels": [{"label": number, "label_text": text} for number, text in labels],
            "rule": self.rule.to_dict(),
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
            labels = Labels(
                tuple(int(e["label"]) for e in content["labels"]),
                tuple(str(e["label_text"]) for e in content["labels"]),
            )
            if content.pop("seal", None) != _seal(content):
                raise ValueError("it has changed since the export")
            number, side = content["pad_token"]
            if content["format"] not in RUNTIMES:
                raise ValueError(f"the format {content['format']!r} is unknown")
            return cls(
                content["format"],
                content["precision"],
                labels,
                tuple(content["inputs"]),
                int(content["max_length"]),
                (int(number), str(side)),
                Rule.from_dict(content["rule"], len(labels)),
                content["parity"],
                content["files"],
                content["run"],
                content.get("long", "truncate"),
            )
        except json.JSONDecodeError as error:
            raise _damaged(folder / ABOUT, f"line {error.lineno} is not JSON") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / ABOUT, "an entry is missing or has the wrong type") from error
        except (OSError, ValueError) as error:
            raise _damaged(folder / ABOUT, str(error)) from error


class Exported(ModelPredictor):
    """Predicts with an export.

    Attributes:
        about: the description of the export.
        labels: the classes.
        rule: temperature and offsets.
        decide: whether to use the offsets of the decision rule.
        folder: the export folder.
        encoder: turns texts into token ids.
    """

    def __init__(self, folder: Path, about: ExportInfo, session: Session, *, decide: bool = True) -> None:
        self.folder, self.about, self.labels, self.decide = folder, about, about.labels, decide
        self.session, self.rule, self.long = session, about.rule, about.long
        self.encoder = FastEncoder((folder / TOKENIZER).read_text(encoding="utf-8"))

    @classmethod
    def load(
        cls, folder: Path | str, *, decide: bool = True, threads: int | None = None, long: str = "auto"
    ) -> Exported:
        """Load from an export folder.

        Args:
            folder: written by `export`.
            decide: use the decision rule, if the model has one.
            threads: number of threads; by default one per core.
            long: how to read texts above the maximum length; ``"auto"`` follows the export.

        Raises:
            RunFolderError: if the export is damaged.
            MissingPackageError: if its runtime is not installed.
        """
        folder = Path(folder)
        about = ExportInfo.read(folder)
        for name, expected in about.files.items():
            file = folder / name
            if not file.is_file():
                raise _damaged(file, "the file is missing")
            if file_digest(file) != expected:
                raise _damaged(file, "the file has changed since the export")
        runtime = RUNTIMES[about.format]
        try:
            session = runtime.open(folder, about.precision, threads or cores())
        except ModuleNotFoundError as error:
            raise MissingPackageError(runtime.package, "the export", where=str(folder)) from error
        except Exception as error:
            raise _damaged(folder, f"{runtime.package} cannot load it: {str(error).splitlines()[0]}") from error
        exported = cls(folder, about, session, decide=decide)
        exported.long = about.long if long == "auto" else long
        return exported

    def __repr__(self) -> str:
        return f"Exported({len(self.labels)} classes, {self.about.format} {self.about.precision})"

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.about.max_length

    @property
    def held_out(self) -> HeldOutPredictions:
        """Held-out predictions of the original model."""
        try:
            with np.load(self.folder / HELD_OUT, allow_pickle=False) as arrays:
                return HeldOutPredictions(arrays["targets"], [arrays["probabilities"].astype(np.float64)])
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(self.folder / HELD_OUT, str(error)) from error

    def logits_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits for tokenized texts; see `ModelPredictor.logits_of`."""
        ids, lengths = tokens.ids(), tokens.truncated_lengths
        logits = np.empty((len(ids), len(self.labels)))
        runtime = RUNTIMES[self.about.format]
        if runtime.few_shapes:
            lengths = np.minimum(round_up_widths(lengths), self.max_length)
        groups = micro_batches(lengths, runtime.token_budget, padding=MAX_PADDING)
        pad_token, names = self.about.pad_token, self.about.inputs
        batches = (pad([ids[i] for i in rows], pad_token, names, int(lengths[rows].max())) for rows in groups)
        with closing(self.session(batches, len(groups))) as results:
            for rows, result in zip(groups, results, strict=True):
                logits[rows] = result
                if progress:
                    progress(len(rows))
        return logits


def round_up_widths(lengths: np.ndarray) -> np.ndarray:
    """Round numbers of tokens up to one of `WIDTHS_PER_DOUBLING` values between consecutive powers of two."""
    steps = 2 ** np.maximum(np.log2(np.maximum(lengths - 1, 1)).astype(np.int64) - int(np.log2(WIDTHS_PER_DOUBLING)), 0)
    rounded: np.ndarray = -(-lengths // steps) * steps
    return rounded


def pad(
    ids: Sequence[np.ndarray], pad_token: tuple[int, str], names: Sequence[str], width: int | None = None
) -> dict[str, np.ndarray]:
    """Return the inputs of a model for tokenized texts, padded to a width, each of shape (texts, tokens).

    Args:
        ids: token ids of each text.
        pad_token: id and side.
        names: of the inputs to return.
        width: in tokens; by default that of the longest text.
    """
    width = width or max(map(len, ids))
    pad_id, side = pad_token
    table = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for i, row in enumerate(ids):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        table[i, columns], mask[i, columns] = row, 1
    inputs = {"input_ids": table, "attention_mask": mask, "token_type_ids": np.zeros_like(table)}
    return {name: inputs[name] for name in names}


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
