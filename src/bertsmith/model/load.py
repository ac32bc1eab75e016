"""Load a checkpoint as a classifier for given labels, and its tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.data.table import Labels
from bertsmith.errors import ModelError
from bertsmith.model.checkpoint import Checkpoint
from bertsmith.model.tokenizer import COLUMNS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, on its device.

    Attributes:
        model: a sequence-classification model, in fp32, that knows the label texts.
        tokenizer: its tokenizer.
        device: where the model is.
        max_length: tokens kept of each text.
        names: symbols of the training texts that the tokenizer of the checkpoint does not know, and this one reads as
            their names; by symbol.
        pooled: whether mean pooling was added to the model, whose head is to begin as a regression.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int
    names: Mapping[str, str] = field(default_factory=dict)
    pooled: bool = False

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """What the tokenizer gives that the model takes, such as ``input_ids`` and ``attention_mask``."""
        takes = inspect.signature(self.model.forward).parameters
        return tuple(name for name in self.tokenizer.model_input_names if name in takes)

    @property
    def columns(self) -> tuple[str, ...]:
        """What of `COLUMNS` the model takes."""
        return tuple(name for name in COLUMNS if name in self.input_names)

    @property
    def padding(self) -> dict[str, int]:
        """What the inputs of the model are padded with, by name."""
        return {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}

    @property
    def pads_left(self) -> bool:
        """Whether the tokenizer pads before a text."""
        return bool(self.tokenizer.padding_side == "left")

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def dropout(self) -> float:
        """The largest of its shares of dropout."""
        return max(dropouts(self.model.config).values(), default=0.0)

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face checkpoint: weights, configuration, tokenizer."""
        with quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        ModelError: if it cannot be loaded, or does not know how to pad.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except Exception as error:
        raise _broken("tokenizer", checkpoint, error) from error
    tokenizer.init_kwargs.pop("auto_map", None)
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no padding token", where=str(checkpoint.path), remedy="Take a BERT-family checkpoint."
        )
    return tokenizer


def load_model(
    checkpoint: Checkpoint, labels: Labels | None = None, *, dropout: float | None = None
) -> PreTrainedModel:
    """Load a checkpoint for sequence classification, in fp32.

    Args:
        checkpoint: resolved, and so known to be complete and free of code of its own.
        labels: the classes to build a new head for; ``None`` keeps the head that is there.
        dropout: share of the activations to drop in training, everywhere; ``None`` leaves that to the checkpoint.

    Raises:
        ModelError: if the weights are damaged or do not fit the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    head: dict[str, Any] = {}
    if labels is not None:
        head = {
            "num_labels": len(labels),
            "id2label": labels.id2label,
            "label2id": labels.label2id,
            "problem_type": "single_label_classification",
            "ignore_mismatched_sizes": True,
        }
    try:
        if dropout is not None:
            head |= dict.fromkeys(dropouts(AutoConfig.from_pretrained(checkpoint.path)), dropout)
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                checkpoint.path,
                trust_remote_code=False,
                use_safetensors=not checkpoint.pickle,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **head,
            )
    except Exception as error:
        raise _broken("model", checkpoint, error) from error
    for key in ("auto_map", "custom_pipelines"):  # addresses of code that nobody is to follow
        vars(model.config).pop(key, None)
    if labels is not None:  # what an earlier run of ours tuned for the model as it was then
        vars(model.config).pop("bertsmith", None)
    _refuse_unlearned(model, info, checkpoint, new_head=labels is not None)
    _refuse_not_finite(model, checkpoint)
    return model


def dropouts(config: Any) -> dict[str, float]:
    """Return a configuration's shares of dropout, by their names there; one that is not set follows another."""
    return {n: float(v) for n, v in vars(config).items() if "dropout" in n and isinstance(v, int | float)}


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> None:
    """See that the model has an embedding for every token of the tokenizer.

    Raises:
        ModelError: if they are not of the same checkpoint.
    """
    tokens, rows = max(tokenizer.get_vocab().values(), default=-1) + 1, model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens and the model knows {rows:,}: they do not belong together",
            where=str(checkpoint.path),
            remedy="Save the tokenizer the checkpoint was trained with into its folder.",
        )


def fold(model: PreTrainedModel, temperature: float, offsets: Sequence[float] = ()) -> bool:
    """Add offsets to the logits and divide them by a temperature, in the weights, so that every loader gets them so.

    Args:
        model: is changed in place.
        temperature: above 0.
        offsets: of the classes; none where there are none.

    Returns:
        Whether it was done: the head must end in a linear layer with an output a class.
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
        last.weight /= temperature
        if last.bias is not None:
            last.bias /= temperature
    return True


def _refuse_unlearned(model: PreTrainedModel, info: Any, checkpoint: Checkpoint, *, new_head: bool) -> None:
    """Refuse a checkpoint whose body was not in the file: transformers would fill it with random weights in silence."""
    prefix = f"{model.base_model_prefix}."
    missing = list(info["missing_keys"]) + [key[0] for key in info["mismatched_keys"]]
    # A pooler is part of the head where the checkpoint was trained without one (RoBERTa, ELECTRA).
    body = [key for key in missing if key.startswith(prefix) and "pooler" not in key and "position_ids" not in key]
    lacking = body if new_head else missing
    if lacking:
        raise ModelError(
            f"the checkpoint lacks {len(lacking):,} of the model's weights, such as {lacking[0]}",
            where=str(checkpoint.path),
            remedy="Give a complete checkpoint of this architecture, with shapes as in its config.json.",
        )


def _refuse_not_finite(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    wrong = [name for name, weights in model.named_parameters() if not bool(weights.isfinite().all())]
    if wrong:
        raise ModelError(
            f"{len(wrong):,} of the checkpoint's weights hold NaN or infinite numbers, such as {wrong[0]}",
            where=str(checkpoint.path),
            remedy="Take another copy of it, saved before training went wrong.",
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing bars and from reporting that the new head, which is meant to be new, is new."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _broken(what: str, checkpoint: Checkpoint, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"the {what} of {checkpoint.name!r} cannot be loaded: {reason}",
        where=str(checkpoint.path),
        remedy="The files may be damaged or incomplete: fetch them again, or take another checkpoint.",
    )
