"""Texts of many requests in one batch, one batch at a time, and no more in the queue than can be answered soon."""

from __future__ import annotations

import asyncio
import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertsmith.inference.predictor import ModelPredictor
from bertsmith.model.tokenizer import Tokens

BATCH_SECONDS = 0.15
"""How long a batch may take, by the speed measured; a longer request is done in several, and others in between."""
FEWEST, MOST = 512, 65536
"""Tokens of a batch, counted without padding: least and most, whatever the speed."""
FIRST_SPEED = 2000.0
"""Tokens a second that are reckoned with before anything was measured."""
MEMORY = 0.2
"""Weight of the newest batch in the measured speed."""


class QueueFullError(Exception):
    """There is more to do than can be done in the time that one may be kept waiting.

    Attributes:
        seconds: after which it makes sense to ask again, at least 1.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"ask again in {seconds} s")
        self.seconds = seconds


@dataclass
class _Job:
    """Texts of one request that go into one batch; or anything else that needs the model for itself."""

    classifier: ModelPredictor
    what: Tokens | Callable[[ModelPredictor], Any]
    tokens: int
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop

    since: float = field(default_factory=time.perf_counter)

    def goes_with(self, other: _Job) -> bool:
        """Return whether one batch can hold both."""
        texts = isinstance(self.what, Tokens) and isinstance(other.what, Tokens)
        return texts and self.classifier is other.classifier


class Batcher:
    """Gives texts to a classifier from a thread of its own, those of several requests together.

    While a batch is computed, what comes in waits, and makes up the next one: the busier, the larger the batches.
    Nobody waits for company. Of a long request a piece is done at a time, in turn with the other requests.

    Attributes:
        classifier: that requests are for; may be exchanged at any time.
        max_wait: seconds of work that may be queued, by the speed measured; what would wait longer is refused at once.
        on_batch: is told the requests, the texts, the tokens and the seconds of every batch.
    """

    def __init__(
        self,
        classifier: ModelPredictor,
        *,
        max_wait: float,
        on_batch: Callable[[int, int, int, float], None] = lambda requests, texts, tokens, seconds: None,
    ) -> None:
        self.classifier, self.max_wait, self.on_batch = classifier, max_wait, on_batch
        self.speed = FIRST_SPEED
        self.queued = self._running = 0
        self._ended = 0.0
        self._requests: collections.deque[collections.deque[_Job]] = collections.deque()
        self._there = threading.Condition(threading.RLock())
        self._over = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def wait(self) -> float:
        """Seconds until a new request has its turn: of every other one a piece comes before."""
        with self._there:
            return (sum(request[0].tokens for request in self._requests) + self._running) / self.speed

    @property
    def full(self) -> bool:
        """Whether there is so much to do that nothing more is taken; what finds nothing queued is always taken."""
        return self.queued > 0 and self.wait > self.max_wait

    @property
    def retry_after(self) -> int:
        """Seconds after which it makes sense to ask again, at least 1."""
        return max(1, math.ceil(self.wait))

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, at the speed measured."""
        return int(min(max(BATCH_SECONDS * self.speed, FEWEST), MOST))

    async def logits(self, classifier: ModelPredictor, tokens: Tokens) -> tuple[np.ndarray, float]:
        """Return the logits of texts, shape (texts, classes), and the seconds they were queued.

        Args:
            classifier: that tokenized them; it answers, even if another one has taken its place by then.
            tokens: the texts of one request, cut.

        Raises:
            QueueFullError: if there is too much to do before.
        """
        pieces = _pieces(tokens.truncated_lengths, self.batch_tokens)
        began = time.perf_counter()
        futures = self._put(
            classifier, [(tokens.take(rows), int(tokens.truncated_lengths[rows].sum())) for rows in pieces]
        )
        try:
            done = await asyncio.gather(*futures)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        return np.concatenate([logits for logits, _ in done]), min(started for _, started in done) - began

    async def alone(self, action: Callable[[ModelPredictor], Any], tokens: int) -> Any:
        """Do something with the model that is no batch, in its turn.

        Raises:
            QueueFullError: as `logits` does.
        """
        (future,) = self._put(self.classifier, [(action, tokens)])
        return await future

    def _put(
        self, classifier: ModelPredictor, parts: Sequence[tuple[Tokens | Callable[[ModelPredictor], Any], int]]
    ) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        with self._there:
            if self.full:
                raise QueueFullError(self.retry_after)
            jobs = [_Job(classifier, what, tokens, loop.create_future(), loop) for what, tokens in parts]
            self._requests.append(collections.deque(jobs))
            self.queued += sum(job.tokens for job in jobs)
            self._there.notify()
        return [job.future for job in jobs]

    def close(self) -> None:
        """End the thread as soon as the batch at hand is done; what is queued after that is not answered."""
        with self._there:
            self._over = True
            self._there.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._there:
                while not self._requests and not self._over:
                    self._there.wait()
                if self._over:
                    return
                batch = self._next()
                self._running = sum(job.tokens for job in batch)
            self._do(batch, self._running)
            with self._there:
                self.queued -= self._running
                self._running = 0

    def _next(self) -> list[_Job]:
        """Return the next batch: a piece of every request in turn, as long as there is room."""
        batch: list[_Job] = []
        tokens = 0
        for _ in range(len(self._requests)):
            request = self._requests[0]
            if batch and not (batch[0].goes_with(request[0]) and tokens + request[0].tokens <= self.batch_tokens):
                break
            batch.append(request.popleft())
            tokens += batch[-1].tokens
            self._requests.popleft()
            if request:
                self._requests.append(request)
        return batch

    def _do(self, batch: list[_Job], tokens: int) -> None:
        began = time.perf_counter()
        wanted = [job for job in batch if not job.future.cancelled()]
        if not wanted:
            return
        classifier, parts = wanted[0].classifier, [job.what for job in wanted if isinstance(job.what, Tokens)]
        try:
            if isinstance(wanted[0].what, Tokens):
                logits = classifier.logits_of(Tokens.concatenate(parts))
                ends = np.cumsum([len(part) for part in parts])
                answers: list[Any] = [(part, began) for part in np.split(logits, ends[:-1])]
            else:
                answers = [wanted[0].what(classifier)]
        except Exception as error:
            for job in wanted:
                _settle(job, None, error)
            return
        ended = time.perf_counter()
        seconds = ended - began
        if parts:
            # Under load from end to end: what else the machine does meanwhile makes the queue slower, too.
            taken = ended - max(self._ended, wanted[0].since)
            self.speed += MEMORY * (tokens / max(taken, 1e-6) - self.speed)
        self._ended = ended
        # Before anyone is answered, who may ask for the numbers.
        self.on_batch(len(wanted), sum(map(len, parts)), tokens, seconds)
        for job, answer in zip(wanted, answers, strict=True):
            _settle(job, answer, None)


def _settle(job: _Job, answer: Any, error: Exception | None) -> None:
    def settle() -> None:
        if not job.future.done():
            job.future.set_result(answer) if error is None else job.future.set_exception(error)

    if not job.loop.is_closed():
        job.loop.call_soon_threadsafe(settle)


def _pieces(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Return positions of texts, cut in order: pieces of at most so many tokens, or of one text."""
    pieces: list[list[int]] = [[]]
    size = 0
    for i, n in enumerate(tokens):
        if pieces[-1] and size + n > budget:
            pieces.append([])
            size = 0
        pieces[-1].append(i)
        size += int(n)
    return [np.array(piece, dtype=np.int64) for piece in pieces]
