"""Background work of the labelling page: choosing the next texts in a thread, and training in a child process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bertsmith.compute.system import TERMINATE_KILLS
from bertsmith.errors import UserError, save_traceback
from bertsmith.events import InputOpened, PredictionEvent, PredictionListener, RowsPredicted
from bertsmith.labelling.pool import EmptyPoolError
from bertsmith.labelling.project import Project
from bertsmith.labelling.table import PAIR, export

RUNS = "runs"
"""Folder in the project with a run for each training."""
CLOSE_SECONDS = 30.0
"""Time for a training to save a checkpoint when the server stops."""
RETRY_SECONDS = 60.0
"""Time after a failed choice in which only a user can start another one."""
Choose = Callable[[PredictionListener], int]
"""Chooses and queues texts, reports events, and returns the number of texts."""


class BackgroundWork:
    """The background work of the labelling page, one choice and one training at a time.

    Args:
        project: the project.
        choose: chooses texts and queues them.
        train_flags: further arguments of ``bertsmith train``.
    """

    def __init__(self, project: Project, choose: Choose, train_flags: tuple[str, ...] = ()) -> None:
        self.project, self._choose, self.train_flags = project, choose, train_flags
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.child: subprocess.Popen[str] | None = None
        self.message, self.trained, self.exhausted = "", "", False
        self.rows_read, self.n_rows, self._retry = 0, 0, 0.0
        self.lines: deque[str] = deque(maxlen=20)

    @property
    def is_choosing(self) -> bool:
        """Whether texts are being chosen."""
        return self.thread is not None and self.thread.is_alive()

    def choose(self, *, automatic: bool = False) -> None:
        """Choose the next texts in the background, unless a choice is running.

        Args:
            automatic: the page asks after a decision, not a user. Nothing is then chosen from an exhausted pool, or
                within `RETRY_SECONDS` after a failed choice, because the error may last.
        """
        with self.lock:
            if self.is_choosing or (automatic and (self.exhausted or time.monotonic() < self._retry)):
                return
            self.message, self.rows_read, self.n_rows = "", 0, 0
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()

    def _run(self) -> None:
        try:
            self.exhausted = not self._choose(self._observe)
        except UserError as error:
            self.message, self.exhausted = str(error), isinstance(error, EmptyPoolError)
            self._retry = time.monotonic() + RETRY_SECONDS
        except Exception as error:  # a thread can report errors only to the page
            self._retry = time.monotonic() + RETRY_SECONDS
            self.message = (
                "Choosing texts failed with an internal error. All labels are saved. Restart bertsmith label. If the "
                f"error comes back, report it, with the traceback in {save_traceback(error)}, to the maintainers: "
                f"{type(error).__name__}: {error}"
            )

    def _observe(self, event: PredictionEvent) -> None:
        if isinstance(event, InputOpened):
            self.n_rows = event.n_rows or 0
        elif isinstance(event, RowsPredicted):
            self.rows_read += event.rows

    def train(self) -> None:
        """Train on the labels of the project in a child process, unless a training is running."""
        with self.lock:
            if self.child is not None and self.child.poll() is None:
                return
            run = self.next_run()
            table = run.with_suffix(".csv")  # with later labels, the training could not be resumed
            export(self.project, table)
            command = [sys.executable, "-m", "bertsmith", *self.train_command(table, run)]
            self.lines.clear()
            self.trained = str(run)
            self.child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",  # other libraries may write another encoding
                start_new_session=True,  # Ctrl-C and `close` would be two signals, which stop it at once
            )
            threading.Thread(target=self._read, args=(self.child,), daemon=True).start()

    def next_run(self) -> Path:
        """Return the folder of the next training."""
        folder = self.project.path / RUNS
        numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        return folder / f"{1 + max(numbers, default=0):03}"

    def train_command(self, table: Path, run: Path) -> list[str]:
        """Return the command, without ``bertsmith``, that trains on an exported table."""
        pair = ["--pair-column", PAIR] if any(text.pair is not None for text in self.project.texts) else []
        command = ["train", str(table), "-o", str(run), "--split-column", "split", "--task", self.project.task]
        return [*command, *pair, *self.train_flags]

    def _read(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        with child.stdout:
            self.lines.extend(line.rstrip() for line in iter(child.stdout.readline, "") if line.strip())
        child.wait()

    def state(self) -> dict[str, Any]:
        """Return the state of the work, for the page."""
        code = None if self.child is None else self.child.poll()
        return {
            "choosing": self.is_choosing,
            "rows": self.rows_read,
            "of": self.n_rows,
            "exhausted": self.exhausted,
            "message": self.message,
            "training": self.child is not None and code is None,
            "exit_code": code,
            "run": self.trained,
            "lines": list(self.lines),
        }

    def close(self) -> list[str]:
        """Stop a running training, and return the command that resumes it; an empty list if none was running."""
        run = Path(self.trained)
        is_running = self.child is not None and self.child.poll() is None
        may_terminate = not TERMINATE_KILLS  # otherwise, Ctrl-C has reached the training, too
        while self.child is not None and self.child.poll() is None:
            if may_terminate:
                self.child.terminate()  # the first time after a step, then at once
            may_terminate = True
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(CLOSE_SECONDS)
        return [*self.train_command(run.with_suffix(".csv"), run), "--resume"] if is_running else []
