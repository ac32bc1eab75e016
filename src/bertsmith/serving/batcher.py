"""Dynamic batching: texts of several requests share a batch, and a full queue refuses new requests."""

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
from bertsmith.model.tokens import Tokens

BATCH_SECONDS = 0.15
"""Target duration of a batch. A longer request is split, and batches of other requests run in between."""
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 512, 65536
"""Bounds of the tokens in a batch, without padding."""
INITIAL_SPEED = 2000.0
"""Assumed tokens per second before the first batch."""
BATCH_WEIGHT = 0.1
"""Weight of the newest batch in the estimate of seconds."""
MAX_SURPRISE = 4.0
"""A batch counts as at most this many times as long as expected: the first one is often slow."""
RIDGE = 1000.0
"""Variance of the tokens of batches (tokens²) below which the seconds per token hardly change."""


class QueueFullError(Exception):
    """A new request would wait longer than the limit.

    Attributes:
        seconds: time to wait before a retry, at least 1.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"retry in {seconds} s")
        self.seconds = seconds


@dataclass
class _Job:
    """A part of one request: texts that fit in one batch, or a function that needs the model."""

    classifier: ModelPredictor
    work: Tokens | Callable[[ModelPredictor], Any]
    tokens: int
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    created: float = field(default_factory=lambda: time.perf_counter())

    def can_join(self, other: _Job) -> bool:
        """Return whether both jobs can be in one batch."""
        are_texts = isinstance(self.work, Tokens) and isinstance(other.work, Tokens)
        return are_texts and self.classifier is other.classifier


class BatchSeconds:
    """Seconds of a batch: a fixed part, and a part for each token. Both are learned from the batches so far.

    They are fitted by least squares, with weights that decay exponentially. Batches of equal size do not say how the
    seconds divide into both parts. A ridge penalty therefore draws the seconds per token towards the last estimate.

    Attributes:
        fixed: seconds of a batch without tokens, at least 0.
        per_token: seconds per token, at least 0.
    """

    def __init__(self) -> None:
        self.fixed, self.per_token = 0.0, 1 / INITIAL_SPEED
        self._batches = 0
        self._tokens = self._seconds = self._variance = self._covariance = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a batch of at least one token."""
        self._batches += 1
        weight = max(BATCH_WEIGHT, 1 / self._batches)
        seconds = min(seconds, MAX_SURPRISE * self.expect(tokens))
        more_tokens, more_seconds = tokens - self._tokens, seconds - self._seconds
        self._tokens += weight * more_tokens
        self._seconds += weight * more_seconds
        self._variance = (1 - weight) * (self._variance + weight * more_tokens**2)
        self._covariance = (1 - weight) * (self._covariance + weight * more_tokens * more_seconds)
        slope = (self._covariance + RIDGE * self.per_token) / (self._variance + RIDGE)
        self.per_token = min(max(slope, 0.0), self._seconds / self._tokens)
        self.fixed = self._seconds - self.per_token * self._tokens

    def expect(self, tokens: int, batches: int = 1) -> float:
        """Return the expected seconds of some batches that have this number of tokens together."""
        return self.fixed * batches + self.per_token * tokens

    def tokens_within(self, seconds: float) -> float:
        """Return the number of tokens that a batch computes in this time."""
        return max(seconds - self.fixed, 0.0) / max(self.per_token, 1e-9)


class Batcher:
    """Run a classifier in a background thread, on batches of texts from several requests.

    Requests that arrive during a batch wait and form the next one, so batches grow with the load. A request that finds
    the thread idle starts at once. Each batch takes one part of every waiting request, in turn.

    Attributes:
        classifier: used for new requests; may be replaced at any time.
        max_wait: longest expected wait in seconds; a request that would wait longer is refused.
        on_batch: called after every batch with its texts, tokens and seconds.
        on_queue: called with `queued_tokens` after every change.
        batch_seconds: the expected seconds of a batch.
        queued_tokens: tokens that are waiting or running.
    """

    def __init__(
        self,
        classifier: ModelPredictor,
        *,
        max_wait: float,
        on_batch: Callable[[int, int, float], None] = lambda texts, tokens, seconds: None,
        on_queue: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self.classifier, self.max_wait, self.on_batch, self.on_queue = classifier, max_wait, on_batch, on_queue
        self.batch_seconds = BatchSeconds()
        self.queued_tokens = self._running_tokens = 0
        self._last_end = 0.0
        self._requests: collections.deque[collections.deque[_Job]] = collections.deque()
        self._condition = threading.Condition(threading.RLock())
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="model", daemon=True)
        self._thread.start()

    @property
    def expected_wait(self) -> float:
        """Seconds until a new request starts, after one part of every other request."""
        with self._condition:
            waiting = sum(request[0].tokens for request in self._requests)
            batches = math.ceil(waiting / self.batch_tokens) + (self._running_tokens > 0)
            return self.batch_seconds.expect(waiting + self._running_tokens, batches)

    @property
    def is_full(self) -> bool:
        """Whether new requests are refused. An empty queue accepts every request."""
        return self.queued_tokens > 0 and self.expected_wait > self.max_wait

    @property
    def retry_after(self) -> int:
        """Seconds to wait before a retry, at least 1."""
        return max(1, math.ceil(self.expected_wait))

    @property
    def batch_tokens(self) -> int:
        """Maximum number of tokens in a batch, at the current speed."""
        wanted = self.batch_seconds.tokens_within(BATCH_SECONDS)
        return int(min(max(wanted, MIN_BATCH_TOKENS), MAX_BATCH_TOKENS))

    async def logits(self, classifier: ModelPredictor, tokens: Tokens) -> tuple[np.ndarray, float]:
        """Return the logits of one request's texts, shape (texts, classes), and the seconds in the queue.

        Args:
            classifier: the classifier that tokenized the texts; `self.classifier` may have changed since.
            tokens: the truncated texts.

        Raises:
            QueueFullError: if the expected wait is too long.
        """
        parts = _split(tokens.truncated_lengths, self.batch_tokens)
        start = time.perf_counter()
        futures = self._submit(
            classifier, [(tokens.take(rows), int(tokens.truncated_lengths[rows].sum())) for rows in parts]
        )
        try:
            results = await asyncio.gather(*futures)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        return np.concatenate([logits for logits, _ in results]), min(started for _, started in results) - start

    async def run(self, action: Callable[[ModelPredictor], Any], tokens: int) -> Any:
        """Call a function with the classifier when its turn comes; ``tokens`` is its estimated cost.

        Raises:
            QueueFullError: if the expected wait is too long.
        """
        (future,) = self._submit(self.classifier, [(action, tokens)])
        return await future

    def _submit(
        self, classifier: ModelPredictor, parts: Sequence[tuple[Tokens | Callable[[ModelPredictor], Any], int]]
    ) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        with self._condition:
            if self.is_full:
                raise QueueFullError(self.retry_after)
            jobs = [_Job(classifier, work, tokens, loop.create_future(), loop) for work, tokens in parts]
            self._requests.append(collections.deque(jobs))
            self._queue(sum(job.tokens for job in jobs))
            self._condition.notify()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Stop the thread after the current batch; drop the jobs that are waiting."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._condition:
                while not self._requests and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                batch = self._next_batch()
                self._running_tokens = sum(job.tokens for job in batch)
            self._run_batch(batch)
            with self._condition:
                self._queue(-self._running_tokens)
                self._running_tokens = 0

    def _queue(self, tokens: int) -> None:
        self.queued_tokens += tokens
        self.on_queue(self.queued_tokens)

    def _next_batch(self) -> list[_Job]:
        """Return the next part of every request in turn, as long as they fit in one batch."""
        batch: list[_Job] = []
        tokens = 0
        for _ in range(len(self._requests)):
            request = self._requests[0]
            if batch and not (batch[0].can_join(request[0]) and tokens + request[0].tokens <= self.batch_tokens):
                break
            batch.append(request.popleft())
            tokens += batch[-1].tokens
            self._requests.popleft()
            if request:
                self._requests.append(request)
        return batch

    def _run_batch(self, batch: list[_Job]) -> None:
        start = time.perf_counter()
        jobs = [job for job in batch if not job.future.cancelled()]
        if not jobs:
            return
        classifier, parts = jobs[0].classifier, [job.work for job in jobs if isinstance(job.work, Tokens)]
        try:
            if isinstance(jobs[0].work, Tokens):
                logits = classifier.text_logits(Tokens.concatenate(parts))
                ends = np.cumsum([len(part) for part in parts])
                results: list[Any] = [(part, start) for part in np.split(logits, ends[:-1])]
            else:
                results = [jobs[0].work(classifier)]
        except Exception as error:
            for job in jobs:
                _resolve(job, None, error)
            return
        end = time.perf_counter()
        if parts:
            tokens = sum(job.tokens for job in jobs)  # without the cancelled ones
            # Under load, measure from the end of the last batch: time between batches delays the queue as well.
            self.batch_seconds.observe(max(tokens, 1), max(end - max(self._last_end, jobs[0].created), 1e-6))
            # Count the batch before its clients get a response and can read the metrics.
            self.on_batch(sum(map(len, parts)), tokens, end - start)
        self._last_end = end
        for job, result in zip(jobs, results, strict=True):
            _resolve(job, result, None)


def _resolve(job: _Job, result: Any, error: Exception | None) -> None:
    def set_future() -> None:
        if not job.future.done():
            job.future.set_result(result) if error is None else job.future.set_exception(error)

    if not job.loop.is_closed():
        job.loop.call_soon_threadsafe(set_future)


def _split(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Split texts, in order, into parts of at most ``budget`` tokens or of one text; return their positions."""
    parts: list[list[int]] = [[]]
    size = 0
    for i, n in enumerate(tokens):
        if parts[-1] and size + n > budget:
            parts.append([])
            size = 0
        parts[-1].append(i)
        size += int(n)
    return [np.array(part, dtype=np.int64) for part in parts]
