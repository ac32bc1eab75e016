"""Measure the memory of training on a CPU, and compare it with the estimate of `bertsmith.compute.memory`.

Each measurement runs in a separate process:

1. the memory of a model after a step: weights, gradients and moments, 16 bytes per parameter in fp32;
2. the peak memory of three steps of AdamW on a micro-batch of 1,024 tokens, without the loaded model. The estimate of
   `bertsmith.compute.memory.estimate_memory` should be an upper bound;
3. the peak memory of runs of a small model, which should not grow with texts, epochs or batch size.
"""

from __future__ import annotations

import itertools
import multiprocessing
import re
import sys
from pathlib import Path

BUDGET = 1024
"""Tokens per micro-batch."""
SHAPES = {
    "MiniLM": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
    "BERT-Base": {},
}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
STATES = {"MiniLM": {**SHAPES["MiniLM"], "num_attention_heads": 12}, "BERT-Base": {}, "BERT-Large": LARGE}
SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 2, "vocab_size": 2000}
RUNS = {
    "2,048 texts in batches of 16, four epochs": (2048, 16, 4),
    "the same in batches of 128": (2048, 128, 4),
    "8,192 texts, one epoch": (8192, 16, 1),
    "512 texts, sixteen epochs": (512, 16, 16),
    "2,048 texts, eight epochs": (2048, 16, 8),
}
"""Texts, batch size and epochs of runs of a small model.

Text lengths are random, so the peak of a run rises slowly for some hundreds of steps. For a fair comparison, runs with
more texts or more epochs have the same number of steps. One run has twice as many steps with the same texts.
"""
GROWTH = 1.1
"""Maximum memory of a run, relative to the first run."""


def resident_memory(peak: bool = False) -> int:
    """Return the resident memory of this process in bytes, or its peak."""
    name = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return 1024 * int(found[1])


def estimated_and_measured(shape: str, length: int, precision: str) -> tuple[int, int]:
    """Return the estimated and the measured bytes of steps on texts of one length."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from bertsmith.compute.memory import estimate_memory, plan_token_budget

    model = BertForSequenceClassification(BertConfig(**SHAPES[shape], num_attention_heads=12))
    optimizer = torch.optim.AdamW(model.parameters())
    texts = torch.randint(5, 30000, (BUDGET // length, length))
    labels = torch.zeros(len(texts), dtype=torch.long)
    assert plan_token_budget(model, length, training=True, free=None) == BUDGET
    before = resident_memory()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=texts, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return estimate_memory(model, length, BUDGET, training=True), resident_memory(peak=True) - before


def state(shape: str) -> tuple[int, int]:
    """Return the computed and the measured bytes of weights, gradients and Adam's moments, after a step on one text."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    before = resident_memory()
    model = BertForSequenceClassification(BertConfig(**STATES[shape]))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(input_ids=torch.ones(1, 8, dtype=torch.long), labels=torch.zeros(1, dtype=torch.long)).loss.backward()
    optimizer.step()
    return 16 * sum(p.numel() for p in model.parameters()), resident_memory() - before


def measured_run(n_texts: int, batch_size: int, epochs: int) -> int:
    """Return the peak bytes of a run on texts of 8 to 128 tokens, drawn at random."""
    import logging
    import tempfile

    import numpy as np
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from bertsmith.config import TrainConfig
    from bertsmith.model import checkpoint
    from bertsmith.model.load import LoadedModel
    from bertsmith.model.tokens import Tokens
    from bertsmith.tasks.registry import get_task
    from bertsmith.training.arguments import training_arguments
    from bertsmith.training.data import TokenDataset
    from bertsmith.training.recipe import Recipe
    from bertsmith.training.trainer import Training, fit

    logging.disable()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.resolve("packaged:minilm").path)
    model = BertForSequenceClassification(BertConfig(**SMALL, num_attention_heads=12))
    rng = np.random.default_rng(0)

    def texts(n: int) -> TokenDataset:
        ids = [rng.integers(5, 2000, length).tolist() for length in rng.integers(8, 129, n)]
        return TokenDataset(Tokens.from_lists({"input_ids": ids}), rng.integers(0, 2, n))

    train, validation = texts(n_texts), texts(16)
    recipe = Recipe(epochs, batch_size, 1e-5, 1, 0, 0, "fp32", epochs, "none")
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        settings = training_arguments(recipe, TrainConfig(), Path(name), device, saves=False)
        before = resident_memory()
        fit(Training(LoadedModel(model, tokenizer, device, 128), train, validation, settings, recipe, get_task()))
    return resident_memory(peak=True) - before


def main() -> int:
    """Print one line per measurement; return 1 if an estimate is too low or the memory of a run grows."""
    context = multiprocessing.get_context("spawn")
    for shape in STATES:
        with context.Pool(1) as pool:
            computed, measured = pool.apply(state, (shape,))
        sys.stdout.write(
            f"{shape}: {computed // 16 / 1e6:.1f} million parameters, weights, gradients and Adam's moments: "
            f"computed {computed / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB\n"
        )
        sys.stdout.flush()
    ratios = []
    for shape, length, precision in itertools.product(SHAPES, (64, 128, 256, 512), ("fp32", "bf16")):
        with context.Pool(1) as pool:
            estimated, measured = pool.apply(estimated_and_measured, (shape, length, precision))
        ratios.append(estimated / measured)
        sys.stdout.write(
            f"{shape:<10} {length:>4} tokens per text, {precision}: "
            f"estimated {estimated / 2**20:6,.0f} MiB, measured {measured / 2**20:6,.0f} MiB, ratio {ratios[-1]:.2f}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"estimated / measured: {min(ratios):.2f} to {max(ratios):.2f}\n")
    runs = []
    for description, given in RUNS.items():
        with context.Pool(1) as pool:
            runs.append(pool.apply(measured_run, given))
        sys.stdout.write(f"{description}: {runs[-1] / 2**20:,.0f} MiB, ratio {runs[-1] / runs[0]:.2f}\n")
        sys.stdout.flush()
    return int(min(ratios) < 1 or max(runs) > GROWTH * runs[0])


if __name__ == "__main__":
    sys.exit(main())
