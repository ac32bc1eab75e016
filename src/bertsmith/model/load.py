"""Load a checkpoint as a classifier for given labels, and its tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.compute.system import LOCKS_OPEN_FILES
from bertsmith.data.table import Labels
from bertsmith.data.template import Template
from bertsmith.errors import ModelError, counted
from bertsmith.model.checkpoint import Checkpoint
from bertsmith.model.tokenizer import COLUMNS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATE = "bertsmith_template"
"""Key of the template in the configuration of a model, so that the folder is enough to use the model."""


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer.

    Attributes:
        model: a sequence-classification model, in fp32, whose configuration has the label texts.
        tokenizer: its tokenizer.
        device: device of the model.
        max_length: maximum number of tokens of a text, by truncation.
        emoji_names: names of the emoji in the training texts that the original tokenizer does not know, by emoji.
        mean_pooling: whether a layer for mean pooling was added. The head of such a model starts as a regression.
        template: the columns that the model reads.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int
    emoji_names: Mapping[str, str] = field(default_factory=dict)
    mean_pooling: bool = False
    template: Template = field(default_factory=Template)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Outputs of the tokenizer that the model takes. If it has one token type, it takes no ``token_type_ids``."""
        names = set(inspect.signature(self.model.forward).parameters)
        if getattr(self.model.config, "type_vocab_size", 2) == 1:
            names.discard("token_type_ids")
        return tuple(name for name in self.tokenizer.model_input_names if name in names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names in `COLUMNS` that the model takes."""
        return tuple(name for name in COLUMNS if name in self.input_names)

    @property
    def padding(self) -> dict[str, int]:
        """Padding value of each input."""
        return {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face checkpoint: weights, configuration (with the template), tokenizer."""
        if not self.template.is_plain:
            setattr(self.model.config, TEMPLATE, self.template.to_dict())
        with quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; raise `ModelError` if that fails, or if it has no padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except Exception as error:
        raise _load_error("tokenizer", checkpoint, error) from error
    tokenizer.init_kwargs.pop("auto_map", None)
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no padding token", where=str(checkpoint.path), remedy="Use a BERT-family checkpoint."
        )
    return tokenizer


def load_model(
    checkpoint: Checkpoint,
    labels: Labels | None = None,
    *,
    problem_type: str = "single_label_classification",
    dropout: float | None = None,
) -> PreTrainedModel:
    """Load a checkpoint for sequence classification, in fp32.

    Args:
        checkpoint: from `bertsmith.model.checkpoint.resolve`, so it is complete and free of custom code.
        labels: the classes of a new head; ``None`` to keep the head of the checkpoint.
        problem_type: of a new head, as in the configs of transformers.
        dropout: dropout rate of all layers in training; ``None`` for the rates of the checkpoint.

    Raises:
        ModelError: if weights are missing, damaged, not finite, or do not match the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    options: dict[str, Any] = {}
    if labels is not None:
        options = {
            "num_labels": len(labels),
            "id2label": labels.id2label,
            "label2id": labels.label2id,
            "problem_type": problem_type,
            "ignore_mismatched_sizes": True,
        }
    try:
        if dropout is not None:
            options |= dict.fromkeys(dropout_rates(AutoConfig.from_pretrained(checkpoint.path)), dropout)
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                checkpoint.path,
                trust_remote_code=False,
                use_safetensors=not checkpoint.pickle,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise _load_error("model", checkpoint, error) from error
    if LOCKS_OPEN_FILES:  # the weights are views of the file
        for weights in (*model.parameters(), *model.buffers()):
            weights.data = weights.data.clone()
    # The first two are addresses of custom code; the others describe a head that is now replaced.
    for key in ("auto_map", "custom_pipelines", *(["bertsmith", TEMPLATE] if labels is not None else [])):
        vars(model.config).pop(key, None)
    _check_complete(model, info, checkpoint, new_head=labels is not None)
    not_finite = [name for name, weights in model.named_parameters() if not bool(weights.isfinite().all())]
    if not_finite:
        raise ModelError(
            f"the checkpoint has NaN or infinite numbers in {counted(len(not_finite), 'weight')}, such as "
            f"{not_finite[0]}",
            where=str(checkpoint.path),
            remedy="Use another copy, saved before its training diverged.",
        )
    return model


def dropout_rates(config: Any) -> dict[str, float]:
    """Return the dropout rates of a configuration, by name, without those that are not set."""
    return {n: float(v) for n, v in vars(config).items() if "dropout" in n and isinstance(v, int | float)}


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> None:
    """Raise `ModelError` unless the model has an embedding for every token of the tokenizer."""
    tokens, rows = max(tokenizer.get_vocab().values(), default=-1) + 1, model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens, but the model has {rows:,} embeddings: they do not match",
            where=str(checkpoint.path),
            remedy="Use the tokenizer with which the checkpoint was trained.",
        )


def fold_calibration(
    model: PreTrainedModel, temperature: float | Sequence[float], offsets: Sequence[float] = (), stretch: float = 1.0
) -> bool:
    """Change the head so that it adds offsets to the logits, divides them by a temperature and stretches their slope.

    Then the checkpoint gives calibrated probabilities in any library. Return whether the change succeeded: the head
    must end in a linear layer with one output per class.

    Args:
        model: changed in place.
        temperature: above 0; one for all classes, or one per class.
        offsets: one per class, or none.
        stretch: factor of the slope of the logits over the ranks of ordered classes.
    """
    import torch

    body = f"{model.base_model_prefix}."
    last = None
    for name, module in model.named_modules():
        linear = isinstance(module, torch.nn.Linear) and module.out_features == model.config.num_labels
        if linear and not name.startswith(body):
            last = module
    if last is None or (offsets and last.bias is None):
        return False
    with torch.no_grad():
        if offsets:
            last.bias += torch.tensor(offsets, device=last.bias.device)
        divisor = torch.tensor(temperature, device=last.weight.device)
        ranks = torch.arange(len(last.weight), device=last.weight.device) - (len(last.weight) - 1) / 2
        for part in last.parameters():  # weight, and bias if there is one
            part /= divisor[:, None] if divisor.ndim and part.ndim == 2 else divisor
            if stretch != 1:
                slope = torch.outer(ranks, ranks) / (ranks @ ranks)
                part += (stretch - 1) * (slope @ part)
    return True


def saved_settings(config: Any) -> Any:
    """Return the task, decision rule and ``long`` that bertsmith saved: a dict, unless the configuration is damaged."""
    saved = getattr(config, "bertsmith", None)
    return {} if saved is None else saved


def _check_complete(model: PreTrainedModel, info: Any, checkpoint: Checkpoint, *, new_head: bool) -> None:
    """Raise if weights are missing: transformers would silently initialize them with random numbers."""
    prefix = f"{model.base_model_prefix}."
    missing = list(info["missing_keys"]) + [key[0] for key in info["mismatched_keys"]]
    if new_head:
        # Checkpoints trained without a pooler (RoBERTa, ELECTRA) get a new one, as part of the head.
        missing = [k for k in missing if k.startswith(prefix) and "pooler" not in k and "position_ids" not in k]
    if missing:
        raise ModelError(
            f"the checkpoint lacks {len(missing):,} of the model's weights, such as {missing[0]}",
            where=str(checkpoint.path),
            remedy="Use a complete checkpoint of this architecture, with shapes as in its config.json.",
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide progress bars of transformers and its warning about the new head."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_error(part: str, checkpoint: Checkpoint, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"the {part} of {checkpoint.name!r} cannot be loaded: {reason}",
        where=str(checkpoint.path),
        remedy="The files may be damaged or incomplete: download them again, or use another checkpoint.",
    )
