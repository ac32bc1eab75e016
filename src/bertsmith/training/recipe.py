"""Choose hyperparameters that fit the data, each with a reason. Settings of the user take precedence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bertsmith.compute.device import choose_precision
from bertsmith.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

FEW_TRAINING_TEXTS = 1000
"""Fewer training texts get smaller batches."""
MANY_CLASSES = 50
RDROP_MAX_TOKENS = 100_000
"""R-Drop doubles the cost of an epoch, so it is used up to this number of training tokens."""
EPOCHS, RDROP_EPOCHS, MAX_EPOCHS = 4, 3, 20
"""Default without and with R-Drop, and the maximum, unless that makes fewer than `LEAST_STEPS` steps."""
MIN_STEPS, LEAST_STEPS = 300, 120
"""With fewer optimizer steps, fine-tuning on small data is unstable (Mosbach et al. 2021, arXiv:2006.04884)."""
FITTED_STEPS, FITTED_EPOCHS, FITTED_TEXTS = 60, 8, 300
"""Minimum number of steps if the head begins as a regression. With fewer than `FITTED_TEXTS` texts, half the
learning rate applies, and `FITTED_EPOCHS` epochs or a contrastive stage.
"""
CONTRASTIVE_STEPS, LABEL_STEPS, MAX_CONTRASTIVE_CLASSES = 30, 30, 16
"""Steps of contrastive training, the minimum of steps on labels after it, and the maximum number of classes. With more
classes, a batch has few pairs of one class.
"""
CONTRASTIVE_TOKENS = 128
"""Contrastive training reads at most this number of tokens of a text; see docs/explanation/recipe.md."""
_SCHEDULE_ARGUMENTS = frozenset(
    {"max_steps", "num_train_epochs", "gradient_accumulation_steps", "lr_scheduler_type", "lr_scheduler_kwargs"}
)
_BY_ARGUMENT = {
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
}
"""Attributes of a recipe by the training argument that replaces them."""
CONTRASTIVE_ONLY_TEXTS = 48
"""Up to this number of texts, the contrastive stage is the only one."""
HEAD_RATE = 10.0
IMBALANCE_RATIO = 10.0
"""Classes are imbalanced if the largest one has this many times the texts of the smallest one."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a fine-tuning.

    Attributes:
        epochs: as in ``transformers.TrainingArguments``; 0 to train nothing, because the head is fitted already.
        batch_size, learning_rate, warmup, weight_decay: as in ``transformers.TrainingArguments``.
        head_rate: learning rate of the head, relative to the body.
        layer_decay: learning rate of a layer, relative to the layer above it.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` for matrix products; the weights are fp32.
        patience: epochs without a better score before training stops.
        imbalance: treatment of imbalanced classes, a key of `bertsmith.training.losses.IMBALANCE_LOSSES`.
        consistency: weight of R-Drop, see `bertsmith.training.losses.Loss.of_step`; 0 to disable it.
        contrastive: ``"first"`` for contrastive training before training on labels, ``"only"`` instead of it, or
            ``"none"``; see `bertsmith.training.losses.contrastive_loss`.
        reasons: why each value was chosen, by name.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    head_rate: float
    warmup: float
    weight_decay: float
    precision: str
    patience: int
    imbalance: str
    layer_decay: float = 1.0
    consistency: float = 0.0
    contrastive: str = "none"
    reasons: dict[str, str] = field(default_factory=dict)

    def contrastive_stage(self, texts: int) -> Recipe:
        """Return the recipe of the contrastive stage, for a number of training texts."""
        epochs = float(math.ceil(CONTRASTIVE_STEPS / math.ceil(texts / self.batch_size)))
        return replace(self, contrastive="only", epochs=epochs, consistency=0.0)


def schedule_arguments(arguments: Mapping[str, Any]) -> set[str]:
    """Return the names of the user's training arguments that apply to training on labels only.

    A number of warmup steps is one of them. A share of the steps, below 1, fits every stage.
    """
    is_number = float(arguments.get("warmup_steps", 0)) >= 1
    return {name for name in arguments if name in _SCHEDULE_ARGUMENTS or (name == "warmup_steps" and is_number)}


def steps_per_epoch(texts: int, batch_size: int, arguments: Mapping[str, Any]) -> int:
    """Return the number of optimizer steps in an epoch; ``arguments`` are the training arguments of the user."""
    return math.ceil(texts / (batch_size * max(1, int(arguments.get("gradient_accumulation_steps", 1)))))


def choose_hyperparameters(
    config: TrainConfig,
    *,
    counts: np.ndarray,
    texts: int | None = None,
    parameters: int,
    device: torch.device,
    tokens: int | None = None,
    dropout: float = 0.1,
    fitted: bool = False,
    may_be_contrastive: bool = False,
    validates: bool = True,
    may_decide: bool = True,
) -> Recipe:
    """Choose the hyperparameters that the user did not set.

    Args:
        config: settings of the user.
        counts: number of training texts of each class, shape (classes,).
        texts: number of training texts; by default, each text counts for one class.
        parameters: number of parameters of the model.
        device: device of the training.
        tokens: number of training tokens after truncation; ``None`` for many.
        dropout: dropout rate of the model.
        fitted: whether the head begins as a regression, see `bertsmith.model.pooling`.
        may_be_contrastive: whether texts have one class each, and one process trains.
        validates: whether validation texts are scored in each epoch.
        may_decide: whether a decision rule may be tuned.
    """
    texts, classes = int(counts.sum()) if texts is None else texts, int((counts > 0).sum())
    values: dict[str, Any] = {"warmup": 0.1, "weight_decay": 0.01}
    reasons = {"warmup": "a tenth of the steps"}

    def choose(name: str, default: Any, reason: str) -> Any:
        """Choose the user's setting, or the default with its reason; return the value."""
        values[name] = getattr(config, name)
        if values[name] is None:
            values[name], reasons[name] = default, reason
        return values[name]

    few, many = texts < FEW_TRAINING_TEXTS, classes >= MANY_CLASSES
    batch_size = max(0, int(config.set.get("per_device_train_batch_size", 0))) or choose(
        "batch_size",
        16 if few else 32,
        f"{texts:,} training texts: {'small batches give more steps' if few else 'enough for batches of this size'}",
    )
    gentle = fitted and texts < FITTED_TEXTS
    contrastive, reasons["contrastive"] = "none", "training without a contrastive stage"
    if gentle and may_be_contrastive and config.effort != "quick" and classes <= MAX_CONTRASTIVE_CLASSES:
        only = texts <= CONTRASTIVE_ONLY_TEXTS and not validates and config.epochs is None
        only = only and not schedule_arguments(config.set)
        contrastive = "only" if only else "first"
        after = "a regression fits the head" if only else "the model learns the labels"
        reasons["contrastive"] = (
            f"{texts:,} training texts: the model first learns whether two texts have the same label, then {after}"
        )
    rdrop = tokens is not None and tokens <= RDROP_MAX_TOKENS and not many and dropout > 0 and not gentle
    consistency = choose(
        "consistency",
        float(rdrop),
        f"weight of R-Drop, which reads each text twice: the training texts have only {tokens or 0:,} tokens"
        if rdrop
        else "the model reads each text once",
    )
    per_epoch = steps_per_epoch(texts, batch_size, config.set)
    default_epochs = RDROP_EPOCHS if consistency else EPOCHS
    steps = min(MIN_STEPS, max(MAX_EPOCHS * per_epoch, LEAST_STEPS))
    if fitted:
        steps = FITTED_STEPS
    if contrastive != "none":
        steps = CONTRASTIVE_STEPS if contrastive == "only" else LABEL_STEPS
    if gentle and not consistency:
        default_epochs = FITTED_EPOCHS if contrastive == "none" else 1
    min_epochs = math.ceil(steps / per_epoch)
    epochs = choose(
        "epochs",
        float(max(min_epochs, default_epochs)),
        f"enough for {steps} steps" if min_epochs > default_epochs else "the default",
    )
    if config.effort == "quick":
        epochs, reasons["epochs"] = 0.0, "bertsmith fits only the head, as a regression"
    rates = (1e-4, 2e-4) if parameters < 50e6 else (3e-5, 5e-5) if parameters < 200e6 else (1e-5, 2e-5)
    choose(
        "learning_rate",
        rates[many] / (2 if gentle else 1),
        f"for a model with {parameters / 1e6:.0f} M parameters"
        + (f" and {classes} classes" if many else "")
        + ("; halved for few texts" if gentle else ""),
    )
    head = "the head begins as a regression" if fitted else "the head is new"
    choose("head_rate", 1.0 if fitted else HEAD_RATE, f"times the learning rate of the encoder: {head}")
    choose("layer_decay", 1.0, "the same rate for all layers")
    choose("patience", max(3, math.ceil(epochs / 3)), "epochs without a better score, because a single score is noisy")
    precision, imbalance = str(config.precision), str(config.imbalance)
    if precision == "auto":
        precision, reasons["precision"] = choose_precision(device)
    elif precision == "bf16" and device.type == "cpu" and choose_precision(device)[0] == "fp32":
        reasons["precision"] = "set by the user, but slow: this CPU has no fast bf16, so fp32 is faster"
    if imbalance == "auto":
        imbalance, present = "none", counts[counts > 0]
        ratio = float(present.max() / present.min()) if len(present) else 1.0
        unequal = (
            f"; the largest class has {ratio:.1f} times as many training texts as the smallest" if classes > 1 else ""
        )
        tried = "; a decision rule follows if it helps" if may_decide and ratio >= IMBALANCE_RATIO else ""
        reasons["imbalance"] = f"the loss has no weights{unequal}{tried}"
    values |= {"batch_size": batch_size, "epochs": epochs, "precision": precision, "imbalance": imbalance}
    return _with_arguments(Recipe(**values, contrastive=contrastive, reasons=reasons), config.set)


def _with_arguments(recipe: Recipe, arguments: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the values of the user's training arguments. Replaced values have no reason."""
    values: dict[str, Any] = {name: float(arguments[key]) for key, name in _BY_ARGUMENT.items() if key in arguments}
    if values.get("warmup", 0) >= 1:  # a number of steps, which applies to training on labels only
        del values["warmup"]
    if not recipe.epochs or values.get("epochs", 0) <= 0:  # 0 epochs mean a head without fine-tuning
        values.pop("epochs", None)
    reasons = {name: reason for name, reason in recipe.reasons.items() if name not in values}
    if recipe.epochs and int(arguments.get("max_steps", 0)) > 0:
        reasons["epochs"] = "not used, because max_steps applies instead"
    if "warmup_steps" in arguments and "warmup" not in values:
        reasons["warmup"] = "training on labels uses the number of warmup_steps instead"
    return replace(recipe, **values, reasons=reasons)
