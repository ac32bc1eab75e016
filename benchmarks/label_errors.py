"""Compare a bag of words and embeddings in the search for label errors.

The script replaces some labels at random, searches for them with `bertsmith.evaluation.label_errors`, and prints two
shares for each kind of features: replaced labels among the suspects, and suspects among the replaced labels. The texts
are those of ``quality.py`` on folds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from quality import TABLES, draw


def main() -> None:
    from bertsmith.config import Config
    from bertsmith.evaluation.baseline import tfidf_vectorizer
    from bertsmith.evaluation.label_errors import FOLDS, find_label_errors
    from bertsmith.workflows.embeddings import embed_texts, load_embedding_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--replaced", type=float, nargs="+", default=[0.1, 0.2], help="shares of the labels to replace")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--model", default="packaged:minilm")
    given = parser.parse_args()
    encoder = load_embedding_model(given.model, Config(model=given.model))
    print("| table | replaced | features | right suspects | replaced labels found |\n" + "| --- " * 5 + "|")
    for table in given.tables:
        found: dict[tuple[float, str], list[tuple[float, float]]] = {}
        for seed in range(given.seeds):
            labelled, _ = draw(given.data / table, str(given.texts), seed, "folds", 500)
            labelled = labelled[labelled["Label"].map(labelled["Label"].value_counts()) > FOLDS]
            texts, (classes, targets) = labelled["Text"].tolist(), np.unique(labelled["Label"], return_inverse=True)
            features = {
                "bag of words": tfidf_vectorizer().fit_transform(texts),
                "embeddings": embed_texts(encoder, texts),
            }
            rng = np.random.default_rng(seed)
            for share in given.replaced:
                replaced = rng.random(len(targets)) < share
                others = (targets + rng.integers(1, len(classes), len(targets))) % len(classes)
                noisy = np.where(replaced, others, targets)
                for name, x in features.items():
                    suspects = find_label_errors(lambda x=x: x, noisy, len(classes), seed=seed)["position"].to_numpy()
                    right = replaced[suspects].sum()
                    found.setdefault((share, name), []).append((right / len(suspects), right / replaced.sum()))
        for (share, name), runs in found.items():
            means = np.mean(runs, axis=0)
            print(f"| {table} | {share:.0%} | {name} | {means[0]:.0%} | {means[1]:.0%} |", flush=True)


if __name__ == "__main__":
    main()
