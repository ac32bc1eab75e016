"""Measure how many labels the choice of texts saves, on tables with hidden labels, and the limits of the page.

Each part prints one line per table, or its results as JSON:

- `needed`: number of labels until a regression on frozen MiniLM embeddings reaches 95 % of its macro-F1 with all
  labels. Also the number until 90 % of the rare classes (the third with the fewest texts) have three labels;
- `quality`: coverage of the 95 % interval of the accuracy on the random texts, over simulated projects;
- `gain`: share of the intervals of the learning curve that contain the true gain from 300 more labels;
- `speed`: seconds to choose 100 of 100,000 embedded texts, and peak memory;
- `kills`: number of decisions lost in 100 kills of a process that labels.

    python benchmarks/labelling.py needed --tables ../shared/data --cache CACHE --seeds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from bertsmith.config import Config
from bertsmith.data.table import SINGLE_LABEL
from bertsmith.evaluation.baseline import LinearModel, fit_regression
from bertsmith.labelling.choose import RANDOM_SHARE, Candidates, priorities, random_rows
from bertsmith.labelling.pool import PoolFile
from bertsmith.labelling.project import Decision, Project, Queued
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.choose_texts import choose_for_project
from bertsmith.workflows.embeddings import embed_texts, head_features, load_embedding_model
from bertsmith.workflows.labelling_gain import estimate_gain, score_on_random

TABLES = ("clinc150_imbalanced", "banking77", "tweet_emotion", "sst2")
ROUND = {"clinc150_imbalanced": 100, "banking77": 100}
SMALL_ROUND, MOST = 25, 5000
TASK = get_task(SINGLE_LABEL)


class Pool(NamedTuple):
    """A table with hidden labels, and its test table: embeddings, features of the regression, and classes."""

    embeddings: np.ndarray
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @property
    def n_classes(self) -> int:
        return int(max(self.y.max(), self.test_y.max())) + 1


def load(folder: Path, cache: Path) -> Pool:
    file = cache / f"{folder.name}.npz"
    if not file.exists():
        found = {}
        encoder = load_embedding_model("packaged:minilm", Config(device="cpu"))
        for split in ("train", "test"):
            table = pd.read_csv(folder / f"{split}.csv", keep_default_na=False)
            table = table[table["Text"].str.strip() != ""].drop_duplicates("Text")
            found[f"{split}_e"] = embed_texts(encoder, table["Text"].tolist()).astype(np.float16)
            found[f"{split}_y"] = table["Label Text"].to_numpy(dtype=object)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, **found)
    saved = np.load(file, allow_pickle=True)
    e, test_e = (saved[f"{split}_e"].astype(np.float32) for split in ("train", "test"))
    codes = np.unique(np.concatenate([saved["train_y"], saved["test_y"]]), return_inverse=True)[1]
    return Pool(e, head_features(e), codes[: len(e)], head_features(test_e), codes[len(e) :])


def fit(pool: Pool, rows: np.ndarray) -> LinearModel | None:
    if len(np.unique(pool.y[rows])) < 2:
        return None
    return fit_regression(pool.x[rows], pool.y[rows], n_classes=pool.n_classes)


def test_score(pool: Pool, model: LinearModel | None) -> float:
    if model is None:
        return 0.0
    return f1_score(pool.test_y, model.logits(pool.test_x).argmax(axis=1), average="macro")


# -- labels needed -----------------------------------------------------------------------------------------------------


def choose(
    pool: Pool, how: str, labelled: np.ndarray, model: LinearModel | None, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to label next, and the random ones among them."""
    usable = np.ones(len(pool.y), dtype=bool)
    usable[labelled] = False
    left = np.flatnonzero(usable)
    if how == "random" or (how == "uncertain" and model is None):
        rows = np.random.default_rng([seed, len(labelled)]).choice(left, min(n, len(left)), replace=False)
        return rows, rows
    if how == "uncertain":
        best = np.sort(TASK.scores(model.logits(pool.x[left])), axis=1)
        return left[np.argsort(best[:, -1] - best[:, -2])[:n]], left[:0]
    priority = priorities(len(pool.y), seed)
    chance, reserved = random_rows(priority, usable, round(RANDOM_SHARE * n))
    counts = None if model is None else np.bincount(pool.y[labelled], minlength=pool.n_classes)
    found = Candidates(n - len(chance), SINGLE_LABEL, counts, seed)
    free = np.flatnonzero(usable & ~reserved)
    found.add(free, priority[free], None if model is None else TASK.scores(model.logits(pool.x[free])))
    known = pool.embeddings[np.concatenate([labelled, chance])]
    ranked = found.choose(pool.embeddings[found.rows], known)[: n - len(chance)]
    return np.concatenate([chance, np.array([choice.row for choice in ranked], dtype=np.int64)]), chance


def needed(pool: Pool, how: str, seed: int, n: int, target: float, rare: np.ndarray) -> tuple[int, int]:
    """Return the number of labels to reach the target score, and to give 90 % of the rare classes three labels."""
    labelled, model, enough, found = np.empty(0, dtype=np.int64), None, 0, 0
    while not (enough and found) and len(labelled) < min(MOST, len(pool.y)):
        labelled = np.concatenate([labelled, choose(pool, how, labelled, model, n, seed)[0]])
        model = fit(pool, labelled)
        if not found and (np.bincount(pool.y[labelled], minlength=pool.n_classes)[rare] >= 3).mean() >= 0.9:
            found = len(labelled)
        if not enough and test_score(pool, model) >= target:
            enough = len(labelled)
    return enough or len(labelled), found or len(labelled)


def print_needed(name: str, pool: Pool, seeds: int) -> None:
    whole = test_score(pool, fit(pool, np.arange(len(pool.y))))
    rare = np.argsort(np.bincount(pool.y, minlength=pool.n_classes))[: max(pool.n_classes // 3, 1)]
    print(f"{name}: {pool.n_classes} classes, macro-F1 {whole:.3f} with all {len(pool.y):,} labels")
    n, means = ROUND.get(name, SMALL_ROUND), {}
    for how in ("random", "uncertain", "bertsmith"):
        found = np.array([needed(pool, how, seed, n, 0.95 * whole, rare) for seed in range(seeds)])
        means[how] = found.mean(axis=0)
        enough, first = (" ".join(map(str, column)) for column in found.T)
        ratio = means[how] / means["random"]
        print(f"  {how:<10} enough {enough} ({ratio[0]:.2f}); rare classes {first} ({ratio[1]:.2f})", flush=True)


# -- quality and gain --------------------------------------------------------------------------------------------------


def labelled_rows(pool: Pool, how: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labelled rows of a project with rounds of 50, and whether each row is random."""
    rows, chance, model = np.empty(0, dtype=np.int64), set[int](), None
    while len(rows) < size:
        new, some = choose(pool, how, rows, model, 50, seed)
        rows, chance = np.concatenate([rows, new]), chance | set(some.tolist())
        model = fit(pool, rows)
    return rows, np.isin(rows, list(chance))


def print_quality(name: str, pool: Pool, draws: int) -> None:
    """Print the coverage of the accuracy on the random texts. The truth is the accuracy on all rows they come from."""
    inside, errors = [], []
    size = 1000 if pool.n_classes > 20 else 300
    for seed in range(draws):
        rows, is_random = labelled_rows(pool, "bertsmith", size, seed)
        found = score_on_random(pool.x[rows], pool.y[rows], is_random, TASK, pool.n_classes, seed=seed)
        # Rows reserved for the random sample represent the pool. The other unlabelled rows lack the chosen, hard texts.
        reserved = np.flatnonzero(random_rows(priorities(len(pool.y), seed), np.ones(len(pool.y), dtype=bool), 0)[1])
        predicted = fit(pool, rows[~is_random]).logits(pool.x[reserved]).argmax(axis=1)
        truth = (predicted == pool.y[reserved]).mean()
        inside.append(found[1] <= truth <= found[2])
        errors.append(found[0] - truth)
    print(
        f"{name}: {int(is_random.sum())} random texts; coverage of accuracy {np.mean(inside):.3f}; "
        f"bias {np.mean(errors):+.4f}, standard deviation {np.std(errors):.4f}",
        flush=True,
    )


def print_gain(name: str, pool: Pool, seeds: int, more: int = 300) -> None:
    for size in (100, 400):
        inside, found = [], []
        for seed in range(seeds):
            for how in ("random", "bertsmith"):
                rows, is_random = labelled_rows(pool, how, size + more, seed)
                before = rows[:size]
                estimate = estimate_gain(
                    pool.embeddings[before], pool.y[before], is_random[:size], TASK, pool.n_classes, more, seed=seed
                )
                if estimate.gain is None:
                    continue
                gains = test_score(pool, fit(pool, rows)) - test_score(pool, fit(pool, before))
                inside.append(estimate.low <= gains <= estimate.high)
                found.append((how == "random", gains, estimate.gain, estimate.low, estimate.high))
        if inside:
            mean = np.mean(found, axis=0)
            print(
                f"{name}, {size} labels: coverage {np.mean(inside):.2f} of {len(inside)}; true gain {mean[1]:+.3f}, "
                f"expected {mean[2]:+.3f} ({mean[3]:+.3f} to {mean[4]:+.3f})",
                flush=True,
            )


# -- limits ------------------------------------------------------------------------------------------------------------


def print_speed(tables: Path, rows: int = 100_000, labelled: int = 500) -> None:
    words = pd.read_csv(tables / "banking77" / "train.csv")["Text"].str.split().sum()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(rows)]
    numbers = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.csv"
        pd.DataFrame({"text": texts}).to_csv(path, index=False)
        classes = [f"class {i}" for i in range(20)]
        project = Project(Path(folder) / "project", {"labels": classes, "model": "packaged:minilm"})
        pool = PoolFile(project.path, "packaged:minilm", 384)

        def embed(some: list[str]) -> np.ndarray:
            found = numbers.normal(size=(len(some), 384))
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        pool.update(texts, 0, embed, "pool")
        project.add_texts([Queued(i + 1, texts[i], "x", i < 100) for i in range(labelled)])
        for i in range(labelled):
            project.decide(Decision(i + 1, "ann", "labelled", (classes[i % 20],), seconds=5.0))
        start = time.perf_counter()
        choose_for_project(project, path, Config(device="cpu"), 100)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "seconds": round(seconds, 1), "peak_mib": round(peak)}))


_WRITER = """
import sys
from pathlib import Path
from bertsmith.labelling.project import Decision, Project
project = Project(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), 10**9):
    project.decide(Decision(1 + i % 6, "ann", "labelled", ("good",), note=str(i)))
    print(i, flush=True)
"""


def print_kills(kills: int) -> None:
    reported, rng = -1, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder) / "project", {"labels": ["good", "bad"]})
        project.add_texts([Queued(i, f"text {i}", "x", False) for i in range(1, 7)])
        for _ in range(kills):
            command = [sys.executable, "-c", _WRITER, project.path, str(reported + 1)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                reported = int(writer.stdout.readline())
                time.sleep(rng.random() / 10)
                writer.kill()
                lines = writer.stdout.read().split()
                reported = int(lines[-1]) if lines else reported
        with contextlib.closing(sqlite3.connect(project.file)) as database:
            notes = {int(note) for (note,) in database.execute("SELECT note FROM decisions")}
            intact = database.execute("PRAGMA integrity_check").fetchone()[0]
    lost = len(set(range(reported + 1)) - notes)
    print(json.dumps({"kills": kills, "decisions": reported + 1, "lost": lost, "integrity": intact}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("needed", "quality", "gain", "speed", "kills"))
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--cache", type=Path, help="folder for embeddings")
    parser.add_argument("--only", nargs="*", default=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    if given.part == "speed":
        print_speed(given.tables)
    elif given.part == "kills":
        print_kills(100)
    else:
        for name in given.only:
            pool = load(given.tables / name, given.cache)
            if given.part == "needed":
                print_needed(name, pool, given.seeds)
            elif given.part == "quality":
                print_quality(name, pool, given.draws)
            else:
                print_gain(name, pool, given.seeds)


if __name__ == "__main__":
    main()
