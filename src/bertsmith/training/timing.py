"""How fast training is, and where its time goes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    import torch

PHASES = ("data", "forward", "backward", "optimizer")
STEADY, LONG, MUCH = 5, 10.0, 4.0
"""Steps that are compared with as many first ones, the seconds they take at least, and how much slower they must be."""
WAIT, TRACED = 3, 5
"""Steps until a trace begins, when all is warm, and steps in it."""


class Phases:
    """How long each phase of a run takes, added up over its resumptions."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time until the end of the block as that of a phase."""
        self._phase, self._since = phase, time.perf_counter()
        try:
            yield
        finally:
            self.seconds()
            self._phase = None

    def add(self, earlier: Mapping[str, float]) -> None:
        """Add what was spent before the run was resumed."""
        for phase, seconds in earlier.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase so far, the current one included."""
        if self._phase is not None:
            now = time.perf_counter()
            self.add({self._phase: now - self._since})
            self._since = now
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}


class Stopwatch:
    """Counts what goes through the model since it was last reset, and the time of each phase of a step.

    On a GPU, which works on while the next thing is begun, the phases are those of the process that drives it; their
    sum is right.

    Attributes:
        texts: trained on.
        tokens: of them.
        places: tokens that went through the model, padding counted.
        seconds: by phase.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, now."""
        self.texts = self.tokens = self.places = 0
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.skip()

    def skip(self) -> None:
        """Leave out the time since the last lap."""
        self.at = time.perf_counter()

    def count(self, texts: int, tokens: int) -> None:
        """Count what a batch has."""
        self.texts += texts
        self.tokens += tokens

    def move(self, phase: str, to: str, seconds: float) -> None:
        """Give seconds of one phase to another."""
        self.seconds[phase] -= seconds
        self.seconds[to] += seconds

    def lap(self, phase: str) -> None:
        """Give the time since the last lap to a phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self.at
        self.at = now

    @property
    def texts_per_second(self) -> float:
        """All phases counted."""
        total = sum(self.seconds.values())
        return self.texts / total if total else 0.0

    def figures(self) -> dict[str, Any]:
        """Return the figures of an `Evaluated`."""
        total = sum(self.seconds.values()) or 1.0
        return {
            "texts_per_second": self.texts_per_second,
            "tokens_per_second": self.tokens / total,
            "padding": 1 - self.tokens / self.places if self.places else 0.0,
            "shares": {phase: self.seconds[phase] / total for phase in PHASES},
        }


class Pace:
    """Notices, once, that steps take much longer than the first ones did."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[tuple[float, float]] = deque(maxlen=STEADY)
        self._told = False

    def slowdown(self, seconds: float, tokens: int) -> float | None:
        """Take in a step; return how many times as slow as the first steps the last ones are, where that is much.

        Args:
            seconds: that the step took.
            tokens: that it computed.
        """
        if self._told or not tokens:
            return None
        if len(self._first) <= STEADY:  # the very first step also sets things up
            self._first.append(seconds / tokens)
            return None
        self._last.append((seconds, seconds / tokens))
        times = statistics.median(pace for _, pace in self._last) / statistics.median(self._first[1:])
        if len(self._last) < STEADY or sum(taken for taken, _ in self._last) < LONG or times < MUCH:
            return None
        self._told = True
        return times


class Tracer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Writes what the machine does in a few steps, for chrome://tracing or ui.perfetto.dev."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps = 0
        self.profiler: torch.profiler.profile | None = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin, once all is warm."""
        import torch

        if self.steps == WAIT:
            self.profiler = torch.profiler.profile()
            self.profiler.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End, after some steps."""
        self.steps += 1
        if self.steps == WAIT + TRACED:
            self.on_train_end(args, state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write, where training was shorter than that too."""
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.path))
            self.profiler = None
