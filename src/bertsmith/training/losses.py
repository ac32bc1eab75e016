"""The loss of a text, and the loss of a step made of it: a sum over texts, divided by the number of texts in the step.

Models of transformers average over what they are given, whatever the step holds in all; so under gradient accumulation
or micro-batches their own loss is not that of the whole batch. Here it is, for any way of cutting a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import cross_entropy

FOCUS = 2.0
"""Exponent of the focal loss, as its authors chose it."""


class Loss(Protocol):
    """The loss of single texts."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of every text, shape (texts,).

        Args:
            logits: in fp32, shape (texts, classes).
            labels: class indices, shape (texts,).
        """
        ...


class CrossEntropy:
    """Cross-entropy, with label smoothing (Szegedy et al. 2016, arXiv:1512.00567) and weights of the classes if wanted.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
        weights: of the classes, shape (classes,).
        shift: is added to the logits, shape (classes,).
    """

    def __init__(
        self, label_smoothing: float = 0.0, *, weights: np.ndarray | None = None, shift: np.ndarray | None = None
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weights = None if weights is None else torch.from_numpy(weights).float()
        self.shift = None if shift is None else torch.from_numpy(shift).float()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of every text; see `Loss`."""
        if self.shift is not None:
            self.shift = self.shift.to(logits.device)
            logits = logits + self.shift
        losses: torch.Tensor = cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        if self.weights is None:
            return losses
        self.weights = self.weights.to(logits.device)
        return losses * self.weights[labels]


class Focal(CrossEntropy):
    """Focal loss: texts that are labelled right with confidence count less (Lin et al. 2017, arXiv:1708.02002)."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of every text; see `Loss`."""
        missing = 1 - torch.softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]
        return missing**FOCUS * super().__call__(logits, labels)


def inverse_weights(counts: np.ndarray) -> np.ndarray:
    """Return weights by which every class counts the same, 1 on average over the texts, shape (classes,).

    Args:
        counts: training texts of every class, shape (classes,); a class without one gets weight 0.
    """
    return _normalised(np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0), counts)


def effective_number_weights(counts: np.ndarray) -> np.ndarray:
    """Return one over the effective number of texts of every class, 1 on average over the texts, shape (classes,).

    The hundredth text of a class adds less than its first: (1 − βⁿ) / (1 − β) with β = 1 − 1/N, where N is the mean
    size of a class (Cui et al. 2019, arXiv:1901.05555). It lies between equal weights and those of `inverse_weights`.

    Args:
        counts: training texts of every class, shape (classes,); a class without one gets weight 0.
    """
    present = counts > 0
    beta = 1 - 1 / max(float(counts[present].mean()), 1.0)
    number = (1 - beta**counts) / (1 - beta)
    return _normalised(np.divide(1.0, number, out=np.zeros(len(counts)), where=present), counts)


def log_prior(counts: np.ndarray) -> np.ndarray:
    """Return the logarithm of every class's share of the training texts, shape (classes,); half a text for one without.

    Added to the logits in training only, it makes the model that minimises cross-entropy the one that minimises the
    balanced error (logit adjustment, Menon et al. 2021, arXiv:2007.07314).
    """
    smoothed = np.maximum(counts, 0.5)
    result: np.ndarray = np.log(smoothed / smoothed.sum())
    return result


def _normalised(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    result: np.ndarray = weights * counts.sum() / (weights * counts).sum()
    return result


LOSSES: dict[str, Callable[[np.ndarray, float], Loss]] = {
    "none": lambda counts, smoothing: CrossEntropy(smoothing),
    "weights": lambda counts, smoothing: CrossEntropy(smoothing, weights=inverse_weights(counts)),
    "effective-number": lambda counts, smoothing: CrossEntropy(smoothing, weights=effective_number_weights(counts)),
    "focal": lambda counts, smoothing: Focal(smoothing),
    "logit-adjustment": lambda counts, smoothing: CrossEntropy(smoothing, shift=log_prior(counts)),
    "balanced-sampling": lambda counts, smoothing: CrossEntropy(smoothing),
}
"""By the names of ``--imbalance``: takes class counts of train, shape (classes,), and the label smoothing."""


class StepLoss:
    """What the Trainer asks for: the part that some texts have in the mean loss of their step.

    Args:
        loss: of single texts. While scoring it is plain cross-entropy whatever was trained with, so that the validation
            losses of two runs can be compared.
        consistency: where it is above 0, every text comes twice, in two halves; its loss is the mean of the two, and to
            that comes this many times how far apart their probabilities are, the mean of both Kullback-Leibler
            divergences (R-Drop: Wu et al. 2021, arXiv:2106.14448).
    """

    def __init__(self, loss: Loss, consistency: float = 0.0) -> None:
        self.loss, self.consistency, self.twice = loss, consistency, consistency > 0
        self.plain = CrossEntropy()

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the loss of some texts as their part of the step's mean loss, a scalar.

        Args:
            logits: shape (texts, classes).
            labels: class indices, shape (texts,).
            num_items_in_batch: texts in the whole step, each counted once; those given, if ``None``.
        """
        logits = logits.float()  # whatever the arithmetic of the model: a sum of many small terms
        losses = (self.loss if torch.is_grad_enabled() else self.plain)(logits, labels)
        if self.consistency and torch.is_grad_enabled():
            labels, losses = labels[: len(labels) // 2], losses.view(2, -1).mean(dim=0)
            losses = losses + self.consistency * _divergence(*torch.log_softmax(logits, dim=-1).chunk(2))
        result: torch.Tensor = losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        return result


def _divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean of the Kullback-Leibler divergences of a from b and b from a, by text; both log-probabilities."""
    return ((a.exp() - b.exp()) * (a - b)).sum(dim=-1) / 2
