"""Measure the gain from the second text of a pair: sentence pairs of SICK against the first sentence alone.

One run trains both models with the same settings. The baselines read both sentences.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

import bertsmith as bs
from bertsmith.data.texts import signed_interval


def main() -> None:
    """Train on pairs, and print the scores of the run as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="packaged:minilm")
    parser.add_argument("--rows", type=int, default=1000, help="number of training rows, and of test rows")
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    rows = {"train": options.rows, "val": options.rows // 4, "test": options.rows}
    tables = {
        name: pd.read_csv(options.data / "sick" / f"{name}.csv").sample(n, random_state=0) for name, n in rows.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        run = bs.train(
            tables["train"],
            output=Path(folder) / "run",
            model=options.model,
            validation=tables["val"],
            test=tables["test"],
            text_column="sentence_a",
            pair_column="sentence_b",
            label_text_column="entailment",
            seed=options.seed,
            explanations="off",
            device="cpu",
            **({} if options.epochs is None else {"epochs": options.epochs}),
        )
        metrics, seconds = run.metrics, run.info["seconds"]
    columns, baselines = metrics["columns"], metrics["baseline"]
    print("| reads | macro-F1 |\n| --- | --- |")
    print(f"| both sentences | {columns['with']:.3f} |")
    print(f"| the first sentence alone | {columns['without']:.3f} |")
    for name, title in (("bag_of_words", "both, bag of words"), ("frozen_embeddings", "both, frozen embeddings")):
        print(f"| {title} | {baselines[name]['test']['macro_f1']:.3f} |")
    difference = columns["difference"]
    print(f"\ndifference of the first two: {difference['value']:+.3f} {signed_interval(difference['interval'])}")
    print(f"seconds: training {seconds['training']:.0f}, ablation {seconds['ablation']:.0f}")


if __name__ == "__main__":
    main()
