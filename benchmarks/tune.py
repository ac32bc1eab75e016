"""Compare `bertsmith.tune` with `Trainer.hyperparameter_search` in the same time.

Each study is a separate process on one core. All studies have the same time limit, and only trials that end before it
count. Both contenders get the same texts: a sample of the training texts, and all validation and test texts. With a
sample, several trials fit in the time. Texts are truncated to the same number of tokens. Each contender then trains its
winner again and scores it on the test split. The two contenders of a table and seed run at the same time, on one core
each. The script saves all results, and does not repeat finished studies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

TABLES = ("tweet_emotion", "reuters_r8")
CONTENDERS = ("trainer", "ours")
MODEL = "packaged:minilm"
TOKENS = 32
TRAIN_TEXTS = 600


def to_texts(folder: Path, seed: int) -> dict[str, pd.DataFrame]:
    """Return the train, validation and test splits. Without a validation table, hold out a tenth of train."""
    from sklearn.model_selection import train_test_split

    tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    if "val" not in tables:
        tables["train"], tables["val"] = train_test_split(
            tables["train"], test_size=0.1, random_state=seed, stratify=tables["train"]["Label"]
        )
    tables["train"], _ = train_test_split(
        tables["train"], train_size=TRAIN_TEXTS, random_state=seed, stratify=tables["train"]["Label"]
    )
    return tables


def macro_f1(targets: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predicted, average="macro", labels=np.unique(targets)))


def trainer(tables: dict[str, pd.DataFrame], seed: int, minutes: float, began: float) -> dict:
    """Search as in the documentation of transformers, and train the winner again."""
    import optuna
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from bertsmith.model import checkpoint

    folder = checkpoint.resolve(MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = sorted(tables["train"]["Label"].unique())
    encoded = {
        name: Dataset.from_dict(
            {
                **tokenizer(table["Text"].astype(str).tolist(), truncation=True, max_length=TOKENS),
                "labels": [numbers.index(number) for number in table["Label"]],
            }
        )
        for name, table in tables.items()
    }

    def searched(values: dict) -> Trainer:
        return Trainer(
            None,
            TrainingArguments(
                output_dir=name,
                eval_strategy="epoch",
                save_strategy="no",
                seed=seed,
                report_to="none",
                disable_tqdm=True,
                **values,
            ),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=encoded["train"],
            eval_dataset=encoded["val"],
            compute_metrics=lambda p: {"macro_f1": macro_f1(p.label_ids, p.predictions.argmax(axis=1))},
            model_init=lambda: AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(numbers)),
        )

    def space(trial: optuna.Trial) -> dict:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
            "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32, 64, 128]),
        }

    class RecordingSampler(optuna.samplers.TPESampler):
        """Optuna's default sampler, which also records how trials end. The search does not return its study."""

        def after_trial(self, study, trial, state, values):
            super().after_trial(study, trial, state, values)
            ended.append((time.time() - began, state.name.lower(), values[0] if values else None, dict(trial.params)))

    ended: list[tuple[float, str, float | None, dict]] = []
    with tempfile.TemporaryDirectory() as name:
        searched({}).hyperparameter_search(
            hp_space=space,
            compute_objective=lambda metrics: metrics["eval_macro_f1"],
            n_trials=1000,
            direction="maximize",
            backend="optuna",
            sampler=RecordingSampler(seed=seed),
            timeout=60 * minutes - (time.time() - began),
        )
        in_time = [e for e in ended if e[0] <= 60 * minutes]
        complete = [e for e in in_time if e[1] == "complete"]
        best = max(complete, key=lambda e: e[2], default=None)
        final = searched(best[3] if best else {})
        final.train()
        predicted = final.predict(encoded["test"]).predictions.argmax(axis=1)
    return {
        "trials": [{"seconds": s, "state": state, "score": value} for s, state, value, _ in in_time],
        "settings": best[3] if best else {},
        "test": macro_f1(encoded["test"]["labels"], predicted),
    }


def ours(tables: dict[str, pd.DataFrame], seed: int, minutes: float, began: float) -> dict:
    """Search with `bertsmith.tune`. The score of a trial is its best evaluation, without a decision rule."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    import bertsmith as bs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, table in tables.items():
            table.to_csv(folder / f"{split}.csv", index=False)
        study = bs.tune(
            folder / "train.csv",
            output=folder / "study",
            trials=None,
            minutes=minutes - (time.time() - began) / 60,
            validation=str(folder / "val.csv"),
            test=str(folder / "test.csv"),
            model=MODEL,
            max_length=TOKENS,
            seed=seed,
        )
        curves = {t["number"]: t["curve"] for t in study.info["trials"]}
        journal = JournalStorage(JournalFileBackend(str(folder / "study" / "journal.log")))
        trials = []
        for trial in optuna.load_study(study_name=None, storage=journal).get_trials():
            if trial.number in curves and trial.datetime_complete is not None:
                seconds = trial.datetime_complete.timestamp() - began
                state = trial.state.name.lower()
                score = max((s for _, s in curves[trial.number]), default=None)
                if seconds <= 60 * minutes and state in ("complete", "pruned"):
                    trials.append({"seconds": seconds, "state": state, "score": score if state == "complete" else None})
        frame = study.best.predictions
        predicted = np.full(len(tables["test"]), -1)  # a dropped row counts as wrong
        predicted[frame["row"] - 1] = frame["predicted"]
        return {
            "trials": trials,
            "settings": study.result["settings"],
            "defaults": study.result["defaults"]["test"]["value"],
            "test": macro_f1(tables["test"]["Label"].to_numpy(), predicted),
        }


def run_one(contender: str, data: Path, table: str, seed: int, minutes: float, file: Path) -> None:
    """Run a study in this process, and save its result in a file."""
    began = time.time()
    tables = to_texts(data / table, seed)
    found = {"trainer": trainer, "ours": ours}[contender](tables, seed, minutes, began)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"minutes": minutes, "when": f"{datetime.now():%Y-%m-%d}", **found}))


def best_by(trials: list[dict], seconds: float) -> float:
    """Return the best score of the trials that ended in these seconds; NaN without such a trial."""
    return max((t["score"] for t in trials if t["score"] is not None and t["seconds"] <= seconds), default=float("nan"))


def report(output: Path, tables: list[str], seeds: int) -> None:
    """Print the saved results as a Markdown table, and when bertsmith reached the final score of trainer."""
    print(
        "| table | seed | contender | finished trials (pruned) | best validation score after 1/4, 1/2, all of the "
        "time | test macro-F1 | bertsmith reached the final score of trainer after |\n" + "| --- " * 7 + "|"
    )
    for table in tables:
        shares, tests = [], {c: [] for c in CONTENDERS}
        for seed in range(seeds):
            paths = {c: output / f"{table}-{c}-{seed}.json" for c in CONTENDERS}
            if not all(path.is_file() for path in paths.values()):
                continue
            found = {c: json.loads(path.read_text()) for c, path in paths.items()}
            goal = best_by(found["trainer"]["trials"], np.inf)
            reached = [
                t["seconds"] for t in found["ours"]["trials"] if t["score"] is not None and not t["score"] < goal
            ]
            budget = 60 * found["ours"]["minutes"]
            shares.append(min(reached, default=np.inf) / budget)
            for contender, result in found.items():
                trials = result["trials"]
                pruned = sum(t["state"] == "pruned" for t in trials)
                course = ", ".join(f"{best_by(trials, part * budget):.3f}" for part in (0.25, 0.5, 1))
                tests[contender].append(result["test"])
                share = f"{100 * shares[-1]:.0f} % of the time" if contender == "ours" else ""
                test = f"{result['test']:.3f}" + (
                    f" (defaults {result['defaults']:.3f})" if "defaults" in result else ""
                )
                print(f"| {table} | {seed} | {contender} | {len(trials)} ({pruned}) | {course} | {test} | {share} |")
        if shares:
            means = {c: float(np.mean(values)) for c, values in tests.items()}
            print(
                f"| {table} | mean | | | | ours {means['ours']:.3f}, trainer {means['trainer']:.3f} "
                f"| median {100 * float(np.median(shares)):.0f} % |"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--output", type=Path, default=Path("runs/tune"), help="folder for the results")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3, help="number of studies of each contender")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of each search")
    parser.add_argument("--cores", default="0,1", help="a core for each contender")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "TABLE", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        contender, table, seed = given.one
        file = given.output / f"{table}-{contender}-{seed}.json"
        run_one(contender, given.data, table, int(seed), given.minutes, file)
        return 0
    cores = given.cores.split(",")
    for table in given.tables:
        for seed in range(given.seeds):
            running = []
            for i, contender in enumerate(CONTENDERS):
                if (given.output / f"{table}-{contender}-{seed}.json").is_file():
                    continue
                command = [sys.executable, __file__, "--one", contender, table, str(seed), "--data", str(given.data)]
                command += ["--output", str(given.output), "--minutes", str(given.minutes)]
                core = cores[(i + seed) % len(cores)]
                running.append(
                    subprocess.Popen(
                        ["taskset", "-c", core, "env", "OMP_NUM_THREADS=1", *command], stdout=subprocess.DEVNULL
                    )
                )
            codes = [process.wait() for process in running]
            if any(codes):
                print(f"{table}, seed {seed}: a study failed", file=sys.stderr)
                return 1
    report(given.output, given.tables, given.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
