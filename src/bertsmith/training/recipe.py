"""Settings that fit the data, each with its reason. What the user gave is left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bertsmith.config import TrainConfig
from bertsmith.versions import cpu_capabilities

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH_SIZE = 16
PATIENCE = 3
HEAD_RATE = 10.0
UNEQUAL = 5.0
MIN_STEPS = 1000
"""Fewer optimizer steps than this leave fine-tuning unstable on small data (Mosbach et al. 2021, arXiv:2006.04884)."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs, batch_size, learning_rate, warmup, weight_decay: as in ``transformers.TrainingArguments``.
        head_rate: learning rate of the new head, as a multiple of that of the body.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` arithmetic; the weights stay fp32.
        patience: epochs without a better score before training stops.
        imbalance: what is done about classes of unequal size, one of `bertsmith.training.losses.LOSSES`.
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
    reasons: dict[str, str] = field(default_factory=dict)


def choose(config: TrainConfig, *, counts: np.ndarray, parameters: int, device: torch.device) -> Recipe:
    """Choose what the user left open.

    Args:
        config: what the user gave.
        counts: training texts of every class, shape (classes,).
        parameters: number of weights of the model.
        device: where training will run.
    """
    reasons = {}
    texts = int(counts.sum())
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = BATCH_SIZE
        reasons["batch_size"] = "the usual choice for fine-tuning BERT (Devlin et al. 2019)"
    per_epoch = math.ceil(texts / batch_size)
    epochs = config.epochs
    if epochs is None:
        epochs = float(min(max(math.ceil(MIN_STEPS / per_epoch), 3), 20))
        reasons["epochs"] = (
            f"at least 3, and on small data enough for {MIN_STEPS:,} steps of {batch_size} texts, at most 20; "
            f"early stopping after {config.patience} epochs without a better macro-F1"
        )
    rate = config.learning_rate
    if rate is None:
        rate = 2e-4 if parameters < 50e6 else 3e-5 if parameters < 200e6 else 1e-5
        reasons["learning_rate"] = f"small models take larger steps: this one has {parameters / 1e6:.0f} M weights"
    precision, why = choose_precision(device) if config.precision == "auto" else (config.precision, None)
    if why:
        reasons["precision"] = why
    reasons["warmup"] = "a tenth of the steps"
    patience = config.patience
    if patience is None:
        patience = PATIENCE
        reasons["patience"] = "the score of an epoch is uncertain: one bad one says little"
    imbalance: str = config.imbalance
    if imbalance == "auto":
        imbalance, reasons["imbalance"] = choose_imbalance(counts)
    head_rate = config.head_rate
    if head_rate is None:
        head_rate = HEAD_RATE
        reasons["head_rate"] = "the head is new and has far to go, the body is not"
    return Recipe(epochs, batch_size, rate, head_rate, 0.1, 0.01, precision, patience, imbalance, reasons)


def choose_imbalance(counts: np.ndarray) -> tuple[str, str]:
    """Return what to do about classes of unequal size, one of `bertsmith.training.losses.LOSSES`, and why.

    Args:
        counts: training texts of every class, shape (classes,).
    """
    present = counts[counts > 0]
    ratio = float(present.max() / present.min())
    if ratio < UNEQUAL:
        return "none", f"the largest class has {ratio:.1f} times the texts of the smallest: no need"
    return "none", f"the largest class has {ratio:.1f} times the texts of the smallest"


def choose_precision(device: torch.device) -> tuple[str, str]:
    """Return the number format the device is fast at, and why."""
    import torch

    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "this GPU multiplies bf16 fast"
        return "fp16", "this GPU knows no bf16"
    if device.type == "cpu":
        able = cpu_capabilities()
        if able.get("avx512_bf16") or able.get("amx_bf16"):
            return "bf16", "this CPU multiplies bf16 faster than fp32"
        return "fp32", "this CPU has no fast bf16"
    return "fp32", "the safe choice on this device"
