"""What is counted while serving, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that names the folder where several processes count together."""


class ServerMetrics:
    """Counters of one server; with several processes, of all of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "bertsmith_requests", "Requests by path and outcome.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "bertsmith_request_seconds", "Time to an answer.", ("path",), buckets=SECONDS, registry=registry
        )
        self.waited = Histogram("bertsmith_queue_seconds", "Time in the queue.", buckets=SECONDS, registry=registry)
        self.computed = Histogram("bertsmith_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=registry)
        self.batch = Histogram(
            "bertsmith_batch_texts", "Texts in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry
        )
        self.texts = Counter("bertsmith_texts", "Texts labelled.", registry=registry)
        self.tokens = Counter("bertsmith_tokens", "Tokens computed.", registry=registry)
        self.truncated = Counter("bertsmith_truncated_texts", "Texts that were cut.", registry=registry)
        self.queue = Gauge(
            "bertsmith_queue_tokens", "Tokens queued or being computed.", registry=registry, multiprocess_mode="livesum"
        )

    def batched(self, requests: int, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.batch.observe(texts)
        self.computed.observe(seconds)
        self.texts.inc(texts)
        self.tokens.inc(tokens)

    def exposed(self) -> bytes:
        """Return everything in Prometheus' text format."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)
