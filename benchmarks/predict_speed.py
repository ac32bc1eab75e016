"""Compare the speed of bertsmith and `transformers.pipeline` with one model, on many texts and on one text.

The pipeline runs with several batch sizes, in fp32 and bf16, with unsorted input and with input sorted by length. The
reference is the fastest of these. Rounds are interleaved; the script prints medians. Each contender labels 64 texts
before the first round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bertsmith.compute.machine import cores

BATCH_SIZES = (1, 8, 32, 64)


def pipelines(model: Path, batch_sizes: list[int]) -> dict[str, Callable[[list[str]], object]]:
    """Return a function for each configuration of the pipeline, by name."""
    import torch
    from transformers import pipeline

    contenders = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        piped = pipeline("text-classification", str(model), device="cpu", dtype=dtype)
        for size in batch_sizes:
            contenders[f"pipeline, {precision}, batch {size}, unsorted"] = lambda texts, p=piped, s=size: p(
                texts, batch_size=s, truncation=True
            )
            contenders[f"pipeline, {precision}, batch {size}, sorted"] = lambda texts, p=piped, s=size: p(
                sorted(texts, key=len, reverse=True), batch_size=s, truncation=True
            )
    return contenders


def classifiers(run: Path, exports: list[Path]) -> dict[str, Callable[[list[str]], object]]:
    """Return a function for the run and for each export, by name."""
    import bertsmith as bs

    found = {"bertsmith, torch": bs.load(run, device="cpu", runtime="torch")}
    for folder in exports:
        loaded = bs.load(folder)
        found[f"bertsmith, {loaded.about.format} {loaded.about.precision}"] = loaded
    return {name: classifier.predict_proba for name, classifier in found.items()}


def one_text(exports: list[Path], text: str, n: int = 300) -> None:
    """Print the latency of a short text, for each export."""
    import bertsmith as bs

    for folder in exports:
        classifier = bs.load(folder)
        for _ in range(30):
            classifier.predict_proba([text])
        times = []
        for _ in range(n):
            began = time.perf_counter()
            classifier.predict_proba([text])
            times.append(1000 * (time.perf_counter() - began))
        p50, p99 = np.percentile(times, [50, 99])
        print(f"one text of {len(text.split())} words, {folder.name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


BARE = """
import sys, numpy, onnxruntime, tokenizers
encoded = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json").encode(sys.stdin.read())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = int(sys.argv[2]), 3
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
every = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
print(session.run(None, {i.name: numpy.array([every[i.name]]) for i in session.get_inputs()})[0].argmax())
"""
"""The least code that predicts with ONNX Runtime and tokenizers, without checksums, decision rule, probabilities."""


def start(exports: list[Path], text: str, n: int = 30) -> None:
    """Print the duration of the command for one text, from start to finish, interleaved with `BARE`."""
    for folder in exports:
        commands = {"bertsmith predict": [sys.executable, "-m", "bertsmith", "predict", str(folder), "-"]}
        if (folder / "model.onnx").is_file():
            commands["a script with ONNX Runtime and tokenizers"] = [
                sys.executable,
                "-c",
                BARE,
                str(folder),
                str(cores()),
            ]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(n + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, input=text, text=True, check=True, capture_output=True)
                if turn:  # the first round reads the files from disk
                    times[name].append(time.perf_counter() - began)
        for name, found in times.items():
            least, most = min(found), max(found)
            print(
                f"{name}, {folder.name}, start to finish: {statistics.median(found):.2f} s ({least:.2f} to {most:.2f})"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("texts", type=Path, help="CSV with a column Text")
    parser.add_argument("--exports", type=Path, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=None, help="number of random texts; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=BATCH_SIZES)
    given = parser.parse_args()
    texts = pd.read_csv(given.texts)["Text"].astype(str).tolist()
    if given.rows is not None:
        texts = pd.Series(texts).sample(given.rows, random_state=0).tolist()
    contenders = {
        **classifiers(given.run, given.exports),
        **pipelines(given.run / "model", list(given.batch_sizes)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for label in contenders.values():
        label(texts[:64])
    for _ in range(given.rounds):
        for name, label in contenders.items():
            began = time.perf_counter()
            label(texts)
            seconds[name].append(time.perf_counter() - began)
    speeds = {name: len(texts) / statistics.median(times) for name, times in seconds.items()}
    best = max(speed for name, speed in speeds.items() if name.startswith("pipeline"))
    print(f"{len(texts):,} texts of {given.texts}, medians of {given.rounds} rounds\n")
    print("| | texts/s | speed-up over the best pipeline |\n| --- | --- | --- |")
    for name, speed in sorted(speeds.items(), key=lambda item: -item[1]):
        print(f"| {name} | {speed:,.0f} | {speed / best:.2f} |")
    print()
    short = min(texts, key=lambda text: abs(len(text.split()) - 10))
    one_text(given.exports, short)
    start(given.exports, short)
    return 0


if __name__ == "__main__":
    sys.exit(main())
