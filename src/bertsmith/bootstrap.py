"""The bootstrap (Efron 1979) over texts, or over groups of them.

Texts of one group, such as an author or document, are not independent. Whole groups are therefore drawn (cluster
bootstrap, Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
"""Confidence level of all intervals."""
TAILS = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
"""Percentiles of the lower and the upper bound."""
RESAMPLES = 1000
"""Default number of resamples."""
MAX_CELLS = 2_000_000
"""Resamples times texts held in memory at a time."""


def draw_resamples(
    n: int, groups: np.ndarray | None, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each text, shape (resamples in the chunk, n), in chunks that fit into memory.

    Args:
        n: number of texts.
        groups: group of each text, shape (n,). Whole groups are drawn, as many as exist; ``None`` draws texts.
        rng: random generator.
        resamples: total number of resamples.
    """
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    units = n if codes is None else int(codes.max()) + 1
    chunk = max(MAX_CELLS // n, 1)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, units, (size, units)) + units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        yield counts if codes is None else counts[:, codes]
