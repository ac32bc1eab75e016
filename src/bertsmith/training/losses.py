"""The loss of a step: the mean over all its texts, however the step is split into micro-batches.

Models of transformers average over the texts of a single forward pass. With gradient accumulation or micro-batches,
that is not the mean over the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

FOCAL_GAMMA = 2.0
"""Exponent of the focal loss, as in its paper."""


class Loss(ABC):
    """The loss of single texts."""

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the labels of a batch, on the host, in the form that `__call__` takes."""
        return labels

    @abstractmethod
    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each text, shape (texts,).

        Args:
            logits: fp32, shape (texts, outputs).
            labels: class indices, shape (texts,); or numbers, shape (texts,) or (texts, outputs). Class probabilities
                have the shape (texts, classes). See `targets`.
        """

    @abstractmethod
    def divergence(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return how far apart two predictions for each text are, shape (texts,), from their logits."""

    def plain(self) -> Loss:
        """Return the loss without weights and smoothing, which evaluation uses, so that its values are comparable."""
        return self


class CrossEntropy(Loss):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567) and class weights.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
        weights: class weights, shape (classes,).
        shift: added to the logits, shape (classes,).
    """

    def __init__(
        self, label_smoothing: float = 0.0, *, weights: np.ndarray | None = None, shift: np.ndarray | None = None
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weights = None if weights is None else torch.from_numpy(weights).float()
        self.shift = None if shift is None else torch.from_numpy(shift).float()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each text; see `Loss`."""
        if self.shift is not None:
            self.shift = self.shift.to(logits.device)
            logits = logits + self.shift
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        if self.weights is None:
            return losses
        self.weights = self.weights.to(logits.device)
        return losses * (labels @ self.weights if labels.is_floating_point() else self.weights[labels])

    def divergence(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the mean of both Kullback-Leibler divergences."""
        a, b = torch.log_softmax(a, dim=-1), torch.log_softmax(b, dim=-1)
        return ((a.exp() - b.exp()) * (a - b)).sum(dim=-1) / 2

    def plain(self) -> Loss:
        """Return cross-entropy without weights."""
        return CrossEntropy()


class Focal(CrossEntropy):
    """Focal loss: less weight for texts that are classified with confidence (Lin et al. 2017, arXiv:1708.02002)."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each text; see `Loss`."""
        p = torch.softmax(logits, dim=-1)
        missing = 1 - ((p * labels).sum(dim=-1) if labels.is_floating_point() else p.gather(1, labels[:, None])[:, 0])
        return missing**FOCAL_GAMMA * super().__call__(logits, labels)


class BinaryCrossEntropy(Loss):
    """The mean binary cross-entropy over the labels of a text.

    Args:
        label_smoothing: moves targets of 0 and 1 towards 0.5 by half of this share.
        positive_weights: weight of the texts with each label, shape (labels,).
        focal: use the focal loss of each label (Lin et al. 2017, arXiv:1708.02002).
    """

    def __init__(
        self, label_smoothing: float = 0.0, *, positive_weights: np.ndarray | None = None, focal: bool = False
    ) -> None:
        self.label_smoothing, self.focal = label_smoothing, focal
        self.positive_weights = None if positive_weights is None else torch.from_numpy(positive_weights).float()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each text; see `Loss`."""
        truth = labels.to(logits.dtype)
        smoothed = truth * (1 - self.label_smoothing) + self.label_smoothing / 2
        if self.positive_weights is not None:
            self.positive_weights = self.positive_weights.to(logits.device)
        losses = binary_cross_entropy_with_logits(logits, smoothed, reduction="none", pos_weight=self.positive_weights)
        if self.focal:
            losses = torch.sigmoid(torch.where(truth > 0.5, -logits, logits)) ** FOCAL_GAMMA * losses
        return losses.mean(dim=-1)

    def divergence(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the mean of both Kullback-Leibler divergences, averaged over the labels."""
        difference = torch.sigmoid(a) - torch.sigmoid(b)
        return (difference * (a - b)).mean(dim=-1) / 2

    def plain(self) -> Loss:
        """Return binary cross-entropy without weights."""
        return BinaryCrossEntropy()


class SquaredError(Loss):
    """The squared error of numbers, standardised by mean and scale of the training targets."""

    def __init__(self, mean: float, scale: float) -> None:
        self.mean, self.scale = mean, scale

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Return standardised numbers in fp32, which cannot hold large ones such as dates exactly."""
        return ((labels.double() - self.mean) / self.scale).float()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each text; see `Loss`."""
        return (logits[:, 0] - labels) ** 2

    def divergence(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the squared distance."""
        return ((a - b) ** 2).sum(dim=-1)


def inverse_weights(counts: np.ndarray) -> np.ndarray:
    """Return class weights that give all classes the same total weight, from their numbers of texts, shape (classes,).

    The mean weight of a text is 1. An empty class gets weight 0.
    """
    return _inverse(counts, counts)


def effective_number_weights(counts: np.ndarray) -> np.ndarray:
    """Return the inverse of the effective number of texts of each class (Cui et al. 2019, arXiv:1901.05555).

    The effective number is (1 - βⁿ) / (1 - β) with β = 1 - 1/N, where N is the mean size of a class. The weights lie
    between equal weights and `inverse_weights`, whose shapes and normalization apply.
    """
    beta = 1 - 1 / max(float(counts[counts > 0].mean()), 1.0)
    return _inverse((1 - beta**counts) / (1 - beta), counts)


def log_prior(counts: np.ndarray) -> np.ndarray:
    """Return the logarithm of the share of each class, shape (classes,). An empty class counts as half a text.

    With this added to the logits in training, the model that minimizes cross-entropy also minimizes the balanced error
    (logit adjustment, Menon et al. 2021, arXiv:2007.07314).
    """
    smoothed = np.maximum(counts, 0.5)
    return np.asarray(np.log(smoothed / smoothed.sum()))


def _inverse(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    weights = np.divide(1.0, sizes, out=np.zeros(len(counts)), where=counts > 0)
    return np.asarray(weights * counts.sum() / (weights * counts).sum())


IMBALANCE_LOSSES: dict[str, Callable[[np.ndarray, float], Loss]] = {
    "none": lambda counts, smoothing: CrossEntropy(smoothing),
    "weights": lambda counts, smoothing: CrossEntropy(smoothing, weights=inverse_weights(counts)),
    "effective-number": lambda counts, smoothing: CrossEntropy(smoothing, weights=effective_number_weights(counts)),
    "focal": lambda counts, smoothing: Focal(smoothing),
    "logit-adjustment": lambda counts, smoothing: CrossEntropy(smoothing, shift=log_prior(counts)),
    "balanced-sampling": lambda counts, smoothing: CrossEntropy(smoothing),
}
"""By treatment of imbalanced classes: builds a loss from class counts, shape (classes,), and label smoothing."""


class StepLoss:
    """The share of some training texts in the mean loss of their step.

    ``consistency`` is the weight of the R-Drop term, the divergence between two forward passes (Wu et al. 2021,
    arXiv:2106.14448). If positive, the batches contain all texts twice, in two halves.
    """

    def __init__(self, loss: Loss, consistency: float = 0.0) -> None:
        self.loss, self.consistency = loss, consistency

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
    ) -> torch.Tensor:
        """Return the sum of the losses divided by the number of texts in the step, a scalar.

        Args:
            logits: shape (texts, classes).
            labels: as for `Loss`.
            num_items_in_batch: number of texts in the step, without duplicates.
        """
        logits = logits.float()  # a sum of many small terms needs fp32
        losses = self.loss(logits, labels)
        if self.consistency:
            losses = losses.view(2, -1).mean(dim=0) + self.consistency * self.loss.divergence(*logits.chunk(2))
        return losses.sum() / num_items_in_batch
