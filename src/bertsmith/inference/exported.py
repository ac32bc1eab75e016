"""An exported classifier: it needs neither torch nor transformers, only a runtime, tokenizers and numpy."""

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
from bertsmith.errors import ConfigError, RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.abstain import HeldOutPredictions
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.inference.runtime import RUNTIMES, Session
from bertsmith.model.tokenizer import FastEncoder, Tokens

ABOUT = "export.json"
TOKENIZER, HELD_OUT = "tokenizer.json", "validation.npz"
PADDING = 64
"""Tokens of padding in a micro-batch, from which on another one is cheaper.

MiniLM answered 24 or 48 tweets 1.2 to 1.6 times as fast as in one micro-batch, and 8 or 24 news of reuters_r8 1.5 to
2.2 times (two cores of an AMD EPYC, AVX2); 32 to 128 did nearly as well.
"""
WIDTHS = 8
"""Between a number of tokens and its double micro-batches have only so many widths with OpenVINO.

It prepares itself for every shape it meets: with two cores and AMX MiniLM in bf16 labelled the test texts of reuters_r8
1.2 times as fast with 30 shapes as with 160, and in int8 1.4 times, for 3 % more tokens.
"""


@dataclass(frozen=True)
class ExportInfo:
    """What an export says of itself, in ``export.json``.

    Attributes:
        format, precision: what the model is.
        labels: the classes.
        inputs: what the model takes, of ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        max_length: tokens kept of each text.
        pad_token: number and side (``"left"``, ``"right"``).
        rule: temperature and offsets.
        parity: how it compares with the original on validation texts.
        files: XXH3 of every file.
        run: what the run it comes from says of itself.
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

    def to_dict(self) -> dict[str, Any]:
        """Return what `read` reads, with a checksum of it."""
        content = {
            "format": self.format,
            "precision": self.precision,
            "labels": [
                {"label": n, "label_text": t} for n, t in zip(self.labels.numbers, self.labels.texts, strict=True)
            ],
            "inputs": list(self.inputs),
            "max_length": self.max_length,
            "pad_token": list(self.pad_token),
            "rule": self.rule.to_dict(),
            "parity": self.parity,
            "files": self.files,
            "run": self.run,
        }
        return content | {"seal": _seal(content)}

    @classmethod
    def read(cls, folder: Path) -> ExportInfo:
        """Read it.

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
                raise ValueError("it is not what it was when it was exported")
            number, side = content["pad_token"]
            if content["format"] not in RUNTIMES:
                raise ValueError(f"there is no format {content['format']!r}")
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
            )
        except json.JSONDecodeError as error:
            raise _damaged(folder / ABOUT, f"line {error.lineno} of its description is not JSON") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / ABOUT, "its description lacks what an export says of itself") from error
        except (OSError, ValueError) as error:
            raise _damaged(folder / ABOUT, str(error)) from error


class Exported(ModelPredictor):
    """A classifier that runs from an export folder.

    Attributes:
        about: what the export says of itself.
        labels: the classes.
        rule: temperature and offsets.
        decide: whether the offsets of the decision rule are used.
        folder: where it is.
        encoder: what turns texts into token ids.
    """

    def __init__(self, folder: Path, about: ExportInfo, session: Session, *, decide: bool = True) -> None:
        self.folder, self.about, self.labels, self.decide = folder, about, about.labels, decide
        self.session, self.rule = session, about.rule
        self.encoder = FastEncoder((folder / TOKENIZER).read_text(encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path | str, *, decide: bool = True, threads: int | None = None) -> Exported:
        """Load from an export folder.

        Args:
            folder: that `export` wrote.
            decide: use the decision rule tuned on validation, if there is one.
            threads: to compute with; those of the machine unless given.

        Raises:
            RunFolderError: if the export is damaged.
            ConfigError: if its runtime is not installed.
        """
        folder = Path(folder)
        about = ExportInfo.read(folder)
        for name, expected in about.files.items():
            file = folder / name
            if not file.is_file():
                raise _damaged(file, "it is not there")
            if digest(file) != expected:
                raise _damaged(file, "it is not what it was when it was exported")
        runtime = RUNTIMES[about.format]
        try:
            session = runtime.open(folder, about.precision, threads or cores())
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the export needs the package {runtime.package}",
                where=str(folder),
                remedy=f"Install it: pip install {runtime.package}.",
            ) from error
        except Exception as error:
            raise _damaged(folder, f"{runtime.package} cannot load it: {str(error).splitlines()[0]}") from error
        return cls(folder, about, session, decide=decide)

    def __repr__(self) -> str:
        return f"Exported({len(self.labels)} classes, {self.about.format} {self.about.precision})"

    @property
    def max_length(self) -> int:
        """Tokens kept of each text."""
        return self.about.max_length

    @property
    def held_out(self) -> HeldOutPredictions:
        """The validation texts of the run, and what the original said of them."""
        try:
            with np.load(self.folder / HELD_OUT, allow_pickle=False) as kept:
                return HeldOutPredictions(kept["targets"], [kept["probabilities"].astype(np.float64)])
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(self.folder / HELD_OUT, str(error)) from error

    def logits_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits for tokenized texts, as `ModelPredictor.logits_of` says."""
        ids, lengths = tokens.ids(), tokens.kept
        logits = np.empty((len(ids), len(self.labels)))
        runtime = RUNTIMES[self.about.format]
        if runtime.few_shapes:
            lengths = np.minimum(round_up_widths(lengths), self.max_length)
        groups = micro_batches(lengths, runtime.token_budget, padding=PADDING)
        pad_token, names = self.about.pad_token, self.about.inputs
        batches = (padded([ids[i] for i in rows], pad_token, names, int(lengths[rows].max())) for rows in groups)
        with closing(self.session(batches, len(groups))) as of_groups:
            for rows, found in zip(groups, of_groups, strict=True):
                logits[rows] = found
                if progress:
                    progress(len(rows))
        return logits


def round_up_widths(lengths: np.ndarray) -> np.ndarray:
    """Return numbers of tokens rounded up to one of `WIDTHS` between a power of two and the next."""
    steps = 2 ** np.maximum(np.log2(np.maximum(lengths - 1, 1)).astype(np.int64) - int(np.log2(WIDTHS)), 0)
    rounded: np.ndarray = -(-lengths // steps) * steps
    return rounded


def padded(
    ids: Sequence[np.ndarray], pad_token: tuple[int, str], names: Sequence[str], width: int | None = None
) -> dict[str, np.ndarray]:
    """Return a model's inputs for tokenized texts, padded to a width, each of shape (texts, tokens).

    Args:
        ids: of every text.
        pad_token: number and side.
        names: of the inputs.
        width: in tokens; that of the longest unless given.
    """
    width = width or max(map(len, ids))
    number, side = pad_token
    table = np.full((len(ids), width), number, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for i, row in enumerate(ids):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        table[i, place], mask[i, place] = row, 1
    every = {"input_ids": table, "attention_mask": mask, "token_type_ids": np.zeros_like(table)}
    return {name: every[name] for name in names}


def _seal(content: dict[str, Any]) -> str:
    """Return the XXH3 of JSON-ready content, however it is laid out in its file."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def is_export(path: Path) -> bool:
    """Return whether a folder is an export."""
    return (path / ABOUT).is_file()


def digest(file: Path) -> str:
    """Return the XXH3 of a file, which tells damage as fast as it can be read."""
    hashed = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def _damaged(file: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"the export is damaged: {why}",
        where=str(file),
        remedy="Copy it again from where it was made, or export the run again with --overwrite.",
    )
