"""Compare training on all labels with leaving out probable label errors.

The script replaces some labels of the training and validation texts at random, trains with ``label_noise`` ``off`` and
``auto``, and scores both models on texts with their original labels. The texts are those of ``quality.py`` on folds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from quality import TABLES, draw
from sklearn.metrics import f1_score

MIN_TEXTS = 6
"""Classes with fewer labelled texts are left out."""


def main() -> None:
    import bertsmith as bs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--tables", nargs="+", default=["tweet_emotion", "sst2", "tweet_hate"], choices=TABLES)
    parser.add_argument("--texts", type=int, default=1000, help="labelled texts; a tenth of them is for validation")
    parser.add_argument("--scored", type=int, default=1000)
    parser.add_argument("--replaced", type=float, nargs="+", default=[0.0, 0.2, 0.4], help="shares of the labels")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", default="packaged:minilm")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print("| table | replaced | seed | label_noise | left out | macro-F1 | seconds |\n" + "| --- " * 7 + "|")
    for table in given.tables:
        for seed in range(given.seeds):
            labelled, scored = draw(given.data / table, str(given.texts), seed, "folds", given.scored)
            labelled = labelled[labelled["Label"].map(labelled["Label"].value_counts()) >= MIN_TEXTS][["Label", "Text"]]
            scored = scored[scored["Label"].isin(labelled["Label"])][["Label", "Text"]]
            classes, targets = np.unique(labelled["Label"], return_inverse=True)
            for share in given.replaced:
                rng = np.random.default_rng(seed)
                replaced = rng.random(len(targets)) < share
                others = (targets + rng.integers(1, len(classes), len(targets))) % len(classes)
                noisy = labelled.assign(Label=classes[np.where(replaced, others, targets)])
                n = len(noisy) - len(noisy) // 10
                for label_noise in ("off", "auto"):
                    settings = {"label_noise": label_noise, "model": given.model, "seed": seed, "explanations": "off"}
                    start = time.perf_counter()
                    with tempfile.TemporaryDirectory() as folder:
                        run = bs.train(
                            noisy[:n],
                            validation=noisy[n:],
                            test=scored,
                            output=Path(folder) / "run",
                            threads=given.threads,
                            **settings,
                        )
                        predictions, noise = run.predictions, run.info.get("label_noise") or {}
                    seconds = time.perf_counter() - start
                    left_out = noise["suspects"] if noise.get("used") else 0
                    macro_f1 = f1_score(predictions["label"], predictions["predicted"], average="macro")
                    row = (table, f"{share:.0%}", seed, label_noise, left_out, f"{macro_f1:.3f}", f"{seconds:.0f}")
                    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
