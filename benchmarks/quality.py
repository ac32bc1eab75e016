"""Our defaults, the plain recipe of Hugging Face, and a bag of words, on real tables: how good, and how long.

Every run is a process of its own, timed whole, from start to test probabilities. What was run is kept and not run
again, so that the table can be made in pieces: delete the output folder to begin anew. The contenders get the same
training, validation and test texts; those of one table and seed are run one after the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

TABLES = ("tweet_emotion", "banking77", "clinc150_imbalanced", "reuters_r8")
CONTENDERS = ("ours", "plain", "words")
MODEL = "packaged:minilm"
RESAMPLES = 1000
PLAIN_TOKENS = 128  # the default of the example script of transformers


def parts(folder: Path, seed: int) -> dict[str, pd.DataFrame]:
    """Return train, validation and test; a tenth of train is held out where no validation table is there."""
    from sklearn.model_selection import train_test_split

    tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    if "val" not in tables:
        tables["train"], tables["val"] = train_test_split(
            tables["train"], test_size=0.1, random_state=seed, stratify=tables["train"]["Label"]
        )
    return tables


def ours(tables: dict[str, pd.DataFrame], seed: int, settings: dict) -> tuple[np.ndarray, dict]:
    """Train with no setting but the checkpoint; return predictions and what the run says of its own confidence."""
    import bertsmith as bs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, table in tables.items():
            table.to_csv(folder / f"{split}.csv", index=False)
        run = bs.train(
            folder / "train.csv",
            output=folder / "run",
            validation=str(folder / "val.csv"),
            test=str(folder / "test.csv"),
            model=MODEL,
            seed=seed,
            on_event=lambda e: sys.stderr.write(f"{e}\n") if type(e).__name__ == "Evaluated" else None,
            **settings,
        )
        frame = run.predictions.sort_values("row")
        kept = np.full(len(tables["test"]), -1)
        kept[frame["row"] - 1] = frame["predicted"]
        metrics = run.metrics
        said = {
            "ece": metrics["splits"]["test"]["calibration"]["expected_calibration_error"],
            "ece_before": metrics["splits"]["test"]["calibration"]["before"]["expected_calibration_error"],
            "conformal": metrics["abstention"]["conformal"],
            "recipe": run.info["recipe"],
            "rule": metrics["decision_rule"]["used"],
            "epochs": run.info["training"]["epoch"],
        }
    return kept, said


def plain(tables: dict[str, pd.DataFrame], seed: int, settings: dict) -> np.ndarray:
    """Train as transformers shows: 3 epochs, 5e-5 linear, 32 texts padded to the longest, cut after 128 tokens."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from bertsmith.model import checkpoint

    folder = checkpoint.resolve(MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = sorted(tables["train"]["Label"].unique())
    index = {number: i for i, number in enumerate(numbers)}
    encoded = {
        name: Dataset.from_dict(
            {
                **tokenizer(table["Text"].astype(str).tolist(), truncation=True, max_length=PLAIN_TOKENS),
                "labels": [index[number] for number in table["Label"]],
            }
        )
        for name, table in tables.items()
    }
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(numbers))
    with tempfile.TemporaryDirectory() as name:
        arguments = TrainingArguments(
            output_dir=name,
            num_train_epochs=3,
            learning_rate=5e-5,
            lr_scheduler_type="linear",
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            eval_strategy="epoch",
            save_strategy="no",
            seed=seed,
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=encoded["train"],
            eval_dataset=encoded["val"],
        )
        trainer.train()
        logits = trainer.predict(encoded["test"]).predictions
    return np.array(numbers)[logits.argmax(axis=1)]


def words(tables: dict[str, pd.DataFrame], seed: int, settings: dict) -> np.ndarray:
    """Fit the bag of words that stands beside every model of ours."""
    from bertsmith.evaluation.baseline import bag_of_words

    numbers, targets = np.unique(tables["train"]["Label"], return_inverse=True)
    fitted = bag_of_words(
        tables["train"]["Text"].astype(str).tolist(),
        targets,
        tables["test"]["Text"].astype(str).tolist(),
        n_classes=len(numbers),
        seed=seed,
    )
    return numbers[fitted.probabilities.argmax(axis=1)]


def run_one(contender: str, data: Path, seed: int, kept: Path, settings: dict) -> None:
    """Run in this process and keep the predicted label numbers of the test texts."""
    tables = parts(data, seed)
    found = {"ours": ours, "plain": plain, "words": words}[contender](tables, seed, settings)
    predicted, said = found if isinstance(found, tuple) else (found, {})
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({**said, "predicted": [int(p) for p in predicted]}))


def scores(targets: np.ndarray, runs: list[np.ndarray]) -> tuple[float, float]:
    """Return mean macro-F1 and mean accuracy over seeds; classes by index."""
    from bertsmith.evaluation.intervals import from_pairs

    n_classes = int(max(targets.max(), *(run.max() for run in runs))) + 1
    values = [from_pairs(targets, run, n_classes) for run in runs]
    return float(np.mean([v["macro_f1"] for v in values])), float(np.mean([v["accuracy"] for v in values]))


def report(data: Path, output: Path, tables: list[str], contenders: list[str], seeds: int) -> None:
    """Print what is kept as a Markdown table; intervals are a bootstrap over the test texts, of the mean over seeds."""
    rng = np.random.default_rng(0)
    print(
        "| table | contender | seeds | macro-F1 | accuracy | seconds | ours is ahead by (macro-F1) |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for table in tables:
        numbers = pd.read_csv(data / table / "test.csv")["Label"].to_numpy()
        names, targets = np.unique(numbers, return_inverse=True)
        runs: dict[str, list[np.ndarray]] = {}
        seconds: dict[str, list[float]] = {}
        for contender in contenders:
            for seed in range(seeds):
                path = output / f"{table}-{contender}-{seed}.json"
                if path.is_file():
                    kept = json.loads(path.read_text())
                    found = np.array(kept["predicted"])
                    # A class that no test text has, or no prediction at all, is one more index: always wrong.
                    known = np.isin(found, names)
                    index = np.where(known, np.searchsorted(names, np.where(known, found, names[0])), len(names))
                    runs.setdefault(contender, []).append(index)
                    if kept["seconds"] is not None:  # as where other work was done beside it
                        seconds.setdefault(contender, []).append(kept["seconds"])
        draws = [rng.integers(0, len(targets), len(targets)) for _ in range(RESAMPLES)]
        means = {c: [scores(targets[d], [r[d] for r in rs])[0] for d in draws] for c, rs in runs.items()}
        for contender, of_seeds in runs.items():
            value, accuracy = scores(targets, of_seeds)
            low, high = np.percentile(means[contender], [2.5, 97.5])
            ahead = ""
            if contender != "ours" and "ours" in runs:
                difference = np.subtract(means["ours"], means[contender])
                below, above = np.percentile(difference, [2.5, 97.5])
                ahead = f"{scores(targets, runs['ours'])[0] - value:+.3f} [{below:+.3f}, {above:+.3f}]"
            print(
                f"| {table} | {contender} | {len(of_seeds)} | {value:.3f} [{low:.3f}, {high:.3f}] | {accuracy:.3f} "
                f"| {np.mean(seconds[contender]):,.0f} | {ahead} |"
            )
    confidence(output, tables, seeds)


def confidence(output: Path, tables: list[str], seeds: int) -> None:
    """Print how far the confidence of our runs can be believed, and whether their label sets keep their promise."""
    print(
        "\n| table | seed | ECE on test | before calibration | true label in sets of 90 % | by the threshold alone "
        "| expected | labels a set |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for table in tables:
        for seed in range(seeds):
            path = output / f"{table}-ours-{seed}.json"
            if path.is_file():
                kept = json.loads(path.read_text())
                sets = next(e for e in kept["conformal"] if e["coverage"] == 0.9)
                low, high = sets["expected"]
                print(
                    f"| {table} | {seed} | {kept['ece']:.3f} | {kept['ece_before']:.3f} "
                    f"| {sets['empirical_coverage']:.3f} | {sets.get('by_threshold', np.nan):.3f} "
                    f"| {low:.3f} to {high:.3f} | {sets['mean_labels']:.2f} |"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"), help="where what was run is kept")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, for a trial of something else")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "TABLE", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        contender, table, seed = given.one
        kept = given.output / f"{table}-{contender}-{seed}.json"
        run_one(contender, given.data / table, int(seed), kept, given.settings)
        return 0
    for table in given.tables:
        for seed in range(given.seeds):
            for contender in given.contenders:
                kept = given.output / f"{table}-{contender}-{seed}.json"
                if kept.is_file():
                    continue
                command = [sys.executable, __file__, "--one", contender, table, str(seed), "--data", str(given.data)]
                command += ["--output", str(given.output), "--settings", json.dumps(given.settings)]
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds = time.perf_counter() - began
                kept.write_text(json.dumps({"seconds": round(seconds, 1), **json.loads(kept.read_text())}))
                print(f"{table}, {contender}, seed {seed}: {seconds:,.0f} s", file=sys.stderr)
    report(given.data, given.output, given.tables, given.contenders, given.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
