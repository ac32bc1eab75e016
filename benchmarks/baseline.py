"""Compare two classifiers for the bag-of-words baseline: a linear SVM and a cross-validated logistic regression.

Both read the same texts and features. The script prints scores and CPU seconds, from texts to test probabilities.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

TABLES = ("clinc150_imbalanced", "banking77", "tweet_emotion", "reuters_r8", "sst2", "tweet_hate", "news52")
GRID = (1.0, 10.0, 100.0)


def table_of(name: str, data: Path) -> list[pd.DataFrame]:
    """Return the train and test splits of a table in a folder, or of ``news52``.

    ``news52`` is synthetic: 1,200 and 800 excerpts of reuters_r8. Each excerpt contains one question of the 52 most
    frequent classes of banking77. The classes are long-tailed, and most words are unrelated to them.
    """
    if name != "news52":
        return [pd.read_csv(data / name / f"{split}.csv").dropna(subset="Text") for split in ("train", "test")]
    rng = np.random.default_rng(0)
    news = pd.read_csv(data / "reuters_r8" / "train.csv")["Text"].str.split().tolist()
    splits = []
    for split, rows in (("train", 1200), ("test", 800)):
        questions = pd.read_csv(data / "banking77" / f"{split}.csv")
        if not splits:
            rank = {label: i for i, label in enumerate(questions["Label"].value_counts().index[:52])}
        questions = questions[questions["Label"].isin(rank)]
        weights = 1 / (questions["Label"].map(rank).to_numpy() + 1) ** 0.8
        questions = questions.iloc[np.argsort(-(rng.random(len(weights)) ** (1 / weights)))[:rows]].copy()
        for i, text in zip(questions.index, questions["Text"], strict=True):
            around = news[rng.integers(len(news))][: rng.integers(40, 300)]
            at = rng.integers(len(around) + 1)
            questions.loc[i, "Text"] = " ".join([*around[:at], *text.split(), *around[at:]])
        splits.append(questions)
    return splits


def svm(train: list[str], targets: np.ndarray, texts: list[str], n_classes: int, seed: int) -> np.ndarray:
    """Return the probabilities of the baseline in every report, shape (texts, classes)."""
    from bertsmith.evaluation.baseline import bag_of_words

    return bag_of_words(train, targets, texts, n_classes=n_classes, seed=seed).scores


def logistic_regression(
    train: list[str], targets: np.ndarray, texts: list[str], n_classes: int, seed: int
) -> np.ndarray:
    """Return the probabilities of a logistic regression. Three folds of up to 3,000 texts choose its regularization."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import KFold

    from bertsmith.evaluation.baseline import tfidf_vectorizer

    def fitted(c: float, x: object, y: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(x, y)

    words = tfidf_vectorizer()
    x = words.fit_transform(train).astype(np.float32)
    some = np.random.default_rng(seed).permutation(len(train))[:3000]
    scores = dict.fromkeys(GRID, 0.0)
    for inside, outside in KFold(3).split(some):
        for c in GRID:
            model = fitted(c, x[some[inside]], targets[some[inside]])
            scores[c] += f1_score(targets[some[outside]], model.predict(x[some[outside]]), average="macro")
    model = fitted(max(GRID, key=scores.__getitem__), x, targets)
    probabilities = np.zeros((len(texts), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(words.transform(texts).astype(np.float32))
    return probabilities


CONTENDERS: dict[str, Callable[..., np.ndarray]] = {"svm": svm, "logistic-regression": logistic_regression}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--texts", type=int, nargs="+", default=[0], help="number of random training texts; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from bertsmith.evaluation.calibration import calibration_metrics
    from bertsmith.tasks.registry import get_task

    warnings.simplefilter("ignore")  # about logistic regressions that have not converged
    print("| table | texts | contender | seconds | macro-F1 | accuracy | ECE |\n" + "| --- " * 7 + "|")
    for name in given.tables:
        train, test = table_of(name, given.data)
        classes, targets = np.unique(pd.concat([train, test])["Label"], return_inverse=True)
        of_train, of_test = targets[: len(train)], targets[len(train) :]
        for size in given.texts:
            rows = np.random.default_rng(given.seed).permutation(len(train))[: size or None]
            texts, y = train["Text"].iloc[rows].tolist(), of_train[rows]
            for contender in given.contenders:
                began = time.process_time()
                probabilities = CONTENDERS[contender](texts, y, test["Text"].tolist(), len(classes), given.seed)
                taken = time.process_time() - began
                score = get_task().validation_metrics(of_test, probabilities)
                error = calibration_metrics(of_test, probabilities)["expected_calibration_error"]
                print(
                    f"| {name} | {len(rows):,} | {contender} | {taken:.1f} | {score['macro_f1']:.3f} "
                    f"| {score['accuracy']:.3f} | {error:.3f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
