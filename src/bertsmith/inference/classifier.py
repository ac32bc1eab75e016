"""A fitted classifier that runs with torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from bertsmith.compute.batching import TOKEN_BUDGETS
from bertsmith.compute.device import choose_device, choose_precision
from bertsmith.compute.memory import memory_errors, token_budget
from bertsmith.config import Long
from bertsmith.data.table import Labels
from bertsmith.data.template import Template
from bertsmith.errors import ModelError, RunFolderError, UserError, counted
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.model import checkpoint
from bertsmith.model.forward import supports
from bertsmith.model.load import TEMPLATE, LoadedModel, check_vocabulary, load_model, load_tokenizer, saved_settings
from bertsmith.model.outputs import compute_logits, with_layer_dtype
from bertsmith.model.tokenizer import encoder_for
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import task_of_config

log = logging.getLogger(__name__)


class Classifier(ModelPredictor):
    """Predicts with a torch model.

    Attributes:
        labels: the classes.
        task: the kind of label.
        loaded: the model with its tokenizer.
        rule: temperature and offsets, fitted on validation.
        decide: whether to use the offsets, which were tuned for the primary metric.
        long: how the classifier reads texts above the maximum length.
        token_budget: tokens per micro-batch, if memory suffices.
        dtype: of the matrix products. It is bf16 if the device computes bf16 fast and the run's check found the same
            labels, or else fp32.
    """

    def __init__(
        self, loaded: LoadedModel, labels: Labels, task: Task, rule: Rule | None = None, *, decide: bool = True
    ) -> None:
        self.loaded, self.labels, self.task, self.rule = loaded, labels, task, rule or Rule()
        self.decide = decide or not task.decides
        self.template, self.columns = loaded.template, loaded.columns
        self.encoder = encoder_for(loaded.tokenizer, by_line=loaded.template.by_line)
        self.token_budget = TOKEN_BUDGETS[loaded.device.type]
        loaded.model.eval()
        self.set_dtype(torch.float32)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        labels: Labels | None = None,
        device: str = "auto",
        decide: bool = True,
        long: str = "auto",
    ) -> Classifier:
        """Load from a run folder or a ``model`` folder.

        Args:
            path: the folder.
            labels: the classes; by default those of the run, or those of the model's configuration numbered from 0.
            device: device of the model.
            decide: use the decision rule, if the model has one.
            long: how to read texts above the maximum length; ``"auto"`` follows the model's configuration.

        Raises:
            RunFolderError: if the run is missing, unfinished or damaged.
            ModelError: if the model is damaged.
            DeviceError: if the device is not available.
        """
        path = Path(path)
        if (path / "config.json").is_file() and not Run(path).layout.run.is_file():
            folder = path
        else:
            run = open_run(path)
            folder, labels = run.layout.model, labels or run.labels
        if not folder.is_dir():
            raise RunFolderError("the model of the run is missing", where=str(folder), remedy="Train the run again.")
        if folder != path:
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
                remedy="Restore the folder from a copy, or train again with --overwrite.",
            ) from error
        texts = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
        if labels is None:
            labels = Labels(tuple(range(len(texts))), texts)
        elif labels.texts != texts:
            raise RunFolderError(
                "the labels of model/config.json differ from those of labels.json",
                where=str(path),
                remedy="Restore the changed file from a copy, or train again with --overwrite.",
            )
        saved = saved_settings(model.config)
        try:
            rule = Rule.from_dict(saved, len(texts))
            template = Template.from_dict(getattr(model.config, TEMPLATE, None))
            if folder != path and template.is_plain:  # the model does not store the name of a single text column
                template = Run(path).template
            saved_long = saved.get("long", "truncate")
            if saved_long not in get_args(Long):
                raise ValueError(f"long={saved_long!r} is unknown")
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"the settings of bertsmith in config.json are damaged: {error}",
                where=str(folder / "config.json"),
                remedy="Restore the folder from a copy, or train again with --overwrite.",
            ) from error
        target = choose_device(device)
        model.to(target)
        limit = min(int(tokenizer.model_max_length), resolved.max_positions)
        task = task_of_config(model.config)
        opened = LoadedModel(model, tokenizer, target, limit, template=template)
        classifier = cls(opened, labels, task, rule, decide=decide)
        classifier.long = saved_long if long == "auto" else long
        template.check_long(classifier.long)
        classifier.run = path if folder != path else None
        if folder != path and passed_bf16_check(Run(path)) and choose_precision(target)[0] == "bf16":
            classifier.set_dtype(torch.bfloat16)
        return classifier

    def set_dtype(self, dtype: torch.dtype) -> Classifier:
        """Set the dtype of matrix products and return the classifier; explanations always use fp32."""
        if not supports(self.loaded.model):
            dtype = torch.float32
        self.dtype, self._compute_model = dtype, with_layer_dtype(self.loaded, dtype)
        return self

    @property
    def compute_type(self) -> str:
        """Device and runtime; see `ModelPredictor.compute_type`."""
        return f"{self.loaded.device.type}+torch"

    def __repr__(self) -> str:
        classes = counted(len(self.labels), "class", "classes")
        return f"Classifier({classes}, {self.loaded.model.config.model_type}, {self.loaded.device})"

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.loaded.max_length

    def logits_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits for tokenized texts; see `ModelPredictor.logits_of`."""
        if not len(tokens):
            return np.empty((0, len(self.labels)))
        budget = token_budget(self.loaded.model, tokens.longest, self.token_budget)
        message = f"memory is too small for a single text of {tokens.longest:,} tokens"
        on_cpu = self.loaded.device.type == "cpu"
        remedy = "Free memory, or raise the memory limit." if on_cpu else "Free memory, or pass --device cpu."
        with memory_errors(message, remedy):
            logits, sufficed = compute_logits(
                self._compute_model, tokens, budget, dtype=self.dtype, progress=progress, on_retry=_warn_about_memory
            )
        if sufficed < budget:
            self.token_budget = sufficed
        return logits


def passed_bf16_check(run: Run) -> bool:
    """Return whether the run's model gave the same labels in bf16 as in fp32; see `bertsmith.workflows.score`."""
    try:
        return bool(run.metrics.get("inference", {}).get("precision") == "bf16")
    except UserError:  # predicting does not need the metrics
        return False


def _warn_about_memory(budget: int) -> None:
    log.warning("out of memory: continuing with micro-batches of %s tokens; the predictions stay the same", budget)
