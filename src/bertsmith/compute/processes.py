"""Data parallelism over the processes that torchrun starts.

All processes read the same texts in the same order and compute their share of each step. Gradients and logits are
summed over the processes, so the result is that of one process. To transformers, each process appears as the only one.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bertsmith.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
SENT_ALONE = 2**16
"""Minimum number of elements of a gradient in a separate message. Smaller ones are 0.1 % of those of BERT-Base."""
GPU_BACKENDS = "cpu:gloo,cuda:nccl"
"""NCCL sums gradients, Gloo the flags and messages of each step, so that no step waits for the GPU."""
TIMEOUT = timedelta(days=7)
"""Processes wait while the main one scores. If one dies, torchrun ends all."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, whose ranks count from 0. With a single process, all operations are local."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and computes the final scores."""
        return self.rank == 0

    def share(self, lengths: np.ndarray) -> np.ndarray:
        """Return the positions of this process's texts, longest first, from their numbers of tokens, shape (texts,).

        The shares of the processes have similar numbers of tokens.
        """
        return (-lengths).argsort(kind="stable")[self.rank :: self.size]

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place. Missing gradients count as zero.

        The processes send large gradients without a copy, which would take time and memory. Small ones share a message.
        `DistributedDataParallel` can neither repeat a step nor sum different numbers of micro-batches.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in trained]
        sums = [dist.all_reduce(g, async_op=True) for g in gradients if g.numel() >= SENT_ALONE]
        if small := [g for g in gradients if g.numel() < SENT_ALONE]:
            flat = self.all_reduce(torch.cat([g.flatten() for g in small]))
            for gradient, summed in zip(small, flat.split([g.numel() for g in small]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        for message in sums:
            message.wait()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in at least one process."""
        if self.size == 1:
            return flags
        import torch

        # On the CPU: reading a sum on a GPU would wait for the step.
        return tuple((self.all_reduce(torch.tensor(flags, dtype=torch.int32)) > 0).tolist())

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value in all processes."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes get here."""
        self.broadcast(None)


SINGLE_PROCESS = ProcessGroup()
_joined = SINGLE_PROCESS
"""The group of this process since its first training, which removes the variables of torchrun."""


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and number of the processes that torchrun started; 0 and 1 without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    return (int(os.environ["RANK"]), size) if size > 1 else (_joined.rank, _joined.size)


def init_process_group(device: str = "auto") -> ProcessGroup:
    """Join the processes that torchrun or Ray started; without them, return `SINGLE_PROCESS`.

    Raises:
        ConfigError: if the machine has fewer GPUs than processes, but at least one, and the device is not ``"cpu"``.
    """
    global _joined
    rank, size = rank_and_world_size()
    if (rank, size) == (_joined.rank, _joined.size):
        return _joined
    import torch
    import torch.distributed as dist

    local_rank = int(os.environ["LOCAL_RANK"])
    for name in _TORCHRUN:  # or transformers would distribute, too
        os.environ.pop(name, None)
    if not dist.is_initialized():  # Ray connects its processes, with one GPU each
        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        if gpus:
            if local_rank >= gpus:
                raise ConfigError(
                    f"more processes than GPUs: this machine has {gpus}",
                    where="torchrun",
                    remedy=f"Pass --nproc-per-node {gpus}.",
                )
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank]  # before CUDA is initialized
        dist.init_process_group(GPU_BACKENDS if gpus else "gloo", rank=rank, world_size=size, timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)  # otherwise its threads crash at exit
    _joined = ProcessGroup(rank, size)
    return _joined
