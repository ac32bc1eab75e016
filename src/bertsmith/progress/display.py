"""Live displays: redrawn by rich in a terminal, updated in place below the cell of a notebook."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.highlighter import RegexHighlighter
from rich.live import Live

SECONDS = 0.25
"""Least time between two updates in a notebook."""
WIDTH = 120
"""Characters per line in a notebook."""
_CODE = '<pre style="white-space:pre;overflow-x:auto;line-height:1.3;font-family:monospace;margin:0">{code}</pre>'


class _Prefixes(RegexHighlighter):
    """Colours the beginning of a message."""

    highlights = (r"^(?P<yellow>(note|warning|interrupted)(:|$))", r"^(?P<red>((internal )?error|problem):)")


class PlainConsole(Console):
    """Prints texts as they are. By default, rich takes ``[red]`` for a style and ``:cat:`` for an emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlighter=_Prefixes(), **options)


class NotebookConsole(PlainConsole):
    """Prints plain lines below the cell of a notebook."""

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, force_terminal=False, force_jupyter=False, width=WIDTH, soft_wrap=True)


class NotebookDisplay:
    """A display that a notebook updates in place. It needs no widgets, so the last state stays in the saved notebook.

    Args:
        render: returns what to show now.
    """

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self.render = render
        self.handle: object | None = None
        self.shown = 0.0

    def start(self) -> None:
        """Show the display below the output so far."""
        from IPython.display import HTML, display

        if self.handle is None:
            self.handle = display(HTML(self._html()), display_id=True)

    def refresh(self, *, now: bool = False) -> None:
        """Update the display, unless the last update is recent."""
        if self.handle is None or (time.monotonic() - self.shown < SECONDS and not now):
            return
        from IPython.display import HTML

        self.shown = time.monotonic()
        self.handle.update(HTML(self._html()))  # type: ignore[attr-defined]

    def stop(self) -> None:
        """Show the last state, which stays."""
        self.refresh(now=True)
        self.handle = None

    def _html(self) -> str:
        return to_html(self.render())


Display = Live | NotebookDisplay


def display_of(console: Console, render: Callable[[], RenderableType]) -> Display | None:
    """Return a display, not yet started; ``None`` for a file or pipe.

    Args:
        console: where to show it.
        render: returns what to show now.
    """
    if isinstance(console, NotebookConsole):
        return NotebookDisplay(render)
    if console.is_terminal:
        return Live(get_renderable=render, console=console, refresh_per_second=4)
    return None


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return Console().is_jupyter


def to_html(content: RenderableType) -> str:
    """Return a renderable of rich as HTML, with escaped texts."""
    console = PlainConsole(record=True, width=WIDTH, file=io.StringIO(), force_jupyter=False)
    console.print(content)
    return console.export_html(inline_styles=True, code_format=_CODE)


@contextmanager
def shown(
    progress: bool | None,
    on_event: Callable[[Any], None] | None,
    display: Callable[[Console], AbstractContextManager[Callable[[Any], None]]],
) -> Iterator[Callable[[Any], None]]:
    """Yield a listener that shows events and passes them on.

    Args:
        progress: whether to show them; ``None``: in a notebook only.
        on_event: called with each event.
        display: returns what shows the events on a console.
    """
    if not (in_notebook() if progress is None else progress):
        yield on_event or (lambda event: None)
        return
    console = NotebookConsole() if in_notebook() else PlainConsole(stderr=True, soft_wrap=True)
    with display(console) as show:

        def listener(event: Any) -> None:
            show(event)
            if on_event is not None:
                on_event(event)

        yield listener
