"""Progress on stderr, so that stdout holds results alone: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from unlearnx import _interrupts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

FIRST_SECONDS = 5.0  # how long a pass over data runs before its bar appears, or any task before its first line
MAX_LINE_INTERVAL_SECONDS = 60.0  # between two lines; the interval doubles until it is this long
REFRESHES_PER_SECOND = 4  # of the bars: enough to see them move, too few to slow down what is measured

_passes_shown: ContextVar[bool] = ContextVar("passes_shown", default=False)
_shown: Progress | None = None  # the bars on the screen: a terminal has room for one such display


@cache
def stderr_console() -> Console:
    """The console that bars are drawn on. Lines printed through it appear above the bars.

    Raises:
        ImportError: `rich` is not installed; the message names the extra that brings it.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install 'unlearnx[experiments]'") from error
    return Console(stderr=True)


@contextmanager
def progress_bar(title: str, total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by a number of steps; it shows nothing where `show` is False.

    Bars may be nested: the inner one is drawn below the outer one. An interrupt that was lost is raised at the next
    step.

    Args:
        title: what is being done.
        total: number of steps; None where it is unknown: the bar then shows the time that passes.
        show: whether to show anything.

    Raises:
        ImportError: `rich` is not installed; the message names the extra that brings it.
    """
    with _shown_as(title, total, show) as advance:

        def step(steps: int) -> None:
            _interrupts.check()
            advance(steps)

        yield step


@contextmanager
def _shown_as(title: str, total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda steps: None
    elif stderr_console().is_terminal:
        with _displayed() as bars:
            task = bars.add_task(title, total=total)
            try:
                yield lambda steps: bars.advance(task, steps)
            finally:
                bars.remove_task(task)
                bars.refresh()  # a line printed next would otherwise redraw the finished bar
    else:
        yield _Lines(title, total).advance


@contextmanager
def showing_passes(show: bool) -> Iterator[None]:
    """While inside, passes over data show bars if `show` says so: see :func:`passing`."""
    token = _passes_shown.set(show)
    try:
        yield
    finally:
        _passes_shown.reset(token)


@contextmanager
def passing(title: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for a pass over data, which appears once the pass has taken five seconds.

    Args:
        title: what the pass is for; None for a pass that shows nothing.
        total: number of samples.
    """
    if title is None or not _passes_shown.get():
        yield lambda steps: None
        return
    with ExitStack() as bar:
        start, done = time.monotonic(), 0
        advance: Callable[[int], None] | None = None
        if not stderr_console().is_terminal:  # lines are late by themselves
            advance = bar.enter_context(progress_bar(title, total, True))

        def count(steps: int) -> None:
            nonlocal advance, done
            done += steps
            if advance is not None:
                advance(steps)
            elif time.monotonic() - start >= FIRST_SECONDS and done < total:
                advance = bar.enter_context(progress_bar(title, total, True))
                advance(done)

        yield count


@contextmanager
def _displayed() -> Iterator[Progress]:
    """The bars on the screen, or new ones, which leave it with the outermost task."""
    global _shown
    if _shown is not None:
        yield _shown
        return
    # Standard output is for results, which may be read by a program: rich must not send it to the terminal.
    with _new_bars(console=stderr_console(), transient=True, redirect_stdout=False) as _shown:
        try:
            yield _shown
        finally:
            _shown = None


def _new_bars(**settings: Any) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Count(MofNCompleteColumn):
        """Steps done, of how many; nothing where their number is unknown."""

        def render(self, task: Task) -> Text:
            return Text() if task.total is None else super().render(task)

    columns = (TextColumn("{task.description}"), BarColumn(20), Count(), TimeElapsedColumn(), Remaining())
    return Progress(*columns, refresh_per_second=REFRESHES_PER_SECOND, **settings)


class _Lines:
    """Tells of a task in plain lines: after a few seconds, and at growing intervals from then on."""

    def __init__(self, title: str, total: int | None):
        self.title, self.total, self.done = title, total, 0
        self.start, self.due = time.monotonic(), FIRST_SECONDS

    def advance(self, steps: int) -> None:
        self.done += steps
        elapsed = time.monotonic() - self.start
        if elapsed >= self.due and self.total is not None and self.done < self.total:
            print(f"{self.title}: {self.done:,} of {self.total:,} after {elapsed:.0f} s", file=sys.stderr, flush=True)
            self.due = elapsed + min(elapsed, MAX_LINE_INTERVAL_SECONDS)
