"""Our defaults beside what people use instead, from eight texts a class upwards: how good, how sure, and how long.

- ``ours``: `bertsmith.train` on all labelled texts as one table, with no setting but the checkpoint.
- ``plain``: `transformers.Trainer`, 3 epochs, batches of 8, 16 and 32 with 2e-5 and 5e-5; the best of the six.
- ``frozen``: logistic regression on mean embeddings of the same checkpoint.
- ``words``: a linear SVM on TF-IDF features, as in every report of ours.
- ``setfit``: SetFit with 20 iterations and the same checkpoint, up to 64 texts a class, by an interpreter of its own.

Everybody gets the same labelled texts, a pure function of table, size and seed, whatever they hold out of them. On
folds (the default, and what choices are made on) both the labelled and the scored texts are training texts; on test
the labelled ones are drawn from train and validation. Every run is a process of its own, timed whole, offline. What was
run is kept and not run again: delete the output folder to begin anew.
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
MOST = 10_000  # labelled texts, where all are to be
SCORED = 2_000  # on folds, at most; and at most a third of the table
A_CLASS = 200  # sizes up to this one are texts a class, larger ones texts in all
SETFIT_MOST = 64  # texts a class: beyond, it takes hours
PLAIN_TOKENS = 128  # the default of the example script of transformers
FROZEN_TOKENS = 256  # of sentence-transformers with MiniLM
RESAMPLES = 1000


# -- which texts -------------------------------------------------------------------------------------------------------


def draw(folder: Path, size: str, seed: int, on: str, most: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the labelled and the scored texts of a table; their index says which rows of it they are.

    No text is in both, and no labelled text is there twice. The scored texts of a seed are the same for every size, and
    a smaller size is a part of a larger one. On folds a class gives at most two thirds of its texts.

    Args:
        folder: of ``train.csv``, ``test.csv`` and maybe ``val.csv``, with the columns ``Label`` and ``Text``.
        size: texts a class, texts in all if above `A_CLASS`, or ``all``.
        seed: of the draw.
        on: ``folds`` or ``test``.
        most: score that many texts at most.
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
    """Return the rows in random order, every first part of which has the classes in the shares of the whole."""
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    classes = table.groupby("Label")["Label"]
    return table.iloc[np.argsort((classes.cumcount() + 0.5) / classes.transform("size"), kind="stable")]


# -- contenders: each returns probabilities of the scored texts, shape (texts, classes), and what else to keep ---------


class Task(NamedTuple):
    """What a contender gets: labelled texts with their classes, shape (n,), the scored texts, and how to run."""

    folder: Path
    texts: list[str]
    targets: np.ndarray
    numbers: np.ndarray
    others: list[str]
    seed: int
    model: str
    threads: int


def ours(task: Task) -> tuple[np.ndarray, dict]:
    """Train with no setting but the checkpoint."""
    import bertsmith as bs

    with tempfile.TemporaryDirectory() as name:
        settings = {"model": task.model, "seed": task.seed, "threads": task.threads}
        files = {"table": task.folder / "labelled.csv", "test": str(task.folder / "scored.csv")}
        run = bs.train(**files, output=Path(name) / "run", **settings)
        frame, numbers, metrics, info = run.predictions, run.labels.numbers, run.metrics, run.info
    said = np.zeros((len(task.others), len(task.numbers)))  # a text without a prediction has no class
    rows = frame["row"].to_numpy()[:, None] - 1
    said[rows, np.searchsorted(task.numbers, numbers)] = np.stack(frame["probabilities"])
    calibration = metrics["splits"]["test"]["calibration"]
    return said, {
        "recipe": info["recipe"],
        "epochs": info["training"]["epoch"],
        "rule": metrics["decision_rule"]["used"],
        "temperature": calibration["temperature"],
        "ece_before": calibration["before"]["expected_calibration_error"],
        "conformal": metrics["abstention"]["conformal"],
    }


def plain(task: Task) -> tuple[np.ndarray, dict]:
    """Train as transformers shows, six times; macro-F1 on a tenth decides, and the loss there between equal ones."""
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
    runs, best, kept = [], (-1.0, 0.0), None
    for batch, rate in itertools.product((8, 16, 32), (2e-5, 5e-5)):
        began = time.perf_counter()
        transformers.set_seed(task.seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(task.model, num_labels=len(classes))
        with tempfile.TemporaryDirectory() as name:
            given = transformers.TrainingArguments(name, per_device_train_batch_size=batch, learning_rate=rate, **usual)
            trainer = transformers.Trainer(model, given, collator, train_dataset=train)
            trainer.train()
            said = trainer.predict(validation)
        score = f1_score(y[held_out], said.predictions.argmax(axis=1), average="macro", zero_division=0)
        by = (float(score), -float(said.metrics["test_loss"]))
        if by > best:
            best, kept = by, trainer
        runs.append({"batch": batch, "rate": rate, "by": by, "seconds": time.perf_counter() - began})
    logits = kept.predict(encoded(task.others)).predictions
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    others = sum(run["seconds"] for run in runs if run["by"] != best)
    return _spread(task, classes, p / p.sum(axis=1, keepdims=True)), {"runs": runs, "of_others": others}


def tenth(targets: np.ndarray, seed: int) -> np.ndarray:
    """Return which texts to hold out, shape (n,): a tenth of each class, and one at least of a class with two."""
    held_out = np.zeros(len(targets), dtype=bool)
    rng = np.random.default_rng(seed)
    for c in np.unique(targets):
        rows = rng.permutation(np.flatnonzero(targets == c))
        held_out[rows[: max(round(len(rows) / 10), len(rows) > 1)]] = True
    return held_out


def frozen(task: Task) -> tuple[np.ndarray, dict]:
    """Fit a logistic regression (C=1, the head of SetFit too) on normalised mean embeddings."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, body = AutoTokenizer.from_pretrained(task.model), AutoModel.from_pretrained(task.model)
    body = body.to(device).eval()

    @torch.inference_mode()
    def embeddings(texts: list[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in texts])  # texts of like length share a batch
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
    return _spread(task, head.classes_, head.predict_proba(embeddings(task.others))), {}


def words(task: Task) -> tuple[np.ndarray, dict]:
    """Fit the bag of words that stands beside every model of ours."""
    from bertsmith.evaluation.baseline import bag_of_words

    n_classes = len(task.numbers)
    return bag_of_words(task.texts, task.targets, task.others, n_classes=n_classes, seed=task.seed).scores, {}


def setfit(task: Task) -> tuple[np.ndarray, dict]:
    """Train as SetFit shows: 20 iterations of pairs, one epoch, batches of 16, a logistic regression on top."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    fitted = SetFitModel.from_pretrained(task.model)
    usual = {"save_strategy": "no", "report_to": "none", "show_progress_bar": False, "seed": task.seed}
    with tempfile.TemporaryDirectory() as name:
        given = TrainingArguments(name, num_iterations=20, num_epochs=1, batch_size=16, **usual)
        data = Dataset.from_dict({"text": task.texts, "label": task.targets.tolist()})
        Trainer(model=fitted, args=given, train_dataset=data).train()
    return _spread(task, fitted.model_head.classes_, fitted.predict_proba(task.others, as_numpy=True)), {}


CONTENDERS = {"ours": ours, "plain": plain, "frozen": frozen, "words": words, "setfit": setfit}


def _spread(task: Task, classes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities of all classes from those of the classes that have labelled texts."""
    whole = np.zeros((len(probabilities), len(task.numbers)))
    whole[:, classes] = probabilities
    return whole


def run_one(contender: str, folder: Path, seed: int, model: str, threads: int) -> None:
    """Run in this process on the tables in a folder; keep classes as places in the sorted labels of both tables."""
    labelled, scored = _read(folder / "labelled.csv"), _read(folder / "scored.csv")
    numbers = np.unique(pd.concat([labelled, scored])["Label"])
    targets = np.searchsorted(numbers, labelled["Label"])
    task = Task(folder, labelled["Text"].tolist(), targets, numbers, scored["Text"].tolist(), seed, model, threads)
    said, more = CONTENDERS[contender](task)
    predicted = np.where(said.any(axis=1), said.argmax(axis=1), -1).tolist()
    kept = {"predicted": predicted, "confidence": said.max(axis=1).round(4).tolist(), **more}
    (folder / "found.json").write_text(json.dumps(kept))


# -- the report --------------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """Of one run: macro-F1, the same over resamples, shape (resamples,), calibration error, and what was kept."""

    macro_f1: float
    resampled: np.ndarray
    ece: float
    kept: dict


def score(targets: np.ndarray, drawn: np.ndarray, kept: dict) -> Score:
    """Score a run.

    Args:
        targets: class indices, shape (n,).
        drawn: how often each resample draws each text, shape (resamples, n).
        kept: ``predicted`` and ``confidence``.
    """
    from bertsmith.evaluation.intervals import label_metrics, resampled_label_metrics

    predicted, confidence = np.array(kept["predicted"]), np.array(kept["confidence"])
    n_classes = int(max(targets.max(), predicted.max())) + 2
    index = np.where(predicted < 0, n_classes - 1, predicted)  # no prediction: one more class, always wrong
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = np.bincount(bins, weights=confidence - (targets == predicted), minlength=15)
    return Score(
        label_metrics(targets, index, n_classes)["macro_f1"],
        resampled_label_metrics(drawn, targets, index, n_classes)["macro_f1"],
        float(abs(gaps).sum() / len(targets)),
        kept,
    )


def ahead(ours: dict, other: dict) -> tuple[float, float, float]:
    """Return by how much ours is ahead in macro-F1, over the runs that both have, and the 95 % interval of that.

    Args:
        ours, other: a `Score` by table and seed. Seeds weigh alike within a table, and tables weigh alike.
    """
    tables = sorted({table for table, seed in ours if (table, seed) in other})
    pairs = [[(ours[key], other[key]) for key in ours if key[0] == table and key in other] for table in tables]
    value = np.mean([np.mean([a.macro_f1 - b.macro_f1 for a, b in pair]) for pair in pairs])
    draws = np.mean([np.mean([a.resampled - b.resampled for a, b in pair], axis=0) for pair in pairs], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(value), float(low), float(high)


def report(given: argparse.Namespace) -> None:
    """Print what is kept as Markdown."""
    print(
        f"Model {given.model}, scored on {'the test texts' if given.on == 'test' else 'folds of the training texts'}. "
        "Choices are made on folds. Figures are means over seeds; ECE has 15 bins; seconds of plain are those with the "
        "best of its settings alone, and with all six. The last column is in macro-F1, over the runs that both have, "
        "with a 95 % bootstrap interval over the scored texts. A text scored under several seeds is drawn as often "
        "under each; the draw of the labelled texts is not in the interval."
    )
    for size in given.sizes:
        found: dict[str, dict[tuple[str, int], Score]] = {}
        texts = {}
        for table, seed in itertools.product(given.tables, range(given.seeds)):
            files = {c: kept_at(given, table, size, c, seed) for c in given.contenders}
            files = {c: file for c, file in files.items() if file.is_file()}
            if not files:
                continue
            labelled, scored = draw(given.data / table, size, seed, given.on, given.scored)
            numbers = np.unique(pd.concat([labelled, scored])["Label"])
            texts[table], targets = len(labelled), np.searchsorted(numbers, scored["Label"])
            drawn = resamples(table, scored.index.to_numpy())
            for contender, file in files.items():
                kept = json.loads(file.read_text())
                if kept["draw"] != checksum(labelled, scored):
                    raise SystemExit(f"{file} is of other texts: delete it, or give another --output")
                found.setdefault(contender, {})[table, seed] = score(targets, drawn, kept)
        if found:
            print_size(size, found, texts)


def resamples(table: str, rows: np.ndarray) -> np.ndarray:
    """Return how often each resample draws each row of a table (Poisson bootstrap), shape (resamples, rows)."""
    rng = np.random.default_rng(zlib.crc32(table.encode()))
    return rng.poisson(1, (rows.max() + 1, RESAMPLES)).astype(np.uint8)[rows].T


def print_size(size: str, found: dict[str, dict[tuple[str, int], Score]], texts: dict[str, int]) -> None:
    """Print the tables of a size: the contenders, and how far the confidence of ours can be believed.

    Args:
        size: as `draw` takes it.
        found: scores by contender, then by table and seed.
        texts: number of labelled texts by table.
    """
    print(f"\n## {'all texts' if size == 'all' else f'{size} texts' + ' a class' * (int(size) <= A_CLASS)}\n")
    print_row("table", "texts", "contender", "seeds", "macro-F1", "ECE", "seconds", "ours is ahead by")
    print_row(*["---"] * 8)
    for table in (*texts, None) if len(texts) > 1 else texts:
        for contender, runs in found.items():
            some = {key: run for key, run in runs.items() if table in (key[0], None)}
            if not some:
                continue
            n_tables, seeds = (len({key[i] for key in some}) for i in (0, 1))
            name, n = (f"mean of {n_tables}", "") if table is None else (table, f"{texts[table]:,}")
            seconds = f"{mean(some, lambda run: run.kept['seconds']):,.0f}"
            if contender == "plain":
                seconds = f"{mean(some, lambda run: run.kept['seconds'] - run.kept['of_others']):,.0f}, {seconds}"
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
    """Print how far the confidence of our runs can be believed, and whether their label sets keep their promise."""
    print()
    print_row("table", "seed", "ECE", "before calibration", "temperature", "true label in sets of 90 %", "expected")
    print_row(*["---"] * 7)
    for (table, seed), run in runs.items():
        sets = next(e for e in run.kept["conformal"] if e["coverage"] == 0.9)
        figures = [f"{value:.3f}" for value in (run.ece, run.kept["ece_before"], run.kept["temperature"])]
        figures += [f"{sets['empirical_coverage']:.3f}", "{:.3f} to {:.3f}".format(*sets["expected"])]
        print_row(table, seed, *figures)


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


# -- running -----------------------------------------------------------------------------------------------------------


def kept_at(given: argparse.Namespace, table: str, size: str, contender: str, seed: int) -> Path:
    """Return the file of a run."""
    model = Path(given.model.removeprefix("packaged:")).name
    return given.output / f"{given.on}-{model}" / f"{table}-{size}-{contender}-{seed}.json"


def checksum(labelled: pd.DataFrame, scored: pd.DataFrame) -> int:
    """Return a number that tells draws apart."""
    return zlib.crc32(json.dumps([labelled.index.tolist(), scored.index.tolist()]).encode())


def run(given: argparse.Namespace, table: str, size: str, contender: str, seed: int) -> bool:
    """Run a contender unless that was done, keep what it found, and return whether that went well."""
    from bertsmith.model import checkpoint

    kept = kept_at(given, table, size, contender, seed)
    if kept.is_file():
        return True
    name = f"{table}, {size}, {contender}, seed {seed}"
    if contender == "setfit" and (given.setfit_python is None or size == "all" or int(size) > SETFIT_MOST):
        why = "no --setfit-python" if given.setfit_python is None else f"for up to {SETFIT_MOST} texts a class"
        print(f"{name}: left out, {why}", file=sys.stderr)
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
    kept.parent.mkdir(parents=True, exist_ok=True)
    about = {"seconds": seconds, "threads": given.threads, "draw": checksum(labelled, scored)}
    kept.write_text(json.dumps({**about, **found}))
    print(f"{name}: {seconds:,.0f} s", file=sys.stderr)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"), help="where what was run is kept")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument(
        "--sizes", nargs="+", default=SIZES, help=f"texts a class up to {A_CLASS}, in all above, or all"
    )
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--on", default="folds", choices=("folds", "test"), help="what is scored; choose on folds")
    parser.add_argument("--model", default="packaged:minilm", help="checkpoint: packaged:minilm or a folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--setfit-python", help="interpreter that has setfit, for that contender")
    parser.add_argument("--report-only", action="store_true", help="print what is kept, run nothing")
    parser.add_argument("--scored", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        contender, folder, seed = given.one
        run_one(contender, Path(folder), int(seed), given.model, given.threads)
        return 0
    well = True
    if not given.report_only:
        for size, table, seed in itertools.product(given.sizes, given.tables, range(given.seeds)):
            for contender in given.contenders:
                well &= run(given, table, size, contender, seed)
    report(given)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
