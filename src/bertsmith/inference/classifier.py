"""A fitted classifier: texts in, labels, probabilities and confidence out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.normalise import normalise
from bertsmith.data.table import Labels
from bertsmith.errors import DeviceError, ModelError, RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.labelling import Encoded, OneModel, as_texts
from bertsmith.model import checkpoint
from bertsmith.model.load import Loaded, check_vocabulary, choose_device, load_model, load_tokenizer
from bertsmith.model.packing import can_pack, packed
from bertsmith.run import Run, open_run
from bertsmith.training.batching import TOKEN_BUDGETS, micro_batches
from bertsmith.training.memory import free_memory, plan, ran_out

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class Classifier(OneModel):
    """A model that labels texts, in fp32.

    Attributes:
        labels: the classes.
        loaded: the model with its tokenizer.
        rule: temperature and offsets, fitted on validation.
        decide: whether the offsets are used, which were tuned for the primary metric.
        token_budget: tokens at once; less than usual where memory is short.
        packs: whether texts are laid end to end: see `bertsmith.model.packing`.
    """

    def __init__(self, loaded: Loaded, labels: Labels, rule: Rule | None = None, *, decide: bool = True) -> None:
        self.loaded, self.labels, self.rule, self.decide = loaded, labels, rule or Rule(), decide
        self.token_budget = TOKEN_BUDGETS[loaded.device.type]
        self.packs = can_pack(loaded.model)
        loaded.model.eval()

    @classmethod
    def load(
        cls, path: Path | str, *, labels: Labels | None = None, device: str = "auto", decide: bool = True
    ) -> Classifier:
        """Load from a run folder, or from the ``model`` folder alone.

        Args:
            path: the folder.
            labels: the classes; otherwise those of the run, or of the model's own configuration numbered from 0.
            device: where to compute.
            decide: use the decision rule tuned on validation, if there is one.

        Raises:
            RunFolderError: if there is no finished run.
            ModelError: if the model is damaged.
            DeviceError: if the device is not there.
        """
        path = Path(path)
        if (path / "config.json").is_file() and not Run(path).layout.run.is_file():
            folder = path
        else:
            run = open_run(path)
            folder, labels = run.layout.model, labels or run.labels
        if not folder.is_dir():
            raise RunFolderError("the run has lost its model", where=str(folder), remedy="Train the run again.")
        if folder != path and Run(path).layout.run.is_file():
            Run(path).check_model()
        try:
            resolved = checkpoint.resolve(str(folder))
            model, tokenizer = load_model(resolved), load_tokenizer(resolved)
            check_vocabulary(model, tokenizer, resolved)
        except ModelError as error:
            if folder == path:
                raise
            raise RunFolderError(
                f"the run's model is damaged: {error.what}",
                where=error.where or str(folder),
                remedy="Put back a copy of the folder, or train again with --overwrite.",
            ) from error
        texts = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
        if labels is None:
            labels = Labels(tuple(range(len(texts))), texts)
        elif labels.texts != texts:
            raise RunFolderError(
                "the labels of model/config.json are not those of labels.json",
                where=str(path),
                remedy="Put back a copy of the one that was changed, or train again with --overwrite.",
            )
        try:
            rule = Rule.read(getattr(model.config, "bertsmith", None), len(texts))
        except ValueError as error:
            raise RunFolderError(
                f"the decision rule of the model is damaged: {error}",
                where=str(folder / "config.json"),
                remedy="Put back a copy of the folder, or train again with --overwrite.",
            ) from error
        where = choose_device(device)
        model.to(where)
        limit = min(int(tokenizer.model_max_length), resolved.max_positions)
        return cls(Loaded(model, tokenizer, where, limit), labels, rule, decide=decide)

    def __repr__(self) -> str:
        return f"Classifier({len(self.labels)} classes, {self.loaded.model.config.model_type}, {self.loaded.device})"

    @property
    def max_length(self) -> int:
        """Tokens kept of each text."""
        return self.loaded.max_length

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, special tokens counted, nothing cut, shape (texts,)."""
        return self.loaded.encoder.count([normalise(text) for text in texts])

    def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        """Return the first and last character of every token of a text, nothing cut; both 0 for special tokens."""
        return self.loaded.encoder.offsets(text)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenize texts, as `OneModel.encode` says."""
        return self.loaded.encoder.columns([normalise(text) for text in as_texts(texts)], self.loaded.input_names)

    def logits_of(self, encoded: Encoded, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits for encoded texts, as `OneModel.logits_of` says."""
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        result = np.empty((len(lengths), len(self.labels)), dtype=np.float64)
        if not len(lengths):
            return result
        if self.loaded.device.type == "cpu":
            self.token_budget = plan(self.loaded.model, int(lengths.max()), training=False, free=free_memory())
        for rows in micro_batches(lengths, self.token_budget, packed=self.packs):
            logits = self._logits({name: [encoded[name][i] for i in rows] for name in self.loaded.input_names})
            result[rows] = logits.cpu().double().numpy()  # Apple GPUs have no float64
            if progress:
                progress(len(rows))
        return result

    def _logits(self, encoded: dict[str, list[list[int]]]) -> torch.Tensor:
        """Return the logits of tokenized texts, of fewer at once as long as memory does not suffice."""
        import torch

        lengths = [len(ids) for ids in encoded["input_ids"]]
        tokens = sum(lengths) if self.packs else len(lengths) * max(lengths)
        if tokens <= self.token_budget or len(lengths) == 1:
            batch = self.loaded.tokenizer.pad(encoded, return_tensors="pt")
            model = self.loaded.model
            try:
                inputs_of = packed(model, batch) if self.packs else nullcontext(batch.to(model.device))
                with torch.inference_mode(), inputs_of as inputs:
                    logits: torch.Tensor = model(**inputs).logits
                    return logits
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if len(lengths) == 1:
                    raise DeviceError(
                        f"memory does not suffice even for one text of {lengths[0]:,} tokens",
                        remedy="Free memory, raise its limit, or pass --device cpu.",
                    ) from error
                self.token_budget = tokens // 2
            log.warning("memory was short: going on with %s tokens at once, to the same result", self.token_budget)
        half = len(lengths) // 2
        parts = ({name: ids[which] for name, ids in encoded.items()} for which in (slice(half), slice(half, None)))
        return torch.cat([self._logits(part) for part in parts])
