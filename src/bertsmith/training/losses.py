"""The loss, summed over texts and divided by the number of texts in the step: right for any way of cutting a batch.

Models of transformers average over what they are given, whatever the step holds in all; so under gradient accumulation
or micro-batches their own loss is not that of the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy


class CrossEntropy:
    """Cross-entropy, with label smoothing (Szegedy et al. 2016, arXiv:1512.00567) if wanted."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the loss of some texts as their part of the step's mean loss, a scalar.

        Args:
            outputs: of the model, with ``logits`` of shape (texts, classes).
            labels: class indices, shape (texts,).
            num_items_in_batch: texts in the whole step; those given, if ``None``.
        """
        # In fp32 whatever the arithmetic of the model: a sum of many small terms.
        total = cross_entropy(outputs.logits.float(), labels, reduction="sum", label_smoothing=self.label_smoothing)
        result: torch.Tensor = total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        return result
