"""Compare ways to sum gradients over processes: seconds of a training step, and CPU seconds of each process.

    python benchmarks/gradient_sum.py --shape bert-base --tokens 512 2048

Each process computes the gradient of its tokens with one thread. The ways alternate, in another order in each round:

- "none" does not sum;
- "flat" sums a copy of all gradients;
- "each" sums each gradient in place;
- "bertsmith" sums large gradients in place, and a copy of the small ones;
- "DDP" is `DistributedDataParallel`, which sums buckets of 25 MB during the backward pass.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertForSequenceClassification

from bertsmith.compute.processes import ProcessGroup

SHAPES = {
    "bert-base": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
WIDTH = 64
"""Tokens per text."""


def _sum_each(parameters: list[torch.nn.Parameter]) -> None:
    for work in [dist.all_reduce(p.grad, async_op=True) for p in parameters]:
        work.wait()


def _sum_flat(parameters: list[torch.nn.Parameter]) -> None:
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)


def work(rank: int, processes: int, port: int, shape: str, sizes: list[int], rounds: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SHAPES[shape]))
    parameters = list(model.parameters())
    group = ProcessGroup(rank, processes)
    if rank == 0:
        print(f"{shape}: {sum(p.numel() for p in parameters):,} parameters, {processes} processes")
    ways: dict[str, tuple[torch.nn.Module, Callable[[], None]]] = {
        "none": (model, lambda: None),
        "flat": (model, lambda: _sum_flat(parameters)),
        "each": (model, lambda: _sum_each(parameters)),
        "bertsmith": (model, lambda: group.sum_gradients(parameters)),
        "DDP": (DistributedDataParallel(model, gradient_as_bucket_view=True), lambda: None),
    }
    for tokens in sizes:
        ids = torch.randint(1000, (tokens // WIDTH, WIDTH), generator=torch.Generator().manual_seed(rank))
        labels = torch.zeros(len(ids), dtype=torch.long)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        sums = {}
        for turn in range(rounds + 1):
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                called, finish = ways[name]
                for p in parameters:
                    p.grad = None
                model.eval()  # no dropout, so that the sums can be compared
                dist.barrier()
                start, cpu_start = time.perf_counter(), time.process_time()
                called(input_ids=ids, labels=labels).loss.backward()
                finish()
                dist.barrier()
                if turn:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
                    cpu[name].append(time.process_time() - cpu_start)
                sums[name] = torch.stack([p.grad.norm() for p in parameters]) * (processes if name == "DDP" else 1)
        for name in ("each", "bertsmith", "DDP"):
            torch.testing.assert_close(sums[name], sums["flat"], rtol=1e-3, atol=1e-5)
        if rank == 0:
            print(f"{tokens} tokens in each process")
            for name, times in seconds.items():
                ratio = statistics.median(a / b for a, b in zip(times, seconds["flat"], strict=True))
                print(
                    f"  {name}: {statistics.median(times):.3f} s, {ratio:.2f} times flat; "
                    f"CPU {statistics.median(cpu[name]):.3f} s",
                    flush=True,
                )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (given.processes, port, given.shape, given.tokens, given.rounds)
    mp.spawn(work, arguments, nprocs=given.processes)


if __name__ == "__main__":
    main()
