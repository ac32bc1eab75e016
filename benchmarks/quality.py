"""Compare the quality and time of bertsmith's defaults with other programs, from eight texts per class upwards.

- ``ours``: `bertsmith.train` on all labelled texts as one table, with default settings and the given checkpoint.
- ``plain``: the best of six trainings with `transformers.Trainer`: batches of 8, 16 and 32, rates of 2e-5 and 5e-5.
- ``frozen``: a logistic regression on mean embeddings of the same checkpoint.
- ``words``: a linear SVM on TF-IDF features, as in every report of bertsmith.
- ``setfit``: SetFit with 20 iterations and the same checkpoint, up to 64 texts per class, with another interpreter.

All contenders get the same labelled texts, which depend only on table, size and seed. Each may hold out some of them.
With ``--on folds``, the default, labelled and scored texts are training texts; use it to choose settings.
With ``--on test``, the labelled texts come from train and validation. Each run is a separate process without network,
and the script times the whole process. It saves each result, and does not repeat a saved run. To repeat all runs,
delete the output folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

TABLES = ("banking77", "clinc150_imbalanced", "tweet_emotion", "reuters_r8", "sst2", "tweet_hate")
SIZES = ("8", "16", "64", "1000", "all")
MOST = 10_000  # labelled texts with size ``all``
SCORED = 2_000  # maximum with ``--on folds``, which also scores at most a third of the table
A_CLASS = 200  # sizes up to this one are texts per class, larger sizes are texts in total
SETFIT_MOST = 64  # texts per class; SetFit takes hours with more
PLAIN_TOKENS = 128  # default of the example script of transformers
FROZEN_TOKENS = 256  # default of sentence-transformers with MiniLM
RESAMPLES = 1000


# -- texts -------------------------------------------------------------------------------------------------------------


def draw(folder: Path, size: str, seed: int, on: str, most: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the labelled and the scored texts of a table, with their row numbers as the index.

    The two have no text in common, and labelled texts are unique. For a given seed, all sizes have the same scored
    texts, and a larger size contains all texts of a smaller one. With ``folds``, at most two thirds of the texts of a
    class are labelled.

    Args:
        folder: folder of ``train.csv``, ``test.csv`` and optionally ``val.csv``, with the columns ``Label``, ``Text``.
        size: texts per class, texts in total if above `A_CLASS`, or ``all``.
        seed: of the draw.
        on: ``folds`` or ``test``.
        most: maximum number of scored texts.
    """
    pool = _read(folder / "train.csv")
    if on == "test":
        if (folder / "val.csv").is_file():
            pool = pd.concat([pool, _read(folder / "val.csv")], ignore_index=True)
        scored = _read(folder / "test.csv")
        pool = pool[~_words(pool).isin(_words(scored))]
    pool = _mixed(pool[~_words(pool).duplicated()], seed)
    limit = pool.groupby("Label")["Label"].transform("size")
    if on == "folds":
        held_out = min(SCORED, len(pool) // 3)
        scored, pool, limit = pool[:held_out], pool[held_out:], 2 * limit[held_out:] // 3
    if size == "all" or int(size) > A_CLASS:
        labelled = pool[: MOST if size == "all" else int(size)]
    else:
        labelled = pool[pool.groupby("Label").cumcount() < np.minimum(int(size), limit[pool.index])]
    return labelled, scored if most is None else _mixed(scored, seed)[:most]


def _read(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, keep_default_na=False, dtype={"Text": str})
    return table[table["Text"].str.strip() != ""].reset_index(drop=True)


def _words(table: pd.DataFrame) -> pd.Series:
    return table["Text"].str.split().str.join(" ")


def _mixed(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows in a random order that is stratified: every prefix has about the class shares of the table."""
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    classes = table.groupby("Label")["Label"]
    return table.iloc[np.argsort((classes.cumcount() + 0.5) / classes.transform("size"), kind="stable")]


# -- contenders: each returns probabilities of the scored texts, shape (texts, classes), and further results ---------


class Task(NamedTuple):
    """Input of a contender: labelled texts and their classes, shape (n,), the scored texts, and settings."""

    folder: Path
    texts: list[str]
    targets: np.ndarray
    numbers: np.ndarray
    scored_texts: list[str]
    seed: int
    model: str
    threads: int


def ours(task: Task) -> tuple[np.ndarray, dict]:
    """Train with the default settings and the given checkpoint."""
    import bertsmith as bs

    with tempfile.TemporaryDirectory() as name:
        settings = {"model": task.model, "seed": task.seed, "threads": task.threads}
        files = {"table": task.folder / "labelled.csv", "test": str(task.folder / "scored.csv")}
        run = bs.train(**files, output=Path(name) / "run", **settings)
        frame, numbers, metrics, info = run.predictions, run.labels.numbers, run.metrics, run.info
    probabilities = np.zeros((len(task.scored_texts), len(task.numbers)))  # texts without a prediction keep 0
    rows = frame["row"].to_numpy()[:, None] - 1
    probabilities[rows, np.searchsorted(task.numbers, numbers)] = np.stack(frame["probabilities"])
    calibration = metrics["splits"]["test"]["calibration"]
    return probabilities, {
        "recipe": info["recipe"],
        "epochs": info["training"]["epoch"],
        "rule": metrics["decision_rule"]["used"],
        "temperature": calibration["temperature"],
        "ece_before": calibration["before"]["expected_calibration_error"],
        "conformal": metrics["abstention"]["conformal"],
    }


def plain(task: Task) -> tuple[np.ndarray, dict]:
    """Train six times as in the examples of transformers. Macro-F1 on a held-out tenth decides, and then the loss."""
    import transformers
    from datasets import Dataset
    from sklearn.metrics import f1_score

    tokenizer = transformers.AutoTokenizer.from_pretrained(task.model)
    collator = transformers.DataCollatorWithPadding(tokenizer)

    def encoded(texts: list[str], **labels: list[int]) -> Dataset:
        return Dataset.from_dict({**tokenizer(texts, truncation=True, max_length=PLAIN_TOKENS), **labels})

    classes, y = np.unique(task.targets, return_inverse=True)
    whole, held_out = encoded(task.texts, labels=y.tolist()), tenth(y, task.seed)
    train, validation = whole.select(np.flatnonzero(~held_out)), whole.select(np.flatnonzero(held_out))
    usual = {"num_train_epochs": 3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": task.seed}
    runs, best, best_trainer = [], (-1.0, 0.0), None
    for batch, rate in itertools.product((8, 16, 32), (2e-5, 5e-5)):
        began = time.perf_counter()
        transformers.set_seed(task.seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(task.model, num_labels=len(classes))
        with tempfile.TemporaryDirectory() as name:
            given = transformers.TrainingArguments(name, per_device_train_batch_size=batch, learning_rate=rate, **usual)
            trainer = transformers.Trainer(model, given, collator, train_dataset=train)
            trainer.train()
            found = trainer.predict(validation)
        score = f1_score(y[held_out], found.predictions.argmax(axis=1), average="macro", zero_division=0)
        by = (float(score), -float(found.metrics["test_loss"]))
        if by > best:
            best, best_trainer = by, trainer
        runs.append({"batch": batch, "rate": rate, "by": by, "seconds": time.perf_counter() - began})
    logits = best_trainer.predict(encoded(task.scored_texts)).predictions
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    other_seconds = sum(run["seconds"] for run in runs if run["by"] != best)
    return _spread(task, classes, p / p.sum(axis=1, keepdims=True)), {"runs": runs, "of_others": other_seconds}


def tenth(targets: np.ndarray, seed: int) -> np.ndarray:
    """Return which texts to hold out, shape (n,): a tenth of each class, at least one if the class has two texts."""
    held_out = np.zeros(len(targets), dtype=bool)
    rng = np.random.default_rng(seed)
    for c in np.unique(targets):
        rows = rng.permutation(np.flatnonzero(targets == c))
        held_out[rows[: max(round(len(rows) / 10), len(rows) > 1)]] = True
    return held_out


def frozen(task: Task) -> tuple[np.ndarray, dict]:
    """Fit a logistic regression (C=1, as in the head of SetFit) on normalised mean embeddings."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, body = AutoTokenizer.from_pretrained(task.model), AutoModel.from_pretrained(task.model)
    body = body.to(device).eval()

    @torch.inference_mode()
    def embeddings(texts: list[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in texts])  # texts of similar length share a batch
        found = []
        for start in range(0, len(texts), 32):
            some = [texts[i] for i in order[start : start + 32]]
            batch = tokenizer(some, padding=True, truncation=True, max_length=FROZEN_TOKENS, return_tensors="pt")
            hidden = body(**batch.to(device)).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            found.append(torch.nn.functional.normalize(mean).float().cpu().numpy())
        return np.concatenate(found)[np.argsort(order)]

    head = LogisticRegression(C=1.0, max_iter=1000).fit(embeddings(task.texts), task.targets)
    return _spread(task, head.classes_, head.predict_proba(embeddings(task.scored_texts))), {}


def words(task: Task) -> tuple[np.ndarray, dict]:
    """Fit the bag-of-words baseline of every report."""
    from bertsmith.evaluation.baseline import bag_of_words

    n_classes = len(task.numbers)
    return bag_of_words(task.texts, task.targets, task.scored_texts, n_classes=n_classes, seed=task.seed).scores, {}


def setfit(task: Task) -> tuple[np.ndarray, dict]:
    """Train as in the examples of SetFit: 20 iterations, one epoch, batches of 16, a logistic regression as head."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    fitted = SetFitModel.from_pretrained(task.model)
    usual = {"save_strategy": "no", "report_to": "none", "show_progress_bar": False, "seed": task.seed}
    with tempfile.TemporaryDirectory() as name:
        given = TrainingArguments(name, num_iterations=20, num_epochs=1, batch_size=16, **usual)
        data = Dataset.from_dict({"text": task.texts, "label": task.targets.tolist()})
        Trainer(model=fitted, args=given, train_dataset=data).train()
    return _spread(task, fitted.model_head.classes_, fitted.predict_proba(task.scored_texts, as_numpy=True)), {}


CONTENDERS = {"ours": ours, "plain": plain, "frozen": frozen, "words": words, "setfit": setfit}


def _spread(task: Task, classes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities of all classes; classes without labelled texts have 0."""
    whole = np.zeros((len(probabilities), len(task.numbers)))
    whole[:, classes] = probabilities
    return whole


def run_one(contender: str, folder: Path, seed: int, model: str, threads: int) -> None:
    """Run a contender on the tables in a folder. Saved classes are positions in the sorted labels of both tables."""
    labelled, scored = _read(folder / "labelled.csv"), _read(folder / "scored.csv")
    numbers = np.unique(pd.concat([labelled, scored])["Label"])
    targets = np.searchsorted(numbers, labelled["Label"])
    task = Task(folder, labelled["Text"].tolist(), targets, numbers, scored["Text"].tolist(), seed, model, threads)
    probabilities, more = CONTENDERS[contender](task)
    predicted = np.where(probabilities.any(axis=1), probabilities.argmax(axis=1), -1).tolist()
    result = {"predicted": predicted, "confidence": probabilities.max(axis=1).round(4).tolist(), **more}
    (folder / "found.json").write_text(json.dumps(result))


# -- the report --------------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """Scores of a run: macro-F1, macro-F1 of resamples, shape (resamples,), calibration error; and the saved result."""

    macro_f1: float
    resampled: np.ndarray
    ece: float
    result: dict


def score(targets: np.ndarray, drawn: np.ndarray, result: dict) -> Score:
    """Score a run.

    Args:
        targets: class indices, shape (n,).
        drawn: how often each resample draws each text, shape (resamples, n).
        result: the saved result, with ``predicted`` and ``confidence``.
    """
    from sklearn.metrics import f1_score

    from bertsmith.evaluation.intervals import resampled_label_metrics

    predicted, confidence = np.array(result["predicted"]), np.array(result["confidence"])
    n_classes = int(max(targets.max(), predicted.max())) + 2
    index = np.where(predicted < 0, n_classes - 1, predicted)  # without a prediction: an extra, always wrong class
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = np.bincount(bins, weights=confidence - (targets == predicted), minlength=15)
    return Score(
        f1_score(targets, index, average="macro"),
        resampled_label_metrics(drawn, targets, index, n_classes)["macro_f1"],
        float(abs(gaps).sum() / len(targets)),
        result,
    )


def ahead(ours: dict, other: dict) -> tuple[float, float, float]:
    """Return the mean difference in macro-F1 over the runs that both have, and its 95 % interval.

    Args:
        ours, other: a `Score` by table and seed. All seeds of a table have equal weight, and so have all tables.
    """
    tables = sorted({table for table, seed in ours if (table, seed) in other})
    pairs = [[(ours[key], other[key]) for key in ours if key[0] == table and key in other] for table in tables]
    value = np.mean([np.mean([a.macro_f1 - b.macro_f1 for a, b in pair]) for pair in pairs])
    draws = np.mean([np.mean([a.resampled - b.resampled for a, b in pair], axis=0) for pair in pairs], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(value), float(low), float(high)


def report(given: argparse.Namespace) -> None:
    """Print the saved results as Markdown."""
    print(
        f"Model {given.model}, scored on {'the test texts' if given.on == 'test' else 'folds of the training texts'}. "
        "Choose settings on folds only. Values are means over seeds; ECE has 15 bins. plain has two values of seconds: "
        "the best of its settings alone, and all six. The last column is the difference in macro-F1 over the runs that "
        "both have, with a 95 % bootstrap interval over the scored texts. Each resample draws a text equally often for "
        "all seeds. The interval does not show the variation from the choice of the labelled texts."
    )
    for size in given.sizes:
        found: dict[str, dict[tuple[str, int], Score]] = {}
        texts = {}
        for table, seed in itertools.product(given.tables, range(given.seeds)):
            files = {c: result_file(given, table, size, c, seed) for c in given.contenders}
            files = {c: file for c, file in files.items() if file.is_file()}
            if not files:
                continue
            labelled, scored = draw(given.data / table, size, seed, given.on, given.scored)
            numbers = np.unique(pd.concat([labelled, scored])["Label"])
            texts[table], targets = len(labelled), np.searchsorted(numbers, scored["Label"])
            drawn = resamples(table, scored.index.to_numpy())
            for contender, file in files.items():
                result = json.loads(file.read_text())
                if result["draw"] != checksum(labelled, scored):
                    raise SystemExit(f"{file} comes from other texts: delete it, or pass another --output")
                found.setdefault(contender, {})[table, seed] = score(targets, drawn, result)
        if found:
            print_size(size, found, texts)


def resamples(table: str, rows: np.ndarray) -> np.ndarray:
    """Return how often each resample draws each row of a table (Poisson bootstrap), shape (resamples, rows)."""
    rng = np.random.default_rng(zlib.crc32(table.encode()))
    return rng.poisson(1, (rows.max() + 1, RESAMPLES)).astype(np.uint8)[rows].T


def print_size(size: str, found: dict[str, dict[tuple[str, int], Score]], texts: dict[str, int]) -> None:
    """Print two tables for a size: the scores of the contenders, and the calibration of bertsmith.

    Args:
        size: as in `draw`.
        found: scores by contender, then by table and seed.
        texts: number of labelled texts by table.
    """
    print(f"\n## {'all texts' if size == 'all' else f'{size} texts' + ' per class' * (int(size) <= A_CLASS)}\n")
    print_row("table", "texts", "contender", "seeds", "macro-F1", "ECE", "seconds", "bertsmith is ahead by")
    print_row(*["---"] * 8)
    for table in (*texts, None) if len(texts) > 1 else texts:
        for contender, runs in found.items():
            some = {key: run for key, run in runs.items() if table in (key[0], None)}
            if not some:
                continue
            n_tables, seeds = (len({key[i] for key in some}) for i in (0, 1))
            name, n = (f"mean of {n_tables}", "") if table is None else (table, f"{texts[table]:,}")
            seconds = f"{mean(some, lambda run: run.result['seconds']):,.0f}"
            if contender == "plain":
                seconds = f"{mean(some, lambda run: run.result['seconds'] - run.result['of_others']):,.0f}, {seconds}"
            lead = ""
            if contender != "ours" and not some.keys().isdisjoint(found.get("ours", {})):
                lead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*ahead(found["ours"], some))
            values = [f"{mean(some, value):.3f}" for value in (lambda run: run.macro_f1, lambda run: run.ece)]
            print_row(name, n, contender, seeds, *values, seconds, lead)
    if "ours" in found:
        print_confidence(found["ours"])


def mean(runs: dict[tuple[str, int], Score], value: Callable[[Score], float]) -> float:
    """Return the mean over seeds, and then over tables."""
    return float(pd.Series({key: value(run) for key, run in runs.items()}).groupby(level=0).mean().mean())


def print_confidence(runs: dict[tuple[str, int], Score]) -> None:
    """Print the calibration of the runs of bertsmith, and the coverage of their label sets."""
    print()
    print_row("table", "seed", "ECE", "before calibration", "temperature", "90 % sets with the true label", "expected")
    print_row(*["---"] * 7)
    for (table, seed), run in runs.items():
        sets = next(e for e in run.result["conformal"] if e["coverage"] == 0.9)
        figures = [f"{value:.3f}" for value in (run.ece, run.result["ece_before"], run.result["temperature"])]
        figures += [f"{sets['empirical_coverage']:.3f}", "{:.3f} to {:.3f}".format(*sets["expected"])]
        print_row(table, seed, *figures)


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


# -- running -----------------------------------------------------------------------------------------------------------


def result_file(given: argparse.Namespace, table: str, size: str, contender: str, seed: int) -> Path:
    """Return the file for the result of a run."""
    model = Path(given.model.removeprefix("packaged:")).name
    return given.output / f"{given.on}-{model}" / f"{table}-{size}-{contender}-{seed}.json"


def checksum(labelled: pd.DataFrame, scored: pd.DataFrame) -> int:
    """Return a checksum of a draw."""
    return zlib.crc32(json.dumps([labelled.index.tolist(), scored.index.tolist()]).encode())


def run(given: argparse.Namespace, table: str, size: str, contender: str, seed: int) -> bool:
    """Run a contender unless its result is saved, save the result, and return whether the run succeeded."""
    from bertsmith.model import checkpoint

    file = result_file(given, table, size, contender, seed)
    if file.is_file():
        return True
    name = f"{table}, {size}, {contender}, seed {seed}"
    if contender == "setfit" and (given.setfit_python is None or size == "all" or int(size) > SETFIT_MOST):
        why = "needs --setfit-python" if given.setfit_python is None else f"at most {SETFIT_MOST} texts per class"
        print(f"{name}: skipped ({why})", file=sys.stderr)
        return True
    model = given.model if contender == "ours" else str(checkpoint.resolve(given.model).path)
    labelled, scored = draw(given.data / table, size, seed, given.on, given.scored)
    with tempfile.TemporaryDirectory() as folder:
        labelled.to_csv(Path(folder) / "labelled.csv", index=False)
        scored.to_csv(Path(folder) / "scored.csv", index=False)
        command = [given.setfit_python if contender == "setfit" else sys.executable, __file__, "--model", model]
        command += ["--threads", str(given.threads), "--one", contender, folder, str(seed)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(given.threads))
        began = time.perf_counter()
        env = {**os.environ, **threads, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        seconds = round(time.perf_counter() - began, 1)
        if done.returncode:
            print(f"{done.stderr[-2000:]}\n{name}: failed", file=sys.stderr)
            return False
        found = json.loads((Path(folder) / "found.json").read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"seconds": seconds, "threads": given.threads, "draw": checksum(labelled, scored)}
    file.write_text(json.dumps({**about, **found}))
    print(f"{name}: {seconds:,.0f} s", file=sys.stderr)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"), help="folder for the results")
    parser.add_argument("--tables", nargs="+", default=TABLES, help="names of folders in --data")
    parser.add_argument(
        "--sizes", nargs="+", default=SIZES, help=f"texts per class up to {A_CLASS}, texts in total above it, or all"
    )
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument(
        "--on", default="folds", choices=("folds", "test"), help="texts to score; choose settings on folds"
    )
    parser.add_argument("--model", default="packaged:minilm", help="checkpoint: packaged:minilm or a folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--setfit-python", help="Python interpreter with SetFit, for this contender")
    parser.add_argument("--report-only", action="store_true", help="print the saved results without a run")
    parser.add_argument("--scored", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        contender, folder, seed = given.one
        run_one(contender, Path(folder), int(seed), given.model, given.threads)
        return 0
    succeeded = True
    if not given.report_only:
        for size, table, seed in itertools.product(given.sizes, given.tables, range(given.seeds)):
            for contender in given.contenders:
                succeeded &= run(given, table, size, contender, seed)
    report(given)
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
