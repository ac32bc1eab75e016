"""Compare the speed of one epoch of fine-tuning: `transformers.Trainer`, its fastest settings, and bertsmith.

The contenders take turns in one process, with the same texts, tokens, batch size, optimizer, threads and initial
weights. Contenders with random batches read the texts in the same order. The script prints medians over rounds. It
times only training, without evaluation and checkpoints.

trainer: `transformers.Trainer` with dynamic padding, in fp32.
trainer-fast: trainer with fused AdamW, and bf16 or fp16 where bertsmith would choose it.
best: trainer-fast with texts of similar length in a batch.
ours: the engine of bertsmith with random batches, in the precision that it chooses.
grouped: ours with texts of similar length in a batch.
compiled: ours with compiled layers, on a GPU.
unrecorded: ours without CUDA graphs.
products: the matrix products of ours alone, on a CPU: a bound for each program that does not skip some of them.

With ``--score``, each round has another seed for the head, the order and the dropout. After its epoch, each model
labels the test texts of the table, which is not timed. The script prints the macro-F1 of all rounds, and the difference
of the last contender from each contender.

With ``--whole``, whole processes take turns on the same splits (8 : 1 : 1). One is `bertsmith train` with its checks,
scores, baselines and report; the other is ``plain.py``. Both read each text once per epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODELS = ("minilm", "bert-base")
OURS = ("ours", "grouped", "compiled", "unrecorded")
CONTENDERS = ("trainer", "trainer-fast", "best", *OURS, "products")


def to_texts(name: str, data: Path, limit: int | None, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return at most ``limit`` random texts of a table in a folder, or of ``bbc``, and their class indices."""
    if name == "bbc":
        from bertsmith.cli.demo import bbc_news

        frame = bbc_news()
        texts, labels = frame["Text"].astype(str).tolist(), frame["Label Text"].to_numpy()
    else:
        import pandas as pd

        frame = pd.read_csv(data / name / "train.csv")
        texts, labels = frame["Text"].astype(str).tolist(), frame["Label"].to_numpy()
    targets = np.unique(labels, return_inverse=True)[1]
    rows = np.random.default_rng(seed).permutation(len(texts))[:limit]
    return [texts[i] for i in rows], targets[rows]


def test_texts_of(name: str, data: Path) -> tuple[list[str], np.ndarray]:
    """Return the test texts of a table in a folder, and their class indices."""
    import pandas as pd

    frame = pd.read_csv(data / name / "test.csv")
    return frame["Text"].astype(str).tolist(), np.unique(frame["Label"].to_numpy(), return_inverse=True)[1]


def labelled(model: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Return the predicted class index of each text, shape (n,), computed in fp32."""
    from bertsmith.compute.batching import micro_batches

    encoded = tokenizer(texts, truncation=True, max_length=tokenizer.model_max_length)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    found = np.empty(len(texts), dtype=int)
    model = model.float().eval()
    for rows in micro_batches(lengths, 1024):
        batch = tokenizer.pad(
            {name: [values[i] for i in rows] for name, values in encoded.items()}, return_tensors="pt"
        )
        with torch.inference_mode():
            found[rows] = model(**batch.to(model.device)).logits.argmax(dim=-1).cpu()
    return found


def compare(first: list[float], second: list[float]) -> str:
    """Return the mean difference in macro-F1 of two contenders, with its 95 % interval over seeds, as text.

    Args:
        first, second: macro-F1 of each round. In a round, both contenders have the same seed.
    """
    from scipy.stats import t

    differences = np.subtract(first, second)
    mean, n = float(differences.mean()), len(differences)
    half = float(t.ppf(0.975, n - 1)) * float(differences.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def new_model(name: str, n_classes: int, seed: int = 0) -> Any:
    """Return a model in fp32: MiniLM as packaged, or random weights in the shape of BERT-Base."""
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
    from transformers.utils import logging

    from bertsmith.model import checkpoint

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    if name == "bert-base":
        return BertForSequenceClassification(BertConfig(num_labels=n_classes))
    folder = checkpoint.resolve("packaged:minilm").path
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n_classes)


def run(
    contender: str,
    model_name: str,
    dataset: Any,
    tokenizer: Any,
    n_classes: int,
    batch: int,
    device: torch.device,
    seed: int = 0,
) -> tuple[float, Any]:
    """Train one epoch; return its seconds and the model."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from bertsmith.model.load import LoadedModel
    from bertsmith.model.tokens import Tokens
    from bertsmith.tasks.registry import get_task
    from bertsmith.training.callback import EventCallback
    from bertsmith.training.data import TokenDataset
    from bertsmith.training.engine import Engine
    from bertsmith.training.recipe import Recipe, choose_precision
    from bertsmith.training.trainer import Training

    model = new_model(model_name, n_classes, seed).to(device)
    fast = choose_precision(device)[0]
    if contender == "products":
        lengths = np.array(dataset["length"])
        return products(model, lengths, torch.bfloat16 if fast == "bf16" else torch.float32), model
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder,
            "num_train_epochs": 1,
            "per_device_train_batch_size": batch,
            "learning_rate": 1e-4,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": device.type == "cpu",
            "dataloader_pin_memory": device.type == "cuda",
            "seed": seed,
        }
        if contender != "trainer":
            arguments |= {"bf16": fast == "bf16", "fp16": fast == "fp16", "optim": "adamw_torch_fused"}
        if contender in ("best", "grouped"):
            arguments["train_sampling_strategy"] = "group_by_length"
        ours = contender in OURS
        if ours:
            arguments |= {"logging_nan_inf_filter": False, "dataloader_pin_memory": False}
        settings = TrainingArguments(**arguments)
        if ours:
            loaded = LoadedModel(model, tokenizer, device, tokenizer.model_max_length)
            recipe = Recipe(1, batch, 1e-4, 1, 0, 0, fast, 1, "none")  # without R-Drop, like the Trainer
            callback = EventCallback(lambda event: None, lambda: False)
            columns = {name: dataset[name][:] for name in loaded.columns}
            texts = TokenDataset(Tokens.from_lists(columns), np.array(dataset["labels"]))
            training = Training(loaded, texts, texts, settings, recipe, get_task())
            trainer = Engine(training, callback, settings)
            trainer.compiled = contender == "compiled"
            if contender == "unrecorded":
                trainer.graphs = None
        else:
            collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if contender == "best" else None)
            trainer = Trainer(model, settings, data_collator=collator, train_dataset=dataset)
            from transformers import PrinterCallback

            trainer.remove_callback(PrinterCallback)
            if contender != "best":
                trainer._get_train_sampler = lambda *_: (
                    np.random.default_rng([seed, 0]).permutation(len(dataset)).tolist()
                )
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        trainer.train()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began, model


def peak(device: torch.device, dtype: torch.dtype, hidden: int) -> float:
    """Return the FLOP per second of a matrix product, of the size of a feed-forward layer; on a GPU 8,192 squared."""
    n, k, m = (8192, 8192, 8192) if device.type == "cuda" else (1024, hidden, 4 * hidden)
    a = torch.randn(n, k, device=device, dtype=dtype)
    b = torch.randn(k, m, device=device, dtype=dtype)
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        _ = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * n * k * m / statistics.median(seconds)


def flops(model: Any, lengths: np.ndarray, *, firsts: bool) -> float:
    """Return the FLOP of the matrix products of an epoch, forward and backward, without padding.

    Args:
        model: a model with the architecture of BERT.
        lengths: number of tokens of each text.
        firsts: whether the last layer computes only the first token of each text, except for keys and values.
    """
    config = model.config
    hidden, inner, tokens, pairs = config.hidden_size, config.intermediate_size, lengths.sum(), (lengths**2).sum()
    layer = 2 * (4 * hidden**2 + 2 * hidden * inner) * tokens + 4 * hidden * pairs
    short = 2 * 2 * hidden**2 * tokens + 2 * (2 * hidden**2 + 2 * hidden * inner) * len(lengths) + 4 * hidden * tokens
    return 3 * float((config.num_hidden_layers - 1) * layer + (short if firsts else layer))


def products(model: Any, lengths: np.ndarray, dtype: torch.dtype) -> float:
    """Return the seconds of the matrix products of an epoch, forward and backward, with the workers of bertsmith.

    As in bertsmith, the last layer computes only keys and values of all tokens.

    Args:
        model: a model with the architecture of BERT.
        lengths: number of tokens of each text.
        dtype: of the matrices.
    """
    from bertsmith.compute import threads
    from bertsmith.compute.batching import TOKEN_BUDGETS, micro_batches

    config = model.config
    hidden, inner, layers, heads = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )
    workers = threads.num_workers()
    batches = micro_batches(lengths, TOKEN_BUDGETS["cpu"], packed=True, workers=workers)
    square, up = torch.randn(hidden, hidden, dtype=dtype), torch.randn(inner, hidden, dtype=dtype)
    down = up.t().contiguous()

    def linear(x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> None:
        _ = x @ weight.t(), gradient @ weight, gradient.t() @ x

    def compute(rows: np.ndarray) -> None:
        tokens = int(lengths[rows].sum())
        x, wide = torch.randn(tokens, hidden, dtype=dtype), torch.randn(tokens, inner, dtype=dtype)
        for layer in range(layers):
            last = layer == layers - 1
            for _ in range(2 if last else 4):
                linear(x, x, square)
            if last:
                continue
            linear(x, wide, up)
            linear(wide, x, down)
            for length in lengths[rows]:
                query = torch.randn(heads, int(length), hidden // heads, dtype=dtype)
                weights = query @ query.transpose(1, 2)
                _ = weights @ query, query @ query.transpose(1, 2)
                _ = weights @ query, weights.transpose(1, 2) @ query, weights.transpose(1, 2) @ query

    began = time.perf_counter()
    threads.run([lambda i=i: [compute(rows) for rows in batches[i::workers]] for i in range(workers)])
    return time.perf_counter() - began


def whole(table: str, given: argparse.Namespace, *, bf16: bool) -> None:
    """Time whole processes in turn on a table, and print a row for each.

    Args:
        table: name of a table of `baseline.table_of`.
        given: the command line.
        bf16: whether ``plain.py`` computes in bf16.
    """
    import pandas as pd
    from baseline import table_of

    from bertsmith.model import checkpoint

    model = str(checkpoint.resolve("packaged:minilm").path)
    rows = pd.concat(table_of(table, given.data)).sample(frac=1, random_state=0)[["Label", "Text"]]
    rows = rows.drop_duplicates("Text").head(given.texts or len(rows))
    rows = rows[rows["Label"].map(rows["Label"].value_counts()) >= 3]
    ends = [8 * len(rows) // 10, 9 * len(rows) // 10]
    parts = {"train": rows[: ends[0]], "validation": rows[ends[0] : ends[1]], "test": rows[ends[1] :]}
    known = set(parts["train"]["Label"])
    seconds: dict[str, list[float]] = {"plain.py": [], "bertsmith train": []}
    scores: dict[str, list[float]] = {name: [] for name in seconds}
    phases: list[dict[str, float]] = []
    for number in range(given.rounds):
        for name in seconds:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                for part, table_of_part in parts.items():
                    table_of_part[table_of_part["Label"].isin(known)].to_csv(folder / f"{part}.csv", index=False)
                shared = [f"--epochs={given.epochs}", f"--max-length={given.max_length}"]
                if name == "plain.py":
                    script = [str(Path(__file__).parent / name), str(folder), str(folder / "run"), f"--model={model}"]
                    command = [*script, *shared, f"--batch={given.batch}", *(["--bf16"] if bf16 else [])]
                else:
                    files = [f"--validation={folder / 'validation.csv'}", f"--test={folder / 'test.csv'}"]
                    command = ["-m", "bertsmith", "train", str(folder / "train.csv"), *files, *shared]
                    command += [
                        f"--output={folder / 'run'}",
                        f"--model={model}",
                        f"--batch-size={given.batch}",
                        "--consistency=0",
                    ]
                began = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - began)
                metrics = json.loads((folder / "run" / "metrics.json").read_text())
                if name == "plain.py":
                    scores[name].append(metrics["test_macro_f1"])
                else:
                    scores[name].append(metrics["splits"]["test"]["metrics"]["macro_f1"]["value"])
                    phases.append(json.loads((folder / "run" / "run.json").read_text())["seconds"])
                print(json.dumps([table, name, number, round(seconds[name][-1], 1)]), file=sys.stderr)
    base = statistics.median(seconds["plain.py"])
    for name, taken in seconds.items():
        of_rounds = ", ".join(f"{s:.0f}" for s in taken)
        median = statistics.median(taken)
        spent = {phase: statistics.median(p[phase] for p in phases) for phase in phases[0]}
        shown = ", ".join(f"{phase} {s:.1f}" for phase, s in spent.items()) if name != "plain.py" else ""
        print(
            f"| {table} | {len(parts['train']):,} | {name} | {median:.1f} ({of_rounds}) | {base / median:.2f} "
            f"| {statistics.median(scores[name]):.3f} | {shown} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--tables", nargs="+", default=["reuters_r8", "bbc"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--contenders", nargs="+", default=["trainer", "best", "ours"], choices=CONTENDERS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokenizer", default="packaged:minilm", help="checkpoint, or its folder without weights")
    parser.add_argument("--texts", type=int, help="texts per epoch; by default all for MiniLM, 256 for BERT-Base")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="time whole processes: bertsmith train and plain.py")
    parser.add_argument("--epochs", type=float, default=1, help="epochs of --whole")
    parser.add_argument("--score", action="store_true", help="also label the test texts, with one seed per round")
    given = parser.parse_args()

    from datasets import Dataset
    from sklearn.metrics import f1_score
    from transformers import AutoTokenizer

    from bertsmith.compute.device import choose_device
    from bertsmith.compute.system import keep_freed_memory
    from bertsmith.model import checkpoint
    from bertsmith.training.recipe import choose_precision

    device = choose_device("auto")
    fast = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[choose_precision(device)[0]]
    if given.whole:
        print(
            "| table | texts | process | seconds, median (all) | speed-up over plain.py | macro-F1 | seconds by phase |"
        )
        print("| --- " * 7 + "|")
        for table in given.tables:
            whole(table, given, bf16=fast == torch.bfloat16)
        return 0
    packaged = given.tokenizer.startswith("packaged:")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.resolve(given.tokenizer).path if packaged else given.tokenizer)
    tokenizer.model_max_length = given.max_length
    # All contenders use the same allocator settings, which apply to the whole process.
    allocator = contextlib.ExitStack()
    allocator.enter_context(keep_freed_memory())
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, batches of {given.batch}, {given.max_length} tokens", file=sys.stderr)
    print(
        "| model | table | texts | contender | seconds, median (all) | texts/s | speed-up over the first "
        "| share of the matrix peak |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for model_name in given.models:
        for table in given.tables:
            limit = given.texts or (256 if model_name == "bert-base" else None)
            texts, targets = to_texts(table, given.data, limit)
            encoded = tokenizer(texts, truncation=True, max_length=given.max_length)
            lengths = np.array([len(ids) for ids in encoded["input_ids"]])
            columns = {**encoded, "labels": targets.tolist(), "length": lengths.tolist()}
            dataset = Dataset.from_dict(columns)
            n_classes = int(targets.max()) + 1
            if device.type == "cuda":  # warms up the process, and compiles the layers
                for contender in given.contenders:
                    began = time.perf_counter()
                    first = dataset.select(range(min(len(texts), 8 * given.batch)))
                    run(contender, model_name, first, tokenizer, n_classes, given.batch, device)
                    taken = time.perf_counter() - began
                    print(json.dumps([model_name, table, contender, "first", round(taken, 1)]), file=sys.stderr)
            seconds: dict[str, list[float]] = {contender: [] for contender in given.contenders}
            scores: dict[str, list[float]] = {contender: [] for contender in given.contenders}
            if given.score:
                test_texts, test_targets = test_texts_of(table, given.data)
            for number in range(given.rounds):
                for contender in given.contenders:
                    seed = number if given.score else 0
                    taken, model = run(contender, model_name, dataset, tokenizer, n_classes, given.batch, device, seed)
                    seconds[contender].append(taken)
                    line = [model_name, table, contender, number, round(taken, 2)]
                    if given.score:
                        found = labelled(model, tokenizer, test_texts)
                        scores[contender].append(f1_score(test_targets, found, average="macro"))
                        line.append(round(scores[contender][-1], 4))
                    print(json.dumps(line), file=sys.stderr)
            model = new_model(model_name, n_classes)
            base = statistics.median(seconds[given.contenders[0]])
            for contender, all_of_them in seconds.items():
                median = statistics.median(all_of_them)
                dtype = torch.float32 if contender == "trainer" else fast
                firsts = contender in (*OURS, "products") and device.type == "cpu"
                needed = flops(model, lengths.astype(float), firsts=firsts)
                share = needed / median / peak(device, dtype, model.config.hidden_size)
                shown = ", ".join(f"{s:.3g}" for s in all_of_them)
                print(
                    f"| {model_name} | {table} | {len(texts):,} | {contender} | {median:.3g} ({shown}) "
                    f"| {len(texts) / median:.1f} | {base / median:.2f} | {share:.0%} |",
                    flush=True,
                )
            last = given.contenders[-1]
            for contender in given.contenders if given.score else ():
                of_rounds = ", ".join(f"{x:.3f}" for x in scores[contender])
                print(
                    f"{contender}: test macro-F1 {np.mean(scores[contender]):.3f} ({of_rounds}); "
                    f"difference of {last}: {compare(scores[last], scores[contender])}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
