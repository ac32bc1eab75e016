"""The bootstrap (Efron 1979) over texts, or over groups of them.

Texts of one group, such as an author or document, are not independent. Whole groups are therefore drawn (cluster
bootstrap, Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bertsmith.errors import counted

LEVEL = 0.95
"""Confidence level of all intervals."""
TAILS = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
"""Percentiles of the lower and the upper bound."""
RESAMPLES = 1000
"""Default number of resamples."""
MAX_CELLS = 2_000_000
"""Resamples times texts held in memory at a time."""
FEW_GROUPS = 10
"""With fewer groups, bertsmith calls 95 % intervals unreliable.

In simulations with 3 to 7 groups, 82 to 89 % of the intervals contain the truth; with 10, 93 %.
"""


def is_one_group(groups: np.ndarray | None) -> bool:
    """Return whether all texts are in one group. Every resample is then the data itself."""
    return groups is not None and len(np.unique(groups)) < 2


def warn_of_few_groups(groups: np.ndarray | None, texts: str) -> str | None:
    """Return a warning for fewer than `FEW_GROUPS` groups, or ``None``; ``texts`` names the texts."""
    n = FEW_GROUPS if groups is None else len(np.unique(groups))
    if n >= FEW_GROUPS:
        return None
    effect = (
        "the metrics have no intervals" if n < 2 else "the intervals of metrics are unreliable, and usually too narrow"
    )
    return f"the {texts} form only {counted(n, 'group')}, so {effect}"


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
