"""The memory that a training step is reckoned to need on a CPU, beside what it takes.

Every measurement is a process of its own: the most it held during three steps of AdamW on a micro-batch of 1,024
tokens, less what it held with the model loaded, which is what `bertsmith.training.memory.plan` reckons from above.
"""

from __future__ import annotations

import itertools
import multiprocessing
import re
import sys
from pathlib import Path

BUDGET = 1024
"""Tokens at once."""
SHAPES = {
    "MiniLM": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
    "BERT-Base": {},
}


def held(most: bool = False) -> int:
    """Return the bytes of memory that this process holds, or the most it ever held."""
    name = "VmHWM" if most else "VmRSS"
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return 1024 * int(found[1])


def reckoned_and_measured(shape: str, length: int, precision: str) -> tuple[int, int]:
    """Return the bytes reckoned and measured for texts of one length."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from bertsmith.training.memory import plan
    from bertsmith.training.memory import reckoned as reckon

    model = BertForSequenceClassification(BertConfig(**SHAPES[shape], num_attention_heads=12))
    optimizer = torch.optim.AdamW(model.parameters())
    texts = torch.randint(5, 30000, (BUDGET // length, length))
    labels = torch.zeros(len(texts), dtype=torch.long)
    assert plan(model, length, training=True, free=None) == BUDGET
    before = held()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=texts, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return reckon(model, length, BUDGET, training=True), held(most=True) - before


def main() -> int:
    """Print a line a model, length and precision; 1 if more was needed than was reckoned."""
    context = multiprocessing.get_context("spawn")
    ratios = []
    for shape, length, precision in itertools.product(SHAPES, (64, 128, 256, 512), ("fp32", "bf16")):
        with context.Pool(1) as pool:
            reckoned, measured = pool.apply(reckoned_and_measured, (shape, length, precision))
        ratios.append(reckoned / measured)
        sys.stdout.write(
            f"{shape:<10} {length:>4} tokens a text, {precision}: "
            f"reckoned {reckoned / 2**20:6,.0f} MiB, measured {measured / 2**20:6,.0f} MiB, ratio {ratios[-1]:.2f}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"reckoned over measured: {min(ratios):.2f} to {max(ratios):.2f}\n")
    return int(min(ratios) < 1)


if __name__ == "__main__":
    sys.exit(main())
