"""Data parallelism over the processes that torchrun starts.

All processes read the same texts in the same order and compute their share of each step. Gradients and logits are
summed over the processes, so the result is that of one process. To transformers, each process appears as the only one.
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.errors import ConfigError
from bertsmith.folders.atomic import PART

if TYPE_CHECKING:
    import torch

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
SENT_ALONE = 2**16
"""Minimum number of elements of a gradient in a separate message. Smaller ones are 0.1 % of those of BERT-Base."""
SHARED_BYTES = 2**26
"""Maximum number of bytes of a file per message to the other processes."""
TIMEOUT = timedelta(days=7)
"""Processes wait while the main one scores. If one dies, torchrun ends all."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run. With a single process, all operations are local.

    Attributes:
        rank: rank of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and computes the final scores."""
        return self.rank == 0

    def share(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return the positions of this process's texts, longest first. Shares have similar numbers of tokens.

        Args:
            lengths: number of tokens of each text, shape (texts,).
        """
        return lengths.argsort(descending=True, stable=True)[self.rank :: self.size]

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in at least one process."""
        if self.size == 1:
            return flags
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return tuple((self.all_reduce(torch.tensor(flags, dtype=torch.int32, device=device)) > 0).tolist())

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value in all processes."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def share_folder(self, folder: Path) -> Path:
        """Return where this process reads a folder of the main process: a copy if its machine lacks the folder.

        The copy is a hidden folder beside the missing one.

        Args:
            folder: a folder of files. All processes call this at once.
        """
        (lacked,) = self.any(not folder.is_dir())
        if not lacked:
            return folder
        copy = None if self.is_main or folder.is_dir() else folder.with_name(f".{folder.name}.{self.rank}{PART}")
        if copy is not None:
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir(parents=True)
        for name in self.broadcast(sorted(p.name for p in folder.iterdir()) if self.is_main else None):
            with ExitStack() as opened:
                source = opened.enter_context((folder / name).open("rb")) if self.is_main else None
                target = None if copy is None else opened.enter_context((copy / name).open("wb"))
                while chunk := self.broadcast(source and source.read(SHARED_BYTES)):
                    if target is not None:
                        target.write(chunk)
        return copy or folder

    def barrier(self) -> None:
        """Wait until all processes get here."""
        self.broadcast(None)


SINGLE_PROCESS = ProcessGroup()
_joined = SINGLE_PROCESS
"""The group of this process since its first training, which removes the variables of torchrun."""


class GradientSum:
    """The sum of the gradients over all processes, in place. Missing gradients count as zero.

    Large gradients are sent from where they are: a copy takes time and memory. Small ones share one message.

    Inside `overlap`, the backward pass sends a large gradient as soon as it is computed. All processes send in the same
    order, that of the first backward pass of the main process. `finish` sends the rest. So processes may differ in what
    they send during the backward pass: one without a text, or with replicas or CUDA graphs, sends all at the end.

    A process that runs out of memory repeats its step, and the others wait for it. The gradients that it has sent are
    complete, and do not depend on the micro-batches. So the repeated step sends only the others. The gradients of two
    layers can then belong to different dropout masks. `DistributedDataParallel` can neither repeat a step nor sum
    different numbers of micro-batches.

    Args:
        group: the processes. With a single one, nothing is done.
        parameters: of the model.
    """

    def __init__(self, group: ProcessGroup, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.group = group
        trained = [p for p in parameters if p.requires_grad and group.size > 1]
        self.large = [p for p in trained if p.numel() >= SENT_ALONE]
        self.small = [p for p in trained if p.numel() < SENT_ALONE]
        self._order: list[int] = []  # positions in `large`
        self._ready: dict[int, None] = {}  # positions, in the order of the backward pass
        self._sent: list[tuple[torch.Tensor, Any]] = []

    @contextmanager
    def overlap(self) -> Iterator[None]:
        """Send gradients during a backward pass. It must be the last one of the step."""
        self._ready.clear()
        hooks = [p.register_post_accumulate_grad_hook(partial(self._send_ready, i)) for i, p in enumerate(self.large)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Send the remaining gradients, and wait until all are summed."""
        import torch

        if len(self._order) < len(self.large):  # the first step
            first = self.group.broadcast(list(self._ready))
            self._order = [*first, *(i for i in reversed(range(len(self.large))) if i not in first)]
        while len(self._sent) < len(self.large):
            self._send_next()
        if self.small:
            flat = self.group.all_reduce(torch.cat([_gradient(p).flatten() for p in self.small]))
            for p, summed in zip(self.small, flat.split([p.numel() for p in self.small]), strict=True):
                _gradient(p).copy_(summed.view_as(p))
        for i, (gradient, message) in zip(self._order, self._sent, strict=True):
            message.wait()
            self.large[i].grad = gradient  # a repeated step has computed another one
        self._sent.clear()

    def _send_ready(self, position: int, parameter: torch.nn.Parameter) -> None:
        """Note that this gradient is computed, and send all computed gradients that are next in the order."""
        self._ready[position] = None
        while len(self._sent) < len(self._order) and self._order[len(self._sent)] in self._ready:
            self._send_next()

    def _send_next(self) -> None:
        import torch.distributed as dist

        gradient = _gradient(self.large[self._order[len(self._sent)]])
        self._sent.append((gradient, dist.all_reduce(gradient, async_op=True)))


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return the gradient of a parameter; a missing one becomes zero."""
    import torch

    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and number of the processes that torchrun started; 0 and 1 without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    return (int(os.environ["RANK"]), size) if size > 1 else (_joined.rank, _joined.size)


def init_process_group(device: str = "auto") -> ProcessGroup:
    """Join the processes that torchrun or Ray started; without them, return `SINGLE_PROCESS`.

    Args:
        device: the setting; ``"cpu"`` to use no GPU.

    Raises:
        ConfigError: if the machine has fewer GPUs than processes, but at least one.
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
    if dist.is_initialized():  # Ray has connected them, with one GPU each
        _joined = ProcessGroup(rank, size)
        return _joined
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
    dist.init_process_group("nccl" if gpus else "gloo", rank=rank, world_size=size, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)  # otherwise its threads crash at exit
    _joined = ProcessGroup(rank, size)
    return _joined
