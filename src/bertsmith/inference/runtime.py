"""The runtimes of exported models: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

Inputs = Mapping[str, np.ndarray]
"""Inputs of a model by name, each of shape (texts, tokens)."""
Session = Callable[[Iterable[Inputs], int], Generator[np.ndarray]]
"""Takes micro-batches and their number, and yields the logits of each in order, shape (texts, classes)."""


def _onnx(folder: Path, precision: str, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning threads take cores from the rest of a server and gain nothing on large batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda batches, n: (np.asarray(session.run(None, dict(batch))[0]) for batch in batches)


def import_openvino() -> Any:
    """Import openvino without its telemetry, which reports every import."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if not installed
    import openvino

    return openvino


def _openvino(folder: Path, precision: str, threads: int) -> Session:
    """Run a single micro-batch on all threads, and several on one thread each, so that none waits for another."""
    openvino = import_openvino()
    properties, core = openvino.properties, openvino.Core()
    model = core.read_model(folder / "model.xml")
    # Without hardware support OpenVINO emulates bf16, far slower than fp32.
    use_bf16 = precision != "fp32" and "BF16" in core.get_property("CPU", properties.device.capabilities())

    @cache
    def requests(n: int) -> list[Any]:
        settings = {
            properties.inference_num_threads(): threads,
            properties.num_streams(): n,
            properties.hint.inference_precision(): openvino.Type.bf16 if use_bf16 else openvino.Type.f32,
        }
        compiled = core.compile_model(model, "CPU", settings)
        return [compiled.create_infer_request() for _ in range(n)]

    def run(batches: Iterable[Inputs], n: int) -> Generator[np.ndarray]:
        idle, busy = deque[Any](), deque[Any]()

        def oldest() -> np.ndarray:
            idle.append(busy.popleft())
            idle[-1].wait()
            return np.array(idle[-1].get_output_tensor(0).data, dtype=np.float32)

        with lock:
            idle.extend(requests(threads if n > 1 else 1))
            try:
                for batch in batches:
                    if not idle:
                        yield oldest()
                    busy.append(idle.popleft())
                    busy[-1].start_async(dict(batch))
                while busy:
                    yield oldest()
            finally:
                for request in busy:
                    request.wait()

    lock = Lock()
    requests(1)  # fail now if the model cannot be loaded
    return run


@dataclass(frozen=True)
class Runtime:
    """The runtime of one export format.

    Attributes:
        package: name of the Python package.
        load: imports and returns the package; raises `ModuleNotFoundError` if it is not installed.
        open: creates a session for the model in a folder, with a precision and a number of threads.
        token_budget: tokens per micro-batch, including padding; per core with OpenVINO.
        few_shapes: whether it is faster if micro-batches have few distinct shapes.
    """

    package: str
    load: Callable[[], Any]
    open: Callable[[Path, str, int], Session]
    token_budget: int
    few_shapes: bool

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return find_spec(self.package) is not None


RUNTIMES = {
    "onnx": Runtime("onnxruntime", lambda: import_module("onnxruntime"), _onnx, 2048, few_shapes=False),
    "openvino": Runtime("openvino", import_openvino, _openvino, 1024, few_shapes=True),
}
"""By export format."""
