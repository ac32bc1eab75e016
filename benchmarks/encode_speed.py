"""Compare the speed of tokenization: bertsmith, and `datasets.map` with one process and with several.

Each contender starts from a list of texts and ends with token ids in memory, without a cache. Rounds are interleaved;
the script prints medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TABLES = ("reuters_r8", "tweet_emotion")
TEXTS = 25_000
"""Number of texts to tokenize of each table. Smaller tables repeat."""


def mapped(texts: list[str], tokenizer: Any, max_length: int, processes: int | None) -> Any:
    """Tokenize as the documentation of transformers shows."""
    from datasets import Dataset

    return Dataset.from_dict({"text": texts}).map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=max_length),
        batched=True,
        num_proc=processes,
        remove_columns=["text"],
        load_from_cache_file=False,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tables")
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()

    import torch
    from datasets import disable_progress_bars
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from bertsmith.compute.machine import cores
    from bertsmith.model import checkpoint
    from bertsmith.model.load import LoadedModel
    from bertsmith.model.tokenizer import encode
    from bertsmith.model.tokens import Tokens

    disable_progress_bars()
    folder = checkpoint.resolve("packaged:minilm").path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    loaded = LoadedModel(model, tokenizer, torch.device("cpu"), given.max_length)
    print("| table | contender | texts/s | speed-up over datasets.map |\n| --- | --- | --- | --- |")
    for table in given.tables:
        all_texts = pd.read_csv(given.data / table / "train.csv")["Text"].astype(str).to_numpy()
        texts = list(np.resize(all_texts, TEXTS))
        contenders: dict[str, Callable[[], Any]] = {
            "datasets.map, one process": lambda texts=texts: mapped(texts, tokenizer, given.max_length, None),
            f"datasets.map, {cores()} processes": lambda texts=texts: mapped(
                texts, tokenizer, given.max_length, cores()
            ),
            "bertsmith": lambda texts=texts: encode(texts, loaded),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(given.rounds + 1):
            found = []
            for name, make in contenders.items():
                os.environ["TOKENIZERS_PARALLELISM"] = "true"  # datasets.map turns it off for all later contenders
                began = time.perf_counter()
                found.append(make())
                if number:
                    seconds[name].append(time.perf_counter() - began)
        ids = [
            [r.tolist() for r in np.split(made.columns["input_ids"], made.starts[1:])]
            if isinstance(made, Tokens)
            else made["input_ids"][:]
            for made in found
        ]
        if any(other != ids[0] for other in ids):
            print(f"{table}: the token ids of the contenders differ", file=sys.stderr)
            return 1
        base = min(statistics.median(taken) for name, taken in seconds.items() if name.startswith("datasets"))
        for name, taken in seconds.items():
            median = statistics.median(taken)
            print(f"| {table} | {name} | {len(texts) / median:,.0f} | {base / median:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
