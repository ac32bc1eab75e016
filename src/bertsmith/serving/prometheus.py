"""Metrics of the server, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from bertsmith.data.table import Labels
from bertsmith.measuring.drift import Difference
from bertsmith.tasks.base import Task

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which several processes add up their metrics."""


class ServerMetrics:
    """Metrics of one server, summed over its processes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "bertsmith_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "bertsmith_request_seconds", "Duration of a request.", ("path",), buckets=SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "bertsmith_queue_seconds", "Time of a request in the queue.", buckets=SECONDS, registry=registry
        )
        self.batch_seconds = Histogram(
            "bertsmith_batch_seconds", "Duration of a batch.", buckets=SECONDS, registry=registry
        )
        self.batch_texts = Histogram(
            "bertsmith_batch_texts", "Texts in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry
        )
        self.texts = Counter("bertsmith_texts", "Classified texts.", registry=registry)
        self.tokens = Counter("bertsmith_tokens", "Tokens of classified texts.", registry=registry)
        self.truncated_texts = Counter("bertsmith_truncated_texts", "Truncated texts.", registry=registry)
        self.labels = Counter("bertsmith_labels", "Classified texts by predicted label.", ("label",), registry=registry)
        self.confidence = Histogram(
            "bertsmith_confidence", "Confidence of the predicted label.", buckets=CONFIDENCES, registry=registry
        )
        self.queue_tokens = Gauge(
            "bertsmith_queue_tokens", "Tokens waiting or running.", registry=registry, multiprocess_mode="livesum"
        )

        drift = ("property",)
        self.drift = Gauge(
            "bertsmith_drift_distance",
            "Distance between recent texts and the held-out texts of the model.",
            drift,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.drift_threshold = Gauge(
            "bertsmith_drift_threshold",
            "Threshold that the distance rarely exceeds by chance.",
            drift,
            registry=registry,
            multiprocess_mode="livemax",
        )

    def observe_batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_texts.observe(texts)
        self.batch_seconds.observe(seconds)
        self.texts.inc(texts)
        self.tokens.inc(tokens)

    def observe_labels(self, task: Task, scores: np.ndarray, labels: Labels) -> None:
        """Count predicted labels and their confidence, so that a change in the texts shows.

        Args:
            task: the kind of label; numbers are not counted.
            scores: shape (texts, outputs).
            labels: the classes.
        """
        if not task.has_labels:
            return
        counts = task.indicators(task.predicted(scores), len(labels)).sum(axis=0)
        for c in np.flatnonzero(counts):
            self.labels.labels(labels.texts[c]).inc(float(counts[c]))
        for confidence in task.confidence(scores):
            self.confidence.observe(float(confidence))

    def observe_drift(self, differences: Iterable[Difference]) -> None:
        """Export the latest comparison of `bertsmith.serving.drift.DriftWatch`."""
        for difference in differences:
            self.drift.labels(difference.name).set(difference.distance)
            self.drift_threshold.labels(difference.name).set(difference.threshold)

    def reset_drift(self, differences: Iterable[Difference]) -> None:
        """Set the comparison of the previous model to 0. With several processes, gauges cannot be removed."""
        self.observe_drift(replace(difference, distance=0.0, threshold=0.0) for difference in differences)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        if MULTIPROC_DIR not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)
