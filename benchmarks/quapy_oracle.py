"""Print the adjusted counts of QuaPy that `tests/unit/test_measure.py` compares with those of bertsmith.

QuaPy (Moreo, Esuli and Sebastiani 2021, arXiv:2106.11057) is not a dependency. Run the script in a new environment:

    pip install quapy==0.2.3
    python benchmarks/quapy_oracle.py
"""

from __future__ import annotations

import sys

import numpy as np
from quapy.functional import normalize_prevalence
from quapy.method.aggregative import ACC

COUNTS = ([300, 500, 200], [450, 300, 250], [600, 250, 150])


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return the targets and predicted classes of 200 texts. The test makes the same ones."""
    targets, i = np.repeat([0, 1, 2], [90, 60, 50]), np.arange(200)
    return targets, np.where((i * 7919) % 101 < 76, targets, (targets + 1 + (i * 104729) % 2) % 3)


def main() -> None:
    """Print one line per corpus."""
    rates = ACC.getPteCondEstim(np.arange(3), *held_out())
    for counts in COUNTS:
        shares = ACC.solve_adjustment(rates, np.array(counts) / sum(counts), "inversion", "exact-raise")
        sys.stdout.write(f"{counts} {normalize_prevalence(shares, method='clip').round(8).tolist()}\n")


if __name__ == "__main__":
    main()
