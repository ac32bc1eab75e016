"""Compare bertsmith with simple models on each kind of task, with one real table per task.

All models read the same training texts and predict the same test texts. Intervals are paired: each comparison scores
both models on the same resamples of the test texts.

    python benchmarks/tasks.py ../shared/data
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import bertsmith as bs
from bertsmith.config import DataConfig
from bertsmith.data.read import read_table
from bertsmith.data.texts import signed_interval
from bertsmith.evaluation.evaluate import paired_difference
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task

TABLES: dict[str, dict[str, Any]] = {
    "goemotions": {"task": "multi-label"},
    "sst5": {"task": "ordinal"},
    "sick": {"task": "regression", "text_column": "sentence_a", "label_column": "relatedness"},
    "sick-pairs": {
        "task": "regression",
        "text_column": "sentence_a",
        "pair_column": "sentence_b",
        "label_column": "relatedness",
    },
}


def one_hot(scores: np.ndarray) -> np.ndarray:
    """Return probability 1 for the most likely class of each text, so that every decision rule chooses this class."""
    return np.eye(scores.shape[1])[scores.argmax(axis=1)]


def overlap(first: Iterable[str], second: Iterable[str]) -> np.ndarray:
    """Return the Jaccard similarity of the words of two texts, shape (pairs,)."""
    words = [[set(text.lower().split()) for text in texts] for texts in (first, second)]
    return np.array([len(a & b) / max(len(a | b), 1) for a, b in zip(*words, strict=True)])


def opponents(
    task: Task, train: list[str], targets: np.ndarray, texts: list[str], n_labels: int, seed: int
) -> dict[str, np.ndarray]:
    """Return the scores of models without a transformer, by name."""
    words = task.bag_of_words(train, targets, texts, n_labels, seed)
    found = {f"TF-IDF, {words.classifier}": words.scores}
    if task.name == "multi-label":
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        from bertsmith.evaluation.baseline import tfidf_vectorizer

        features = tfidf_vectorizer()
        x = features.fit_transform(train)
        model = OneVsRestClassifier(LogisticRegression(max_iter=200)).fit(x, targets.astype(int))
        found["TF-IDF, one-vs-rest logistic regression at 0.5"] = model.predict_proba(features.transform(texts))
    if task.name == "ordinal":
        found[f"TF-IDF, {words.classifier}, most likely class"] = one_hot(words.scores)
    return found


def compare(name: str, data: Path, rows: int, test_rows: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train on a table; return each metric with its interval, and the difference from each opponent."""
    settings = TABLES[name]
    frames = {
        part: pd.read_csv(data / name.partition("-")[0] / f"{part}.csv").sample(frac=1, random_state=seed).head(n)
        for part, n in (("train", rows), ("val", max(rows // 5, 200)), ("test", test_rows))
    }
    began = time.perf_counter()
    run = bs.train(
        frames["train"],
        validation=frames["val"],
        test=frames["test"],
        output=folder / name,
        model="packaged:minilm",
        seed=seed,
        cv=0,
        explanations="off",
        device="cpu",
        **settings,
    )
    seconds = time.perf_counter() - began
    task, labels, saved = get_task(run.task), run.labels, run.predictions
    targets, own_scores = task.stored_targets(saved, labels), task.stored_scores(saved)
    texts = saved["text"].tolist()
    pairs = saved.get("pair")
    both = texts if pairs is None else [f"{a} {b}" for a, b in zip(texts, pairs, strict=True)]
    table = read_table(frames["train"], DataConfig(**settings), known=labels)
    split = pd.read_parquet(run.layout.splits)
    used = split["row"][(split["split"] == "train")].to_numpy() - 1
    learned, known = table.frame.iloc[used], table.take(used).targets
    words = [" ".join(row) for row in learned[["text"] if pairs is None else ["text", "pair"]].to_numpy()]
    found = opponents(task, words, known, both, own_scores.shape[1], seed)
    if pairs is not None:
        line = np.polyfit(overlap(learned["text"], learned["pair"]), known, 1)
        found["linear regression on shared words"] = np.polyval(line, overlap(texts, pairs))[:, None]
    if task.name == "ordinal":
        found["MiniLM, most likely class"] = one_hot(own_scores)
    if task.name == "multi-label":
        found["MiniLM at 0.5, without tuned thresholds"] = bs.load(run, device="cpu", decide=False).predict_proba(texts)
    comparisons = []
    for opponent, scores in found.items():
        ahead = paired_difference(task, targets, own_scores, scores, seed=seed)
        theirs = task.scalar_metrics(targets, scores)
        comparisons.append(
            {"opponent": opponent, "metrics": theirs, "ahead": ahead["value"], "interval": ahead["interval"]}
        )
    return {
        "table": name,
        "task": task.name,
        "rows": {part: len(frame) for part, frame in frames.items()},
        "seconds": round(seconds),
        "primary": task.primary,
        "metrics": run.metrics["splits"]["test"]["metrics"],
        "opponents": comparisons,
    }


def main() -> None:
    """Print one JSON object per table, and a Markdown table of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the tables")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--test-rows", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tables:
            found = compare(name, arguments.data, arguments.rows, arguments.test_rows, arguments.seed, Path(folder))
            print(json.dumps(found), flush=True)
            results.append(found)
    print(
        "\n| table, task | metric | bertsmith | opponent | metric of the opponent | bertsmith is ahead by |",
        "| --- " * 6 + "|",
        sep="\n",
    )
    for found in results:
        title = get_task(found["task"]).primary_name
        own = found["metrics"][found["primary"]]
        value = f"{own['value']:.3f} " + ("[{:.3f}, {:.3f}]".format(*own["interval"]) if own["interval"] else "")
        for entry in found["opponents"]:
            ahead = f"{entry['ahead']:+.3f} {signed_interval(entry['interval'])}"
            theirs = entry["metrics"][found["primary"]]
            cells = (f"{found['table']}, {found['task']}", title, value, entry["opponent"], f"{theirs:.3f}", ahead)
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
