"""Is the accuracy that `bertsmith predict` expects in its interval? Labelled tables with their labels hidden.

The pools, models and shifts are those of `benchmarks/measure.py`. Each draw has 500 held-out texts and 1,000 new texts.

    python benchmarks/expected_accuracy.py --tables ../shared/data --cache CACHE --draws 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from benchmarks.measure import SHIFTS, TABLES, Pool, draw, load

from bertsmith.measuring.expected_accuracy import GRID, expect_accuracy, grid_of

HELD_OUT, NEW = 500, 1000


def coverage(pool: Pool, model: str, shift: str, draws: int) -> dict[str, float]:
    """Return the share of intervals that contain the accuracy, their mean width, and the mean and spread of errors."""
    rng, scores = np.random.default_rng(0), pool.models[model]
    confidence, decided = scores.max(axis=1), scores.argmax(axis=1)
    inside, widths, errors = [], [], []
    for _ in range(draws):
        order = rng.permutation(len(pool.targets))
        held_out, new = order[:HELD_OUT], draw(pool, order[HELD_OUT:], shift, NEW, rng)
        bins = np.bincount([grid_of(c) for c in confidence[new]], minlength=GRID)
        found = expect_accuracy(
            bins,
            np.bincount(decided[new], minlength=pool.n_classes),
            pool.targets[held_out],
            confidence[held_out],
            decided[held_out],
        )
        assert found is not None
        accuracy = float((decided[new] == pool.targets[new]).mean())
        inside.append(found.low <= accuracy <= found.high)
        widths.append(found.high - found.low)
        errors.append(found.value - accuracy)
    return {
        "coverage": float(np.mean(inside)),
        "width": float(np.mean(widths)),
        "bias": float(np.mean(errors)),
        "spread": float(np.std(errors)),
    }


def main() -> None:
    """Print one line per table, model and shift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    for name in TABLES:
        pool = load(arguments.tables / name, arguments.cache)
        for model in pool.models:
            for shift in (*SHIFTS, "topic"):
                found = coverage(pool, model, shift, arguments.draws)
                figures = "  ".join(f"{key} {value:+.3f}" for key, value in found.items())
                sys.stdout.write(f"{name:<15} {model:<5} {shift:<8} {figures}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
