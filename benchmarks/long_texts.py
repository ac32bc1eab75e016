"""Compare the values of ``--long`` in training and prediction: truncate, head-tail and window.

For each table and seed, the script trains a model with ``truncate``, as the other values but ``head-tail`` do, and one
with ``head-tail``. Both predict the same test texts, the first with each value. The reference is this model with
``truncate``: each row has the paired difference from it, with an interval over the test texts.

    python benchmarks/long_texts.py ../shared/data/movie_reviews --texts 160 --test 200
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

import bertsmith as bs
from bertsmith.data.texts import signed_interval
from bertsmith.evaluation.evaluate import paired_difference
from bertsmith.tasks.registry import get_task

LONGS = ("truncate", "head-tail", "window")


def draw(folder: Path, texts: int, test: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return labelled texts, a fifth of them for validation, and test texts, stratified by class."""

    def sample(name: str, n: int) -> pd.DataFrame:
        table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False, dtype={"Text": str})
        table = table[table["Text"].str.strip() != ""].sample(frac=1, random_state=seed)
        order = table.groupby("Label").cumcount() / table.groupby("Label")["Label"].transform("size")
        return table.loc[order.sort_values(kind="stable").index].head(n).reset_index(drop=True)

    labelled, scored = sample("train", texts), sample("test", test)
    labelled["Split"] = np.where(labelled.groupby("Label").cumcount() % 5 == 4, "validation", "train")
    return labelled, scored


def run_table(folder: Path, options: argparse.Namespace, seed: int) -> None:
    """Train and score each combination, and print a row at once."""
    labelled, scored = draw(folder, options.texts, options.test, seed)
    table = pd.concat([labelled, scored.assign(Split="test")], ignore_index=True)
    texts, reference = scored["Text"].tolist(), None
    for trained in ("truncate", "head-tail"):
        with tempfile.TemporaryDirectory() as temporary:
            began = time.perf_counter()
            run = bs.train(
                table,
                output=Path(temporary) / "run",
                model=options.model,
                long=trained,
                max_length=options.max_length,
                epochs=options.epochs,
                consistency=0,
                explanations="off",
                near_duplicates="ignore",
                split_column="Split",
                device="cpu",
                seed=seed,
            )
            seconds = time.perf_counter() - began
            for read in LONGS if trained == "truncate" else (trained,):
                classifier = bs.load(run.path, device="cpu", runtime="torch", long=read)
                began = time.perf_counter()
                found = classifier.predict_proba(texts)
                predicting = time.perf_counter() - began
                index = {text: i for i, text in enumerate(classifier.labels.texts)}
                names = scored["Label Text"] if "Label Text" in scored else scored["Label"].astype(str)
                targets = names.map(index).to_numpy(dtype=np.int64)
                predicted = found.argmax(axis=1)
                reference = found if reference is None else reference
                change = paired_difference(get_task(run.task), targets, found, reference, seed=seed)
                score = f1_score(targets, predicted, average="macro")
                loss = -np.log(np.clip(found[np.arange(len(targets)), targets], 1e-12, None)).mean()
                cells = (
                    folder.name,
                    seed,
                    trained,
                    read,
                    f"{score:.3f}",
                    f"{change['value']:+.3f} {signed_interval(change['interval'])}",
                )
                times = (f"{seconds:.0f} s", f"{1000 * predicting / len(texts):.0f} ms")
                print("|", " | ".join(map(str, (*cells, f"{loss:.3f}", *times))), "|", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="folders with train.csv and test.csv")
    parser.add_argument("--model", default="packaged:minilm")
    parser.add_argument("--texts", type=int, default=1000, help="labelled texts, a fifth of them for validation")
    parser.add_argument("--test", type=int, default=400, help="test texts")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print("| table | seed | trained with | read with | macro-F1 | difference | log loss | training | per text |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for folder in options.tables:
        for seed in range(options.seeds):
            run_table(folder, options, seed)


if __name__ == "__main__":
    main()
