"""Forward and backward pass of a micro-batch, recorded once for every size and then replayed (CUDA graphs).

A step of BERT-Base is more than a thousand small pieces of work, and Python takes longer to hand them over one by one
than a large GPU to do them. A recording is handed over in one go, and computes the same: the same kernels on the same
shapes, with new dropout each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bertsmith.model.batch import to_device

MOST, TRIES = 64, 2
"""Recordings that are kept, and how often one is tried."""
Inputs = dict[str, torch.Tensor]
Work = Callable[[Inputs], torch.Tensor]
"""Adds gradients to those of the parameters, and returns a loss; waits for nothing."""
Record = Callable[[Work, Inputs], tuple[Callable[[], None], torch.Tensor]]
"""Returns what does the work again, with what the tensors hold by then, and the tensor in which it leaves its loss."""


@dataclass(frozen=True)
class _Recording:
    inputs: Inputs
    replay: Callable[[], None]
    loss: torch.Tensor


class CudaGraphs:
    """Recordings of the work on micro-batches of one model, by size.

    Args:
        model: whose gradients are added to; they stay in the same memory while recordings are used.
        record: how work is recorded; a test has no GPU.
    """

    def __init__(self, model: torch.nn.Module, record: Record | None = None) -> None:
        self.model, self.record = model, record or _CudaRecorder()
        self.recordings: dict[object, _Recording] = {}
        self.failures: Counter[object] = Counter()
        self.gradients: dict[torch.nn.Parameter, torch.Tensor] = {}

    def run(self, size: object, inputs: Mapping[str, torch.Tensor], work: Work, device: torch.device) -> torch.Tensor:
        """Do some work: the very first as it is, then it is recorded and replayed.

        Args:
            size: all that the work depends on besides the values of the inputs.
            inputs: on the CPU.
            work: what to do with the inputs on the device.
            device: of the model.

        Returns:
            The loss.
        """
        recording = self.recordings.get(size)
        if recording is None:
            there = {name: to_device(values, device) for name, values in inputs.items()}
            if not self.gradients or self.failures[size] == TRIES or len(self.recordings) == MOST:
                return self._as_it_is(work, there)
            self._keep_gradients()
            try:
                replay, loss = self.record(work, there)
            except RuntimeError:  # something in it cannot be recorded, or not before it was done once
                self.failures[size] += 1
                return self._as_it_is(work, there)
            recording = self.recordings[size] = _Recording(there, replay, loss)
        else:
            for name, values in inputs.items():
                recording.inputs[name].copy_(to_device(values, device))
            self._keep_gradients()
        recording.replay()
        return recording.loss.clone()

    def _as_it_is(self, work: Work, inputs: Inputs) -> torch.Tensor:
        loss = work(inputs)
        for parameter in self.model.parameters():
            if parameter.grad is not None and parameter not in self.gradients:
                self.gradients[parameter] = parameter.grad
        return loss

    def _keep_gradients(self) -> None:
        """Have all gradients where the recordings add to them: zero where there are none yet."""
        cleared = [kept for parameter, kept in self.gradients.items() if parameter.grad is None]
        if cleared:
            torch._foreach_zero_(cleared)
        for parameter, kept in self.gradients.items():
            if parameter.grad is not None and parameter.grad is not kept:
                kept.copy_(parameter.grad)
            parameter.grad = kept


class _CudaRecorder:
    """Records on the current GPU; all recordings share their memory, for they are never replayed at the same time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work, inputs: Inputs) -> tuple[Callable[[], None], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The outer context goes back to the stream of before whatever happens; the inner one does not if it fails.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self.pool):
            loss = work(inputs)
        return graph.replay, loss


LOOK, AT_LEAST = 200, 20
"""Steps after which the time of the rest of training is estimated; steps since the last evaluation that this takes."""
SAVES, COSTS = 0.1, 20.0
"""Share of the time that is saved, and the seconds that compiling takes: 0.12 and 15 for BERT-Base on an H200."""


def pays(seconds: float) -> bool:
    """Return whether compiling pays in a training that takes so many seconds more."""
    return SAVES * seconds > COSTS


def can_compile(device: torch.device) -> bool:
    """Return whether torch can compile for a GPU on this machine: that takes Triton and a C compiler."""
    try:
        return bool((torch.compile(lambda x: x + 1)(torch.zeros(8, device=device)) == 1).all())
    except Exception:  # of many kinds
        return False
