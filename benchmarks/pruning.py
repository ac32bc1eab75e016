"""Compare the pruning rules of Optuna on the learning curves of complete trials.

The script draws settings at random from the search space of `bertsmith.tune` and runs each trial to its end. It scores
a trial at the same steps as a study does, and saves each score with its time. Then it replays the trials with each
rule in many random orders. It prints the time that a rule saves, and the distance in score from the best trial that
finishes to the best trial of all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
from tune import MODEL, TABLES, TOKENS, to_texts


def run_trials(data: Path, table: str, trials: int, file: Path) -> None:
    """Run trials and save their curves in a file; skip the trials that the file already has."""
    from bertsmith.config import PRIMARY, Config
    from bertsmith.data.clean import clean
    from bertsmith.data.read import read_table
    from bertsmith.tuning.space import default_space, suggest, with_values
    from bertsmith.workflows.prepare import choose_recipe
    from bertsmith.workflows.trials import TrialData, run_trial, with_evaluation_steps

    folder = file.parent / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, frame in to_texts(data / table, 0).items():
        frame.to_csv(folder / f"{table}-{name}.csv", index=False)
        if name != "test":
            parts[name] = clean(read_table(folder / f"{table}-{name}.csv")).table
    trial_data = TrialData(parts["train"], parts["val"])
    config = Config(model=MODEL, max_length=TOKENS, consistency=0.0)  # R-Drop would double the time of a trial
    loaded, train, _ = trial_data.prepare(config)
    counts = trial_data.train.counts
    recipe = choose_recipe(config, trial_data.task, loaded, train)
    space, usual = default_space(
        config,
        recipe,
        n_texts=len(trial_data.train),
        imbalance_ratio=float(counts.max() / counts.min()),
        max_length=loaded.max_length,
        dropout=0.1,
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(usual)
    found = json.loads(file.read_text()) if file.is_file() else []
    for number in range(trials):
        trial = study.ask()
        values = suggest(trial, space)
        study.tell(trial, 0.0)
        if number < len(found):
            continue
        curve: list[tuple[float, float, float]] = []
        began = time.perf_counter()

        def on_score(epoch: float, score: float, curve: list = curve, began: float = began) -> None:
            curve.append((epoch, score, time.perf_counter() - began))

        given = with_values(config, values)
        outcome = run_trial(
            trial_data,
            with_evaluation_steps(given, trial_data, given.batch_size or recipe.batch_size),
            on_score=on_score,
            stop=lambda: False,
        )
        found.append(
            {"settings": values, "curve": curve, "seconds": time.perf_counter() - began, PRIMARY: outcome.score}
        )
        file.write_text(json.dumps(found))
        print(f"{table}, trial {number}: {outcome.score:.3f} in {found[-1]['seconds']:.0f} s", file=sys.stderr)


def rules(longest: int) -> dict[str, optuna.pruners.BasePruner]:
    """Return the rules by name. A step of a rule is a twelfth of an epoch."""
    from optuna import pruners

    return {
        "none": pruners.NopPruner(),
        "median, after 4 trials, from half an epoch": pruners.MedianPruner(4, 6, n_min_trials=3),
        "median, after 4 trials, from 1 epoch": pruners.MedianPruner(4, 12, n_min_trials=3),
        "median, after 4 trials, from 2 epochs": pruners.MedianPruner(4, 24, n_min_trials=3),
        "lowest quarter, after 4 trials, from half an epoch": pruners.PercentilePruner(75.0, 4, 6, n_min_trials=3),
        "lowest quarter, after 4 trials, from 2 epochs": pruners.PercentilePruner(75.0, 4, 24, n_min_trials=3),
        "successive halving by 2, from half an epoch": pruners.SuccessiveHalvingPruner(6, 2),
        "successive halving by 3, from 1 epoch": pruners.SuccessiveHalvingPruner(12, 3),
        "Hyperband by 3, from half an epoch": pruners.HyperbandPruner(6, longest, 3),
    }


def replay(trials: list[dict], rule: optuna.pruners.BasePruner, order: np.ndarray, seed: int) -> tuple[float, list]:
    """Replay trials with a rule, in a given order.

    Returns:
        The total seconds, and the seconds and the best score after each trial.
    """
    study = optuna.create_study(
        direction="maximize", pruner=rule, sampler=optuna.samplers.RandomSampler(seed), study_name=f"replay-{seed}"
    )
    spent, best, course = 0.0, float("nan"), []
    for index in order:
        recorded = trials[index]
        trial = study.ask()
        for epoch, score, seconds in recorded["curve"]:
            trial.report(score, round(12 * epoch))
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                spent += seconds
                break
        else:
            value = max(score for _, score, _ in recorded["curve"])
            study.tell(trial, value)
            spent += recorded["seconds"]
            best = value if not best > value else best
        course.append((spent, best))
    return spent, course


def report(table: str, trials: list[dict], orders: int) -> None:
    """Print the time that each rule saves, and the score that it loses."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    shuffles = [rng.permutation(len(trials)) for _ in range(orders)]
    whole = sum(t["seconds"] for t in trials)
    top = max(score for t in trials for _, score, _ in t["curve"])
    longest = max(round(12 * epoch) for t in trials for epoch, _, _ in t["curve"])
    print(f"\n{table}: {len(trials)} trials, {whole:,.0f} s, best {top:.3f}, each rule in {orders} orders\n")
    print(
        "| rule | time, relative to no rule | orders in which the best trial finished | mean distance to the best "
        "score | distance after a quarter, half of the time |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, rule in rules(longest).items():
        shares, behind, parts = [], [], {0.25: [], 0.5: []}
        for seed, order in enumerate(shuffles):
            spent, course = replay(trials, rule, order, seed)
            shares.append(spent / whole)
            behind.append(top - course[-1][1])
            for part, values in parts.items():
                values.append(top - max((b for s, b in course if s <= part * whole), default=0.0))
        at = ", ".join(f"{np.nanmean(values):.4f}" for values in parts.values())
        finished = np.mean(np.array(behind) < 1e-9)
        print(f"| {name} | {100 * np.mean(shares):.0f} % | {100 * finished:.0f} % | {np.mean(behind):.4f} | {at} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--output", type=Path, default=Path("runs/pruning"), help="folder for the results")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--run", action="store_true", help="run the trials that have no saved result")
    given = parser.parse_args()
    for table in given.tables:
        if given.run:
            run_trials(given.data, table, given.trials, given.output / f"{table}.json")
    for table in given.tables:
        report(table, json.loads((given.output / f"{table}.json").read_text()), given.orders)
    return 0


if __name__ == "__main__":
    sys.exit(main())
