"""Load the classifier that the server uses, at the start and on every reload."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.data.template import Texts
from bertsmith.errors import UserError
from bertsmith.folders.run import Run
from bertsmith.inference.exported import Exported, ExportInfo, is_export
from bertsmith.inference.load import open_classifier, run_facts
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.serving.aliases import VertexRoutes
from bertsmith.serving.batcher import Batcher
from bertsmith.serving.drift import DriftWatch
from bertsmith.serving.middleware import Limits, log_line
from bertsmith.serving.prometheus import ServerMetrics

Explain = Callable[[ModelPredictor, Texts, float], dict[str, Any]]
"""Computes an explanation until a deadline, on the clock of `time.perf_counter`."""


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of a server.

    Attributes:
        path: run folder or export folder.
        host, port: address to listen on; port 0 selects a free port.
        workers: number of processes.
        device, decide, runtime: see `open_classifier`.
        limits: limits of a request.
        token: token that requests must send; ``None``: requests need no token.
        long: see `open_classifier`.
        vertex: the routes of Vertex AI.
    """

    path: str
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    device: str = "auto"
    decide: bool = True
    runtime: str = "auto"
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    long: str = "auto"
    vertex: VertexRoutes = field(default_factory=VertexRoutes)


@dataclass
class Service:
    """The loaded model that the application serves. The server may replace its fields at any time.

    Attributes:
        batcher: runs the classifier.
        info: response of ``/info``, without limits and version.
        explain: computes an explanation; ``None`` if this runtime cannot explain.
        draining: whether the server is shutting down.
        watch: compares the texts with the held-out texts of the model; ``None`` if it cannot.
    """

    batcher: Batcher
    info: dict[str, Any]
    explain: Explain | None = None
    draining: bool = False
    watch: DriftWatch | None = None

    def observe(self, classifier: ModelPredictor, scores: np.ndarray, metrics: ServerMetrics) -> None:
        """Count predictions, and log when a difference to the held-out texts begins or ends.

        Args:
            classifier: the classifier that made the predictions, even if it was replaced since.
            scores: shape (texts, outputs).
            metrics: of the server.
        """
        watch = self.watch
        metrics.observe_labels(classifier.task, scores, classifier.labels)
        if watch is None or self.batcher.classifier is not classifier:
            return
        before = watch.differs
        if watch.observe(scores) and self.watch is watch:
            metrics.observe_drift(watch.latest.values())
            if watch.differs != before:
                log_line(event="drift", **(watch.to_dict() or {}))


class Loader:
    """Load the classifier at the start and on every reload."""

    def __init__(self, config: ServerConfig, metrics: ServerMetrics) -> None:
        self.config, self.metrics = config, metrics
        self.service: Service | None = None
        self.closed = False
        self.lock = threading.Lock()  # one load at a time, so that the last reload wins

    def load(self) -> None:
        """Load the classifier and serve it from now on; raises what `open_model` raises."""
        with self.lock:
            self._load()

    def _load(self) -> None:
        classifier = open_model(self.config)
        watch = DriftWatch.of(classifier)
        info, explain = _model_info(Path(self.config.path), classifier), _explainer(classifier)
        log_line(event="loaded", model=info["model"], runtime=info["runtime"], trained=info.get("trained"))
        if self.service is None:
            limits = self.config.limits
            on_batch, on_queue = self.metrics.observe_batch, self.metrics.queue_tokens.set
            batcher = Batcher(classifier, max_wait=limits.max_wait, on_batch=on_batch, on_queue=on_queue)
            self.service = Service(batcher, info, explain, watch=watch)
        else:
            service, old = self.service, self.service.watch
            service.batcher.classifier, service.info, service.explain, service.watch = classifier, info, explain, watch
            if old is not None:
                self.metrics.reset_drift(old.latest.values())

    def reload(self) -> None:
        """Load the folder again. If that fails, log the error and keep the current classifier."""
        with self.lock:
            if self.closed or self.service is None:
                return
            try:
                self._load()
            except UserError as error:
                log_line(event="not reloaded", error=str(error))

    def close(self) -> None:
        """Wait for a running load and disable reloads: no thread may load while the process exits."""
        with self.lock:
            self.closed = True


def open_model(config: ServerConfig) -> ModelPredictor:
    """Return the classifier of the configured folder.

    Raises:
        UserError: if the folder does not contain a usable classifier.
    """
    classifier = open_classifier(
        config.path, device=config.device, decide=config.decide, runtime=config.runtime, long=config.long
    )
    assert isinstance(classifier, ModelPredictor)
    return classifier


def _model_info(path: Path, classifier: ModelPredictor) -> dict[str, Any]:
    labels = [
        {"label": n, "label_text": t} for n, t in zip(classifier.labels.numbers, classifier.labels.texts, strict=True)
    ]
    runtime = f"{classifier.about.format} {classifier.about.precision}" if isinstance(classifier, Exported) else "torch"
    info: dict[str, Any] = {
        "model": path.resolve().name,
        "task": classifier.task.name,
        "primary": classifier.task.primary,
        "labels": labels,
        "runtime": runtime,
    }
    is_run = Run(path).layout.run.is_file()
    run = ExportInfo.read(path).run if is_export(path) else run_facts(Run(path)) if is_run else None
    if run is None:
        return info
    return info | {"model": run["name"], "base_model": run["model"], "trained": run["trained"], "test": run["test"]}


def _explainer(classifier: Any) -> Explain | None:
    if isinstance(classifier, Exported):
        return None
    from bertsmith.inference.explain import can_explain, explain

    if not can_explain(classifier):
        return None

    def explained(classifier: Any, texts: Texts, deadline: float) -> dict[str, Any]:
        return explain(classifier, texts, deadline=deadline).to_dict()

    return explained
