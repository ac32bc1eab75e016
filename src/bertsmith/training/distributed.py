"""Several processes that train one model together, as torchrun starts them.

Each of them goes through the same texts in the same order and computes a share of every step; gradients and scores are
summed over all, so that the result is that of one process. transformers does not know of it: to each process it looks
as if it were alone.
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
    import torch

_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
_PATIENCE = timedelta(days=7)
"""How long one waits for another, which may be scoring; torchrun ends all of them when one dies."""


@dataclass(frozen=True)
class Group:
    """Some processes; each has its rank, from 0. With one alone, nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, and scores in the end."""
        return self.rank == 0

    def share(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return the positions of the texts that this process takes, longest first: all have about as much to do.

        Args:
            lengths: tokens of each, shape (texts,).
        """
        return lengths.argsort(descending=True, stable=True)[self.rank :: self.size]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes of a tensor, which becomes that."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make every gradient the sum of those of all processes, of which one may have none yet."""
        if self.size == 1:
            return
        import torch

        learned = [p for p in parameters if p.requires_grad]
        for p in learned:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = self.add_up(torch.cat([p.grad.flatten() for p in learned if p.grad is not None]))
        for p, gradient in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            p.grad = gradient.view_as(p)

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        """Return of each wish whether one of the processes has it."""
        if self.size == 1:
            return wishes
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return tuple((self.add_up(torch.tensor(wishes, dtype=torch.int32, device=device)) > 0).tolist())

    def broadcast(self, value: Any) -> Any:
        """Return what the leading process gives here, to all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Wait until all are here."""
        self.broadcast(None)


ALONE = Group()


def started() -> tuple[int, int]:
    """Return the rank of this process and how many torchrun started; 0 and 1 where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    return (int(os.environ["RANK"]), size) if size > 1 else (0, 1)


def join() -> Group:
    """Join the processes that torchrun started; where it did not, this one is alone.

    Raises:
        ConfigError: if there are more processes than GPUs, where there are any.
    """
    rank, size = started()
    if size == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    for name in _TOLD:
        os.environ.pop(name, None)
    gpus = torch.cuda.device_count()
    if gpus:
        if local >= gpus:
            raise ConfigError(
                f"there are {gpus} GPUs and more processes than that",
                where="torchrun",
                remedy=f"Pass --nproc-per-node {gpus}.",
            )
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[local]  # before it is initialised: each process sees one
    dist.init_process_group("nccl" if gpus else "gloo", rank=rank, world_size=size, timeout=_PATIENCE)
    atexit.register(dist.destroy_process_group)  # whose threads would else end the process with a fault
    return Group(rank, size)
