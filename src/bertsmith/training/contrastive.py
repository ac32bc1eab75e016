"""Contrastive training: texts of one class become similar, texts of different classes dissimilar.

With few texts, this generalizes better than cross-entropy (Tunstall et al. 2022, arXiv:2209.11055). SetFit encodes both
texts of each sampled pair. Here, all pairs of the texts of a step are compared, so that 16 texts make 120 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.compute import threads

PartLoss = Callable[[torch.Tensor], torch.Tensor]
"""Takes the features of a micro-batch, shape (texts, hidden size), and returns its share of the loss of the step."""


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the cosine similarities of all pairs, a scalar.

    The target is 1 for texts of one class, and 0 for others. Both kinds of pairs have the same total weight.

    Args:
        features: shape (texts, hidden size).
        labels: class indices, shape (texts,); or class probabilities, shape (texts, classes).
    """
    with torch.autocast(features.device.type, enabled=False):  # full precision, because the products are small
        unit = F.normalize(features.float(), dim=1)
        similarity = unit @ unit.T
        same = labels @ labels.T if labels.is_floating_point() else (labels[:, None] == labels).to(similarity.dtype)
    other = ~torch.eye(len(labels), dtype=torch.bool, device=features.device)
    errors = ((1 - similarity) ** 2, similarity**2)
    weights = (same * other, (1 - same) * other)
    # A batch may have pairs of one kind only.
    means = [(w * error).sum() / w.sum().clamp(min=1e-6) for w, error in zip(weights, errors, strict=True)]
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

    def without_gradients(index: int) -> torch.Tensor:
        with torch.no_grad():  # this setting is local to the thread
            return compute(index)

    tasks = [partial(without_gradients, index) for index in range(len(labels))]
    parts = threads.run(tasks) if parallel else [task() for task in tasks]
    features = torch.cat(parts).float().requires_grad_()
    loss = contrastive_loss(features, torch.cat(list(labels)))
    (gradient,) = torch.autograd.grad(loss, features)
    share = loss.detach() / len(parts)

    def loss_of(gradient: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return share + ((part - part.detach()).float() * gradient).sum()

    return [partial(loss_of, some) for some in gradient.split([len(part) for part in parts])]
