"""Settings that fit the data, each with its reason. What the user gave is left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bertsmith.compute.device import choose_precision
from bertsmith.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

FEW = 1000
"""Training texts below which there are few."""
MANY_CLASSES = 50
SHORT = 100_000
"""Tokens of all training texts up to which an epoch is short, and learning from few texts wants to be held back."""
EPOCHS, EPOCHS_TWICE, MOST_EPOCHS = 4, 3, 20
"""The usual number, that where each text is read twice, and the most, unless these are fewer than `LEAST_STEPS`."""
MIN_STEPS, LEAST_STEPS = 300, 120
"""Fewer optimizer steps leave fine-tuning unstable on small data (Mosbach et al. 2021, arXiv:2006.04884)."""
FEW_STEPS, FEW_EPOCHS, GENTLE_TEXTS = 60, 8, 300
"""The least steps and epochs where the head is fitted already, and training texts below which they and a gentler
learning rate count.
"""
HEAD_RATE = 10.0
UNEQUAL = 10.0
"""Times the texts of the smallest class that the largest one has, from which on classes are called unequal."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs, batch_size, learning_rate, warmup, weight_decay: as in ``transformers.TrainingArguments``.
        head_rate: learning rate of the new head, as a multiple of that of the body.
        layer_decay: learning rate of a layer, as a multiple of that of the one above it.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` arithmetic; the weights stay fp32.
        patience: epochs without a better score before training stops.
        imbalance: what is done about classes of unequal size, one of `bertsmith.training.losses.LOSSES`.
        consistency: weight of R-Drop, see `bertsmith.training.losses.StepLoss`; 0: without.
        reasons: why, by setting.
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
    reasons: dict[str, str] = field(default_factory=dict)


def choose(
    config: TrainConfig,
    *,
    counts: np.ndarray,
    parameters: int,
    device: torch.device,
    tokens: int | None = None,
    dropout: float = 0.1,
    fitted: bool = False,
) -> Recipe:
    """Choose what the user left open.

    Args:
        config: what the user gave.
        counts: training texts of every class, shape (classes,).
        parameters: number of weights of the model.
        device: where training will run.
        tokens: of all training texts, as many as are kept; many unless given.
        dropout: of the model.
        fitted: whether the head begins as a regression, see `bertsmith.model.pooling`.
    """
    texts, classes = int(counts.sum()), int((counts > 0).sum())
    reasons = {"warmup": "a tenth of the steps"}

    def otherwise(name: str, chosen: Any, reason: str) -> Any:
        """Return what the user gave, or else what is chosen here, with its reason."""
        given = getattr(config, name)
        if given is not None:
            return given
        reasons[name] = reason
        return chosen

    few, many = texts < FEW, classes >= MANY_CLASSES
    batch_size = otherwise(
        "batch_size",
        16 if few else 32,
        f"{texts:,} training texts: {'small batches give more steps' if few else 'enough of them for that'}",
    )
    gentle = fitted and texts < GENTLE_TEXTS
    twice = tokens is not None and tokens <= SHORT and not many and dropout > 0 and not gentle
    consistency = otherwise(
        "consistency",
        float(twice),
        f"weight of R-Drop: {tokens or 0:,} tokens are few, so each text is read twice, and to be labelled alike"
        if twice
        else "each text is read once",
    )
    usual = EPOCHS_TWICE if consistency else FEW_EPOCHS if gentle else EPOCHS
    of_epoch = math.ceil(texts / batch_size)
    steps = FEW_STEPS if fitted else min(MIN_STEPS, max(MOST_EPOCHS * of_epoch, LEAST_STEPS))
    enough = math.ceil(steps / of_epoch)
    epochs = otherwise(
        "epochs",
        float(max(enough, usual)),
        f"as many as make {steps} steps" if enough > usual else "the usual number",
    )
    rates = (1e-4, 2e-4) if parameters < 50e6 else (3e-5, 5e-5) if parameters < 200e6 else (1e-5, 2e-5)
    rate = otherwise(
        "learning_rate",
        rates[many] / (2 if gentle else 1),
        f"small models take larger steps, this one has {parameters / 1e6:.0f} M weights"
        + (f"; and so do {classes} classes" if many else "")
        + ("; few texts take smaller ones" if gentle else ""),
    )
    head_rate = otherwise(
        "head_rate",
        1.0 if fitted else HEAD_RATE,
        "as the body: the head begins fitted"
        if fitted
        else "times that: the head is new and has far to go, the body has not",
    )
    layer_decay = otherwise("layer_decay", 1.0, "all layers alike")
    patience = otherwise("patience", max(3, math.ceil(epochs / 3)), "epochs: a single score says little")
    precision, imbalance = str(config.precision), str(config.imbalance)
    if precision == "auto":
        precision, reasons["precision"] = choose_precision(device)
    if imbalance == "auto":
        imbalance, reasons["imbalance"] = choose_imbalance(counts)
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=rate,
        head_rate=head_rate,
        warmup=0.1,
        weight_decay=0.01,
        precision=precision,
        patience=patience,
        imbalance=imbalance,
        layer_decay=layer_decay,
        consistency=consistency,
        reasons=reasons,
    )


def choose_imbalance(counts: np.ndarray) -> tuple[str, str]:
    """Return what to do about classes of unequal size, one of `bertsmith.training.losses.LOSSES`, and why.

    Args:
        counts: training texts of every class, shape (classes,).
    """
    present = counts[counts > 0]
    ratio = float(present.max() / present.min())
    said = f"the largest class has {ratio:.1f} times the texts of the smallest"
    if ratio < UNEQUAL:
        return "none", f"{said}, in train: the loss is left alone"
    return "none", f"{said}, in train: the loss is left alone, and a decision rule for macro-F1 is tried on validation"
