"""The loss of a step: the mean over all its texts, however the step is split into micro-batches.

Models of transformers average over the texts of a single forward pass. With gradient accumulation or micro-batches,
that is not the mean over the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from bertsmith.compute import threads

FOCAL_GAMMA = 2.0
"""Exponent of the focal loss, as in its paper."""
PartLoss = Callable[[torch.Tensor], torch.Tensor]
"""Takes the features of a micro-batch, shape (texts, hidden size), and returns its share of the loss of the step."""


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

    def of_step(
        self, logits: torch.Tensor, labels: torch.Tensor, n_texts: torch.Tensor | int, consistency: float = 0.0
    ) -> torch.Tensor:
        """Return the share of some texts in the mean loss of a step with ``n_texts`` texts, a scalar.

        Logits and labels are as for `__call__`. ``consistency`` is the weight of the R-Drop term, the divergence
        between two forward passes (Wu et al. 2021, arXiv:2106.14448). If positive, logits and labels contain all texts
        twice, in two halves.
        """
        logits = logits.float()  # a sum of many small terms needs fp32
        losses = self(logits, labels)
        if consistency:
            losses = losses.view(2, -1).mean(dim=0) + consistency * self.divergence(*logits.chunk(2))
        return losses.sum() / n_texts


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


def inverse_weights(counts: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Return weights of classes with ``counts`` texts that give all classes the same total weight, shape (classes,).

    With ``sizes``, shape (classes,), the weights are inverse to these and not to the counts. The mean weight of a text
    is 1. An empty class gets weight 0.
    """
    weights = np.divide(1.0, counts if sizes is None else sizes, out=np.zeros(len(counts)), where=counts > 0)
    return np.asarray(weights * counts.sum() / (weights * counts).sum())


def effective_number_weights(counts: np.ndarray) -> np.ndarray:
    """Return the inverse of the effective number of texts of each class (Cui et al. 2019, arXiv:1901.05555).

    The effective number is (1 - βⁿ) / (1 - β) with β = 1 - 1/N, where N is the mean size of a class. The weights lie
    between equal weights and `inverse_weights`, whose shapes and normalization apply.
    """
    beta = 1 - 1 / max(float(counts[counts > 0].mean()), 1.0)
    return inverse_weights(counts, (1 - beta**counts) / (1 - beta))


def log_prior(counts: np.ndarray) -> np.ndarray:
    """Return the logarithm of the share of each class, shape (classes,). An empty class counts as half a text.

    With this added to the logits in training, the model that minimizes cross-entropy also minimizes the balanced error
    (logit adjustment, Menon et al. 2021, arXiv:2007.07314).
    """
    smoothed = np.maximum(counts, 0.5)
    return np.asarray(np.log(smoothed / smoothed.sum()))


IMBALANCE_LOSSES: dict[str, Callable[[np.ndarray, float], Loss]] = {
    "none": lambda counts, smoothing: CrossEntropy(smoothing),
    "weights": lambda counts, smoothing: CrossEntropy(smoothing, weights=inverse_weights(counts)),
    "effective-number": lambda counts, smoothing: CrossEntropy(smoothing, weights=effective_number_weights(counts)),
    "focal": lambda counts, smoothing: Focal(smoothing),
    "logit-adjustment": lambda counts, smoothing: CrossEntropy(smoothing, shift=log_prior(counts)),
    "balanced-sampling": lambda counts, smoothing: CrossEntropy(smoothing),
}
"""By treatment of imbalanced classes: builds a loss from class counts, shape (classes,), and label smoothing."""


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the cosine similarities of all pairs, a scalar.

    The target is 1 for texts of one class, and 0 for others. Both kinds of pairs have the same total weight. With few
    texts, this generalizes better than cross-entropy (Tunstall et al. 2022, arXiv:2209.11055). SetFit encodes both
    texts of each sampled pair. Here, all pairs of the texts of a step are compared, so that 16 texts make 120 pairs.

    Args:
        features: shape (texts, hidden size).
        labels: class indices, shape (texts,); or class probabilities, shape (texts, classes).
    """
    with torch.autocast(features.device.type, enabled=False):  # full precision, because the products are small
        unit = normalize(features.float(), dim=1)
        similarity = unit @ unit.T
        same = labels @ labels.T if labels.is_floating_point() else (labels[:, None] == labels).to(similarity.dtype)
    other = ~torch.eye(len(labels), dtype=torch.bool, device=features.device)
    pairs = ((same * other, (1 - similarity) ** 2), ((1 - same) * other, similarity**2))  # weights and errors
    # A batch may have pairs of one kind only.
    means = [(weights * errors).sum() / weights.sum().clamp(min=1e-6) for weights, errors in pairs]
    return torch.stack(means).sum() / 2


def part_losses(
    compute: Callable[[int], torch.Tensor], labels: Sequence[torch.Tensor], *, parallel: bool
) -> list[PartLoss]:
    """Split `contrastive_loss` of a step into the losses of its micro-batches.

    The loss of a text depends on all texts of the step. So all features are computed first, without gradients. The
    gradients of the returned losses sum to that of the whole step (Gao et al. 2021, arXiv:2101.06983).

    Args:
        compute: returns the features of a micro-batch, by index. A second call with gradients must use the same
            dropout.
        labels: of each micro-batch.
        parallel: whether to compute the micro-batches in threads.
    """
    if len(labels) == 1:
        return [partial(contrastive_loss, labels=labels[0])]
    without_gradients = torch.no_grad()(compute)  # also in other threads
    tasks = [partial(without_gradients, index) for index in range(len(labels))]
    parts = threads.run(tasks) if parallel else [task() for task in tasks]
    features = torch.cat(parts).float().requires_grad_()
    loss = contrastive_loss(features, torch.cat(list(labels)))
    (gradient,) = torch.autograd.grad(loss, features)
    share = loss.detach() / len(parts)

    def loss_of(gradient: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return share + ((part - part.detach()).float() * gradient).sum()

    return [partial(loss_of, some) for some in gradient.split([len(part) for part in parts])]
