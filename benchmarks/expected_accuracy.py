"""Measure how often the interval of `bertsmith predict` contains the accuracy, on tables with hidden labels.

The pools, models and shifts are those of `benchmarks/measure.py`. Each draw has 500 held-out texts and up to 1,000 new
texts. Two more shifts change the new texts. "shorter" keeps the first 8 words of each text. "no emoji" keeps only texts
with emoji, and removes the emoji.

    python benchmarks/expected_accuracy.py --tables ../shared/data --cache CACHE --draws 200
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.measure import SHIFTS, TABLES, Pool, draw, embeddings, load

from bertsmith.measuring.expected_accuracy import GRID, LENGTHS, expect_accuracy, grid_of, length_bin

HELD_OUT, NEW, WORDS, CHANGED = 500, 1000, 8, 1500
TWEETS = ("tweet_hate", "tweet_emotion")
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u200d]+")


def shorter(text: str) -> str:
    """Return the first words of a text."""
    return " ".join(text.split()[:WORDS])


def without_emoji(text: str) -> str:
    """Return a text without its emoji, or the text itself if it has only emoji."""
    return EMOJI.sub("", text).strip() or text


class Changed(NamedTuple):
    """The changed rows of a pool, and all texts and probabilities of the good model after the change."""

    rows: np.ndarray
    texts: np.ndarray
    scores: np.ndarray


def change_texts(pool: Pool, name: str, kind: str, cache: Path) -> Changed:
    """Change the texts of a pool."""
    file, change = cache / f"{name}.{kind}.npz", shorter if kind == "shorter" else without_emoji
    texts = [change(text) for text in pool.texts]
    rows = np.flatnonzero([one != other for one, other in zip(texts, pool.texts, strict=True)])[:CHANGED]
    if not file.exists():
        np.savez(file, e=embeddings([texts[i] for i in rows]))
    scores = pool.models["good"].copy()
    scores[np.ix_(rows, pool.good.classes_)] = pool.good.predict_proba(np.load(file)["e"])
    return Changed(rows, np.array(texts, dtype=object), scores)


def by_length(texts: np.ndarray) -> np.ndarray:
    """Return the number of texts in each bin of length."""
    return np.bincount([length_bin(len(text)) for text in texts], minlength=LENGTHS)


def coverage(pool: Pool, model: str, shift: str, draws: int, changed: Changed | None = None) -> dict[str, float]:
    """Return means over the draws: accuracy, coverage and width of the interval, error, share of lower bounds at 0."""
    rng, scores = np.random.default_rng(0), pool.models[model]
    after, texts = (scores, pool.texts) if changed is None else (changed.scores, changed.texts)
    inside, widths, errors, accuracies, unlike = [], [], [], [], []
    for _ in range(draws):
        order = rng.permutation(len(pool.targets))
        held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
        if changed is not None:
            rest = rest[np.isin(rest, changed.rows)]
        new = draw(pool, rest, shift, min(NEW, len(rest) // 2), rng)
        found = expect_accuracy(
            np.bincount([grid_of(c) for c in after[new].max(axis=1)], minlength=GRID),
            np.bincount(after[new].argmax(axis=1), minlength=scores.shape[1]),
            pool.targets[held_out],
            scores[held_out].max(axis=1),
            scores[held_out].argmax(axis=1),
            (by_length(texts[new]), by_length(pool.texts[held_out])),
        )
        if found is None:
            continue
        accuracies.append(float((after[new].argmax(axis=1) == pool.targets[new]).mean()))
        inside.append(found.low <= accuracies[-1] <= found.high)
        widths.append(found.high - found.low)
        errors.append(found.value - accuracies[-1])
        unlike.append(found.unlike)
    return {
        "accuracy": float(np.mean(accuracies)),
        "coverage": float(np.mean(inside)),
        "width": float(np.mean(widths)),
        "error": float(np.mean(np.abs(errors))),
        "unlike": float(np.mean(unlike)),
    }


def main() -> None:
    """Print one line per table, model and shift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=("good", "poor"))
    parser.add_argument("--only", nargs="*", default=(*TABLES, "banking77", "clinc150_imbalanced"))
    given = parser.parse_args()
    columns = ("table", "model", "new texts", "accuracy", "mean error", "in the interval", "width", "begins at 0")
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n")
    for name in given.only:
        pool = load(given.tables / name, given.cache)
        for model in given.models:
            kinds = ("shorter", "no emoji") if name in TWEETS and model == "good" else ()
            for shift in (*SHIFTS, "topic", *kinds):
                changed = change_texts(pool, name, shift, given.cache) if shift in kinds else None
                r = coverage(pool, model, shift if changed is None else "uniform", given.draws, changed)
                sys.stdout.write(
                    f"| {name} | {model} | {shift} | {r['accuracy']:.2f} | {r['error']:.3f} | {r['coverage']:.2f} | "
                    f"{r['width']:.2f} | {r['unlike']:.2f} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
